"""Weights that let the signal fade: silent cases first, then networks that do and do not."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch.evidence import Initial, Layer, Signal
from lightning_weightwatch.rules import Rule
from lightning_weightwatch.rules._code import line_for
from lightning_weightwatch.rules.init_too_small import RULE, check
from tests.helpers.first_batch import NAN, passed, plain, told


def falls(decades, layers=9):
    """Return sizes that fall by so many powers of ten along a straight line."""
    return [float(size) for size in 10.0 ** np.linspace(0.0, -decades, layers)]


LEVEL = falls(0.0)
SILENT = [
    pytest.param([], id="no parameters"),
    pytest.param(Initial([]), id="no batch was sent"),
    pytest.param(passed(LEVEL, LEVEL), id="a level course"),
    pytest.param(passed(falls(1.99), falls(-1.99)), id="just below what is noted"),
    pytest.param(passed(falls(-6.0), falls(6.0)), id="growing is another illness"),
    pytest.param(passed(falls(9.0, layers=3), falls(-9.0, layers=3)), id="three layers are no course"),
    pytest.param(passed([NAN] * 9, [NAN] * 9), id="nothing was measured"),
    pytest.param(passed([0.0] * 9, [0.0] * 9), id="nothing passes: not this rule's business"),
    pytest.param(passed([1.0] * 8 + [1e-6], [1e-6] * 8 + [1.0]), id="a head that begins near zero"),
    pytest.param(passed([1.0] * 5 + [1e-6] * 4), id="one tiny layer between others of the right size"),
    pytest.param(passed([1.0] * 4 + [1e-6] + [1.0] * 4), id="one tiny layer before a normalisation"),
    pytest.param(passed([1.0, 1e-3] * 12), id="branches that end small, beside a stream that does not"),
    pytest.param(passed(falls(9.0), falls(-9.0), resumed=True), id="a checkpoint was loaded"),
]


@pytest.mark.parametrize("initial", SILENT)
def test_silent(initial):
    assert RULE(initial) == ()


@pytest.mark.parametrize(
    ("decades", "optimizers", "severity", "limit"),
    [
        (2.01, (), "info", 2.0),
        (2.99, (), "info", 2.0),
        (3.01, (), "warning", 3.0),
        (3.01, ("SGD",), "warning", 3.0),
        (3.01, ("SGD", "Adam"), "warning", 3.0),
        (7.01, ("SGD",), "critical", 7.0),
        (3.01, ("AdamW",), "info", 2.0),
        (5.99, ("AdamW",), "info", 2.0),
        (6.01, ("AdamW",), "warning", 6.0),
        (9.0, ("AdamW",), "warning", 6.0),
    ],
)
def test_how_serious_it_is_depends_on_what_is_lost_and_on_the_optimizer(decades, optimizers, severity, limit):
    for initial in (
        passed(falls(decades), optimizers=optimizers),
        passed([NAN] * 9, falls(-decades), optimizers=optimizers),
    ):
        (finding,) = RULE(initial)
        assert (finding.severity, finding.limit) == (severity, limit)
        assert finding.value == pytest.approx(decades)


def test_the_way_that_loses_more_is_told():
    (there,) = RULE(passed(falls(5.0), falls(-4.0)))
    (back,) = RULE(passed(falls(4.0), falls(-5.0)))
    assert (there.unit, back.unit) == ("powers of ten lost forwards", "powers of ten lost backwards")
    assert there.value == pytest.approx(5.0) == back.value


def test_what_is_said():
    (finding,) = RULE(passed(falls(4.0, layers=5), activation="relu"))
    assert str(finding) == (
        "WARNING at step 0: init_too_small. What tells samples apart in the layers' outputs falls by 4.0 powers of ten "
        "(limit 3) on its way through 5 layers at the start: 1.0e+00 in 0.weight, 1.0e-04 in 4.weight. Too small: "
        "1.weight, 2.weight, 3.weight, 4.weight. Try first: Draw these layers for what follows them: "
        'nn.init.kaiming_normal_(model[1].weight, nonlinearity="relu").'
    )


def test_one_odd_layer_adds_no_more_than_the_others():
    """A small head below a chain that fades by little was told as a chain that fades by much."""
    sizes = [*falls(2.4, layers=7), 10**-2.8 * 1e-4]
    raw = np.polyfit(np.linspace(0, 1, 8), np.log10(sizes), 1)[0]
    assert raw < -4
    (finding,) = RULE(passed(sizes))
    assert (finding.severity, finding.value) == ("info", pytest.approx(2.8))


def test_the_layers_that_lose_most_are_named():
    """Ten layers of the right size, then six that are not, then four that are."""
    own = [1.0] * 10 + [0.1] * 6 + [1.0] * 4
    (finding,) = RULE(passed(list(np.cumprod(own))))
    assert finding.parameters == tuple(f"{i}.weight" for i in range(10, 16))
    assert "Too small: 10.weight" in finding.saw


def test_where_no_layers_account_for_it_all_on_the_way_are_named():
    """An average over places, say, which is no layer's own doing."""
    (finding,) = RULE(passed(falls(6.0), came_in=falls(6.0)))
    assert len(finding.parameters) == 9
    assert finding.try_first == "Normalise between the layers, or add skip connections."


def test_embeddings_and_layers_that_give_nothing_are_left_out():
    fading = passed(falls(4.0))
    embedding = Layer("embed.weight", "embedding", spread=1e-9)
    zero = Layer("zero.weight", spread=0.0, came_in=1.0)
    both = Initial([], Signal((embedding, *fading.signal.layers, zero)))
    assert RULE(both) == RULE(fading)


def test_limits_are_keywords():
    assert list(check(passed(falls(4.0)), note=4.5, decades=4.5, gone=4.5)) == []
    (finding,) = Rule("init_too_small", check, limits={"gone": 3.5})(passed(falls(4.0)))
    assert (finding.severity, finding.limit) == ("critical", 3.5)


# --- networks ---------------------------------------------------------------------------------------------------------


class Skipping(nn.Module):
    """Branches of two small layers, each with a way around it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
        self.branches = nn.ModuleList(plain(2, gain=0.3)[:3] for _ in range(12))
        for branch in self.branches:
            branch[2] = nn.Linear(64, 64)

    def forward(self, x):
        x = self.first(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.last(x)


def normalised(depth, norm):
    net = plain(depth, gain=0.1)
    return nn.Sequential(*[p for part in net for p in ([norm(64)] if isinstance(part, nn.ReLU) else []) + [part]])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(plain(3), id="short"),
        pytest.param(plain(5), id="PyTorch's default, five layers"),
        pytest.param(plain(24, gain=2**0.5), id="deep, made for ReLU"),
        pytest.param(plain(24, nn.Tanh, gain=1.2), id="deep, made for tanh"),
        pytest.param(normalised(20, nn.BatchNorm1d), id="small weights, batch norm"),
        pytest.param(normalised(20, nn.LayerNorm), id="small weights, layer norm"),
        pytest.param(Skipping(), id="small weights, skip connections"),
    ],
)
def test_networks_that_keep_their_signal(model):
    assert told("init_too_small", model) == []


@pytest.mark.parametrize(
    ("model", "severity"),
    [
        pytest.param(plain(16), "warning", id="PyTorch's default, sixteen layers"),
        pytest.param(plain(16, gain=0.3), "critical", id="a gain of 0.3"),
        pytest.param(plain(16, nn.GELU), "critical", id="GELU loses more"),
        pytest.param(plain(8, nn.Sigmoid), "warning", id="sigmoid, PyTorch's default"),
    ],
)
def test_networks_that_let_it_fade(model, severity):
    (finding,) = told("init_too_small", model)
    assert finding.severity == severity
    assert len(finding.parameters) >= len(model) // 2


def test_the_value_is_that_of_a_straight_line_through_what_plain_torch_measures():
    model = plain(16, gain=0.5)
    (finding,) = told("init_too_small", model)
    torch.manual_seed(1)
    x, spreads = torch.randn(128, 64), []
    for part in model:
        x = part(x)
        if isinstance(part, nn.Linear):
            spreads.append(x.var(dim=0, correction=0).mean().sqrt().item())
    line = np.polyfit(np.linspace(0, 1, 16), np.log10(spreads), 1)[0]
    assert finding.unit == "powers of ten lost forwards"
    assert finding.value == pytest.approx(-line, rel=0.03)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.Mish])
def test_the_lines_of_code_mend_it(activation):
    model = plain(16, activation, gain=0.3)
    (finding,) = told("init_too_small", model)
    function = activation.__name__.lower().replace("leakyrelu", "leaky_relu")
    verdicts = [Layer(f"{i}.weight", activation=function) for i in range(0, 31, 2)]
    initial = Initial([_Shape(f"{i}.weight", (64, 64)) for i in range(0, 31, 2)], Signal(tuple(verdicts)))
    for layer in verdicts:
        assert layer.name in finding.parameters or layer is verdicts[-1]
        exec(line_for(initial, layer), {"nn": nn, "model": model})
    assert told("init_too_small", model) == []
    assert told("init_too_large", model) == []


class _Shape:
    """A parameter of which the shape is known."""

    def __init__(self, name, shape):
        self.name, self.shape = name, shape
