"""Activations at their flat ends before the first step: silent cases first, then networks that are born so."""

import pytest
import torch
from torch import nn

from lightning_weightwatch.evidence import Initial, InputScale, Layer, Signal
from lightning_weightwatch.rules import Rule
from lightning_weightwatch.rules.saturated_at_init import RULE, check
from tests.helpers.first_batch import NAN, plain, told


def layer(name, saturated=NAN, **known):
    usual = {"units": 64, "samples": 128, "mean": 0.0, "rms": 9.0, "spread": 9.0, "came_in": 0.9, "gradient": 0.1}
    return Layer(f"{name}.weight", saturated=saturated, **usual | {"activation": "tanh"} | known)


def batch(*layers, inputs=(), **known):
    return Initial([], Signal(layers, inputs=inputs), **known)


def numbers(std, mean=0.0):
    return InputScale("batch[0]", 64, mean, std, abs_max=4 * std, largest_std=std, spread=1.0, offset=mean / std)


FIRST, HEAD = layer("first", 0.1), layer("head", activation="", feeds_loss=True)
SILENT = [
    pytest.param([], id="no parameters"),
    pytest.param(Initial([]), id="no batch was sent"),
    pytest.param(batch(FIRST, layer("a"), HEAD), id="not measured"),
    pytest.param(batch(FIRST, layer("a", 0.6), HEAD), id="at the limit"),
    pytest.param(batch(FIRST, layer("out", 1.0, feeds_loss=True)), id="the layer that a loss takes"),
    pytest.param(batch(FIRST, layer("a", 0.9), HEAD, resumed=True), id="a checkpoint was loaded"),
    pytest.param(
        batch(FIRST, layer("router", 0.75, activation="sigmoid", rms=0.02), HEAD),
        id="experts that a mask of -Inf hides",
    ),
]


@pytest.mark.parametrize("initial", SILENT)
def test_silent(initial):
    assert RULE(initial) == ()


@pytest.mark.parametrize("function", ["tanh", "sigmoid", "hardsigmoid", "hardtanh"])
def test_more_than_the_limit_is_a_warning(function):
    (finding,) = RULE(batch(FIRST, layer("a", 0.61, activation=function), layer("b", 0.3), HEAD))
    assert (finding.severity, finding.parameters) == ("warning", ("a.weight",))
    assert (finding.value, finding.limit) == (0.61, 0.6)


@pytest.mark.parametrize(
    ("share", "gradient", "severity", "limit"),
    [
        (0.86, 0.9e-3, "critical", 0.85),
        (0.86, 1.1e-3, "warning", 0.6),
        (0.84, 0.9e-3, "warning", 0.6),
        (0.86, NAN, "warning", 0.6),
        (1.0, 0.0, "critical", 0.85),
    ],
)
def test_it_is_critical_where_the_gradient_is_gone_too(share, gradient, severity, limit):
    """The gradient is held against that of the layer behind, 0.1, whatever that of the last layer is."""
    head = layer("head", activation="", gradient=90.0, feeds_loss=True)
    (finding,) = RULE(batch(FIRST, layer("a", share, gradient=gradient), layer("b", 0.1, gradient=0.1), head))
    assert (finding.severity, finding.limit, finding.value) == (severity, limit, share)


def test_the_layer_that_lets_no_gradient_through_speaks_for_all():
    gone, more = layer("a", 0.9, gradient=1e-4), layer("b", 0.95, gradient=0.1)
    (finding,) = RULE(batch(FIRST, gone, more, HEAD))
    assert (finding.severity, finding.value, finding.parameters) == ("critical", 0.9, ("a.weight", "b.weight"))


@pytest.mark.parametrize("function", ["tanh", "sigmoid", "hardsigmoid"])
def test_what_a_layer_gives_must_be_large_enough_to_be_there(function):
    """The least that does it: seven tenths of the elements just beyond the end of the slope, the others at zero."""
    z = torch.linspace(0, 10, 100_001, dtype=torch.float64)
    ends = {"tanh": 0.97, "sigmoid": 0.97, "hardsigmoid": 1.0}
    least = float(z[int((getattr(nn.functional, function)(z) >= ends[function]).float().argmax())])
    for rms, count in ((least * 0.7**0.5, 1), (0.85 * least * 0.7**0.5, 0), (NAN, 1)):
        assert len(RULE(batch(FIRST, layer("a", 0.7, activation=function, rms=rms), HEAD))) == count


def test_what_is_said():
    (finding,) = RULE(batch(FIRST, layer("net.2", 0.7), layer("net.4", 0.8), HEAD))
    assert str(finding) == (
        "WARNING at step 0: saturated_at_init. 80% of the tanh behind net.4.weight are at its flat ends at the start "
        "(limit 60%): root mean square 9 before it, from a spread of 0.9 that came in. So it is in net.2.weight, "
        "net.4.weight. Try first: Draw these layers smaller: "
        "nn.init.xavier_normal_(model.net[4].weight, gain=5 / 3)."
    )


def test_in_what_looks_trained_it_is_a_note():
    (finding,) = RULE(batch(FIRST, layer("a", 0.9, gradient=0.0), HEAD, pretrained=True))
    assert finding.severity == "info"


# --- put there by others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "inputs", "severity"),
    [
        (layer("a", 0.9, rms=20.0, came_in=10.0), (numbers(10.0),), "info"),
        (layer("a", 0.9, rms=20.1, came_in=10.0), (numbers(10.0),), "warning"),
        (layer("a", 0.9, rms=200.0, came_in=1.0), (numbers(1.0, mean=100.0),), "info"),
        (layer("a", 0.9, rms=20.0, came_in=10.0), (), "info"),
        (layer("a", 0.9, rms=20.0, came_in=NAN), (), "warning"),
        (layer("a", 0.9, rms=20.0, came_in=1.0), (numbers(1.0), numbers(NAN)), "warning"),
    ],
)
def test_a_first_layer_that_inputs_put_there_is_a_note(first, inputs, severity):
    (finding,) = RULE(batch(first, layer("b", 0.1), HEAD, inputs=inputs))
    assert (finding.severity, finding.parameters) == (severity, ("a.weight",))
    assert finding.try_first.startswith("Normalise the inputs") == (severity == "info")


def test_large_inputs_are_no_excuse_for_the_second_layer():
    put, own = layer("a", 0.9, rms=20.0, came_in=10.0), layer("b", 0.7, rms=9.0)
    warning, note = RULE(batch(put, own, HEAD, inputs=(numbers(10.0),)))
    assert (warning.severity, warning.parameters) == ("warning", ("b.weight",))
    assert (note.severity, note.parameters) == ("info", ("a.weight",))


GATE = {"activation": "sigmoid", "mean": -5.0, "rms": 5.1, "spread": 1.0}


@pytest.mark.parametrize(
    ("gate", "others", "severity"),
    [
        (GATE, "relu", "info"),
        (GATE, "tanh", "info"),
        (GATE | {"mean": 5.0}, "relu", "info"),
        (GATE, "sigmoid", "warning"),
        (GATE, "", "warning"),
        (GATE | {"mean": 0.1}, "relu", "warning"),
        (GATE | {"activation": "tanh"}, "relu", "warning"),
    ],
)
def test_a_gate_that_a_bias_holds_is_a_note(gate, others, severity):
    (finding,) = RULE(batch(layer("a", activation=others), layer("gate", 0.95, **gate), HEAD))
    assert (finding.severity, finding.parameters) == (severity, ("gate.weight",))


def test_limits_are_keywords():
    ill = batch(FIRST, layer("a", 0.8, gradient=1e-3), layer("b", 0.1), HEAD)
    assert list(check(ill, saturated=0.9)) == []
    (finding,) = Rule("saturated_at_init", check, limits={"nearly_all": 0.7, "faded": 0.1})(ill)
    assert (finding.severity, finding.limit) == ("critical", 0.7)


# --- networks ---------------------------------------------------------------------------------------------------------


class Highway(nn.Module):
    """Gates that begin shut, so that the signal goes around."""

    def __init__(self):
        super().__init__()
        self.part = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.gate = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.last = nn.Linear(64, 10)
        for gate in self.gate:
            nn.init.constant_(gate.bias, -5.0)

    def forward(self, x):
        for part, gate in zip(self.part, self.gate, strict=True):
            share = gate(x).sigmoid()
            x = share * part(x).relu() + (1 - share) * x
        return self.last(x)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(plain(8, nn.Tanh), id="tanh, PyTorch's default"),
        pytest.param(plain(8, nn.Tanh, gain=3.0), id="tanh, a gain of 3"),
        pytest.param(plain(8, nn.Sigmoid, gain=4.0), id="sigmoid, a gain of 4"),
        pytest.param(plain(8, gain=8.0), id="ReLU has no flat ends on both sides"),
    ],
)
def test_networks_that_are_not_saturated(model):
    assert told("saturated_at_init", model) == []


def test_standard_normal_weights_saturate_all_hidden_layers():
    (finding,) = told("saturated_at_init", plain(5, nn.Tanh, gain=8.0))  # 64 inputs: a standard deviation of 1
    assert (finding.severity, finding.parameters) == ("warning", ("0.weight", "2.weight", "4.weight", "6.weight"))


def test_a_bias_far_away_is_critical():
    (finding,) = told("saturated_at_init", plain(5, nn.Sigmoid, gain=1.0, bias=8.0))
    assert finding.severity == "critical"


def test_raw_inputs_saturate_the_first_layer_only_and_are_told_as_their_cause():
    torch.manual_seed(2)
    (finding,) = told("saturated_at_init", plain(5, nn.Tanh, gain=1.0), torch.randn(128, 64) * 30)
    assert (finding.severity, finding.parameters) == ("info", ("0.weight",))
    assert finding.try_first.startswith("Normalise the inputs")


def test_gates_that_begin_shut_are_a_note():
    (finding,) = told("saturated_at_init", Highway())
    assert (finding.severity, len(finding.parameters)) == ("info", 6)
