"""The lines of code that findings offer, run as they stand."""

import math

import pytest
import torch
from torch import nn

from lightning_weightwatch.activations import gain_of
from lightning_weightwatch.evidence import Initial, Layer, Signal
from lightning_weightwatch.rules._code import followed_by, gain_for, line, line_for
from tests.helpers.verdicts import parameter


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "elu", "selu", "softplus", "hardswish"])
def test_the_gain_is_that_of_torchs_own_function(name):
    assert gain_for(name) == pytest.approx(gain_of(name).forward, rel=1e-6)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh"])
def test_the_gain_is_that_of_torchs_table(name):
    assert gain_for(name) == pytest.approx(nn.init.calculate_gain(name), rel=1e-4)


@pytest.mark.parametrize("name", ["sigmoid", "hardsigmoid"])
def test_the_gain_makes_up_for_the_slope_at_zero(name):
    z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    getattr(nn.functional, name)(z).backward()
    assert gain_for(name) == pytest.approx(1 / z.grad.item(), rel=1e-6)


def test_what_is_not_known_needs_no_gain():
    assert gain_for("") == gain_for("softmax") == gain_for("mine") == 1.0


@pytest.mark.parametrize(
    ("activation", "gain"),
    [
        ("relu", 2**0.5),
        ("relu6", 2**0.5),
        ("leaky_relu", (2 / 1.0001) ** 0.5),
        ("gelu", 1.5335),
        ("silu", 1.676),
        ("tanh", 5 / 3),
        ("sigmoid", 4.0),
        ("hardsigmoid", 6.0),
        ("hardtanh", 1.0),
        ("", 1.0),
        ("softmax", 1.0),
        ("mine", 1.0),
    ],
)
@pytest.mark.parametrize("layer", [nn.Linear(300, 300), nn.Conv2d(32, 32, 3)])
def test_the_line_draws_with_that_gain(layer, activation, gain):
    model = nn.ModuleDict({"net": nn.ModuleList([nn.Identity(), layer])})
    kind = "linear" if isinstance(layer, nn.Linear) else "convolution"
    code = line("net.1.weight", kind, layer.weight.shape, activation)
    torch.manual_seed(0)
    exec(code, {"nn": nn, "model": _Reached(model)})
    fan = math.prod(layer.weight.shape[1:])
    assert layer.weight.std().item() * math.sqrt(fan) == pytest.approx(gain, rel=0.06)  # two digits of a number


class _Reached:
    """Reach parts by attribute, as in a module of the user's."""

    def __init__(self, parts):
        self.net = parts["net"]


@pytest.mark.parametrize(
    ("kind", "shape", "code"),
    [
        ("bias", (8,), "nn.init.zeros_(model.a.weight)"),
        ("norm", (8,), "nn.init.ones_(model.a.weight)"),
        ("norm", (8, 8), "nn.init.ones_(model.a.weight)"),
        ("recurrent", (32, 8), "nn.init.orthogonal_(model.a.weight)"),
        ("embedding", (1000, 400), "nn.init.normal_(model.a.weight, std=0.05)"),
        ("other", (8,), "nn.init.zeros_(model.a.weight)"),
    ],
)
def test_what_is_no_matrix_before_an_activation_has_a_line_of_its_kind(kind, shape, code):
    assert line("a.weight", kind, shape, "relu") == code


def test_the_line_for_leaky_relu_names_its_slope():
    assert line("a.weight", "linear", (8, 8), "leaky_relu") == (
        'nn.init.kaiming_normal_(model.a.weight, a=0.01, nonlinearity="leaky_relu")'
    )


def test_a_layer_is_drawn_for_what_follows_it():
    known, unknown = Layer("a.weight", activation="tanh"), Layer("b.weight")
    out = Layer("c.weight", activation="sigmoid", feeds_loss=True)
    signal = Signal((known, known, Layer("d.weight", activation="gelu"), Layer("e.weight", activation="softmax")))
    assert followed_by(signal, known) == "tanh"
    assert followed_by(signal, unknown) == followed_by(signal, signal.layers[3]) == "tanh"  # as most of the network
    assert followed_by(signal, out) == ""
    assert followed_by(Signal(), unknown) == ""


def test_the_shape_of_the_parameter_decides():
    initial = Initial([parameter("a.weight", shape=(10, 100))], Signal())
    assert line_for(initial, Layer("a.weight", activation="selu")).endswith("std=0.1)")
