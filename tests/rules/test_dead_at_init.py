"""Units that are silent before the first step: silent cases first, then networks that are born so."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_weightwatch.evidence import Initial, Layer, Signal
from lightning_weightwatch.rules import Rule
from lightning_weightwatch.rules.dead_at_init import RULE, check
from tests.helpers.first_batch import NAN, plain, told
from tests.helpers.verdicts import parameter


def layer(name, dead=NAN, **known):
    usual = {"units": 64, "samples": 128, "spread": 1.0, "came_in": 1.0, "gradient": 0.1, "activation": "relu"}
    return Layer(f"{name}.weight", dead=dead, **usual | known)


def batch(*layers, parameters=(), **known):
    return Initial(list(parameters), Signal(layers), **known)


HEAD = layer("head", activation="", feeds_loss=True)
CUT_OFF = layer("head", activation="", feeds_loss=True, spread=0.0, came_in=0.0)
SILENT = [
    pytest.param([], id="no parameters"),
    pytest.param(Initial([]), id="no batch was sent"),
    pytest.param(batch(layer("a"), HEAD), id="not measured"),
    pytest.param(batch(layer("a", 0.0), layer("b", 0.5), HEAD), id="half of them, by chance"),
    pytest.param(batch(layer("a", 0.68), HEAD), id="three deviations of tossing 64 coins"),
    pytest.param(batch(layer("a", 0.99, units=8), HEAD), id="of few units nearly all, by chance"),
    pytest.param(batch(layer("a", 1.0, samples=15), HEAD), id="few samples"),
    pytest.param(batch(layer("gate", 1.0, came_in=0.0), HEAD), id="behind a layer of zeros"),
    pytest.param(batch(layer("gate", 0.9, came_in=0.0), HEAD), id="in part, behind a layer of zeros"),
    pytest.param(batch(layer("a", 0.1), layer("out", 0.9, feeds_loss=True)), id="outputs that are seldom asked for"),
    pytest.param(batch(layer("a", 1.0), CUT_OFF, resumed=True), id="a checkpoint was loaded"),
]


@pytest.mark.parametrize("initial", SILENT)
def test_silent(initial):
    assert RULE(initial) == ()


def test_a_layer_that_is_silent_as_a_whole_cuts_the_network():
    before, cut = layer("a", 0.4, gradient=0.0), layer("b", 1.0, gradient=0.0)
    (finding,) = RULE(batch(before, cut, layer("c", 1.0, came_in=0.0, spread=0.0), CUT_OFF))
    assert (finding.severity, finding.parameters) == ("critical", ("b.weight",))
    assert (finding.value, finding.limit) == (1.0, 1.0)


def test_without_a_backward_pass_the_forward_pass_tells_that_it_is_cut():
    (finding,) = RULE(batch(layer("a", 0.2, gradient=NAN), layer("b", 1.0, gradient=NAN), CUT_OFF))
    assert finding.severity == "critical"
    (silent,) = RULE(batch(layer("a", 0.2, gradient=NAN), layer("out", 1.0, gradient=NAN, feeds_loss=True)))
    assert (silent.severity, silent.parameters) == ("critical", ("out.weight",))


@pytest.mark.parametrize(
    "initial",
    [
        pytest.param(batch(layer("a", 0.2), layer("b", 1.0, gradient=0.0), CUT_OFF), id="layers before it learn"),
        pytest.param(batch(layer("b", 1.0, gradient=0.0), HEAD), id="samples are told apart behind it"),
    ],
)
def test_beside_a_way_around_it_is_a_warning(initial):
    (finding,) = RULE(initial)
    assert (finding.severity, finding.parameters) == ("warning", ("b.weight",))


@pytest.mark.parametrize("units", [16, 64, 1024])
def test_more_than_by_chance_is_a_warning(units):
    limit = 0.5 + 3 * (0.5 * 0.5 / units) ** 0.5  # three deviations of the share of heads
    assert RULE(batch(layer("a", limit - 1e-3, units=units), HEAD)) == ()
    (finding,) = RULE(batch(layer("a", limit + 1e-3, units=units), layer("b", 0.5), HEAD))
    assert (finding.severity, finding.parameters) == ("warning", ("a.weight",))
    assert finding.limit == pytest.approx(limit)


def test_the_worst_layer_speaks_for_all():
    (finding,) = RULE(batch(layer("a", 0.8), layer("b", 0.9), HEAD))
    assert (finding.parameters, finding.value) == (("a.weight", "b.weight"), 0.9)
    assert str(finding) == (
        "WARNING at step 0: dead_at_init. 90% of the 64 units of b.weight (limit 69%) gave 0 behind relu for all 128 "
        "samples at the start. So it is in a.weight, b.weight. Try first: Draw it for what follows, with mean zero: "
        'nn.init.kaiming_normal_(model.b.weight, nonlinearity="relu").'
    )


def test_in_what_looks_trained_it_is_a_note():
    (finding,) = RULE(batch(layer("a", 0.9), HEAD, pretrained=True))
    assert finding.severity == "info"


@pytest.mark.parametrize(
    ("mean", "std", "line"),
    [
        (-2.0, 0.0, "nn.init.zeros_(model.net[0].bias)"),
        (-2.0, 1.0, "nn.init.zeros_(model.net[0].bias)"),
        (-0.01, 0.07, 'nn.init.kaiming_normal_(model.net[0].weight, nonlinearity="relu")'),
        (None, None, 'nn.init.kaiming_normal_(model.net[0].weight, nonlinearity="relu")'),
    ],
)
def test_biases_below_zero_are_named_where_there_are_any(mean, std, line):
    bias = parameter("net.0.bias", kind="bias", shape=(64,), mean=mean, std=std)
    (finding,) = RULE(batch(layer("net.0", 0.9), HEAD, parameters=[parameter("net.0.weight"), bias]))
    assert finding.try_first.endswith(f": {line}.")


def test_limits_are_keywords():
    assert list(check(batch(layer("a", 0.9), HEAD), many=0.75)) == []
    (finding,) = Rule("dead_at_init", check, limits={"samples": 8})(batch(layer("a", 0.9, samples=8), HEAD))
    assert finding.value == 0.9


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(plain(24, gain=2**0.5), id="deep, made for ReLU"),
        pytest.param(plain(24), id="deep, PyTorch's default"),
        pytest.param(plain(8, nn.ReLU6, gain=2**0.5), id="ReLU6"),
        pytest.param(plain(8, nn.GELU, gain=1.5, bias=-5.0), id="GELU is never silent"),
    ],
)
def test_networks_that_are_born_alive(model):
    assert told("dead_at_init", model) == []


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_a_network_whose_biases_cut_it(activation):
    model = plain(4, activation, gain=2**0.5, bias=-8.0)
    (finding,) = told("dead_at_init", model)
    assert (finding.severity, finding.parameters) == ("critical", ("0.weight",))
    assert finding.try_first == "Begin its biases at zero: nn.init.zeros_(model[0].bias)."


def test_a_network_born_dead_because_it_is_narrow():
    """Two units wide and twenty deep: hardly any such network is alive."""
    dead = [seed for seed in range(5) if told("dead_at_init", narrow(seed))]
    assert len(dead) >= 4


def narrow(seed):
    net = plain(20, gain=2**0.5, width=2, seed=seed)
    return nn.Sequential(nn.Linear(64, 2), nn.ReLU(), *net)


def test_training_bears_the_limits_out():
    """The numbers of the page: one whole layer stops the training, most of one does not."""
    images, digits = load_digits(return_X_y=True)
    images = torch.tensor((images - images.mean()) / images.std(), dtype=torch.float32)
    digits = torch.tensor(digits)

    def trained(bias):
        model = plain(3, gain=2**0.5, bias=bias)
        layers = [model[0](images[:128]).relu()]
        layers.append(model[2](layers[0]).relu())
        dead = max(float((one == 0).all(dim=0).float().mean()) for one in layers)
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        for _ in range(150):
            some = torch.randint(len(images), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[some]), digits[some]).backward()
            optimizer.step()
        return dead, float((model(images).argmax(dim=1) == digits).float().mean())

    shares, accuracies = np.array([trained(bias) for bias in (0.0, -1.5, -2.0)]).T
    assert 0.85 < shares[1] < 1 == shares[2]
    assert (accuracies[:2] > 0.9).all()
    assert accuracies[2] < 0.15
