"""Gains against closed forms, SciPy's quadrature, published numbers and the statistics of drawn numbers."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import nn

from lightning_weightwatch.activations import ACTIVATIONS, gain_of
from lightning_weightwatch.activations import gain_of_function as gain

# Forward and backward, to four digits, as Gauss-Hermite quadrature gives them, which is right for smooth functions.
PUBLISHED = {
    "GELU": (1.5335, 1.4811),
    "SiLU": (1.6765, 1.6233),
    "Mish": (1.4868, 1.4448),
    "Tanh": (1.5925, 1.4674),
    "Sigmoid": (1.8462, 4.7226),
    "Softplus": (1.0419, 1.8462),
}

# Those with kinks: the function, its derivative, and where the kinks are.
SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772
KINKED = {
    "ELU": (lambda z: z if z > 0 else math.expm1(z), lambda z: 1 if z > 0 else math.exp(z), [0]),
    "SELU": (
        lambda z: SCALE * (z if z > 0 else ALPHA * math.expm1(z)),
        lambda z: SCALE * (1 if z > 0 else ALPHA * math.exp(z)),
        [0],
    ),
    "Hardswish": (
        lambda z: z * min(max(z + 3, 0), 6) / 6,
        lambda z: 0 if z < -3 else 1 if z > 3 else (2 * z + 3) / 6,
        [-3, 3],
    ),
    "Softsign": (lambda z: z / (1 + abs(z)), lambda z: (1 + abs(z)) ** -2, [0]),
    "Hardtanh": (lambda z: min(max(z, -1), 1), lambda z: float(abs(z) < 1), [-1, 1]),
    "ReLU6": (lambda z: min(max(z, 0), 6), lambda z: float(0 < z < 6), [0, 6]),
    "Tanhshrink": (lambda z: z - math.tanh(z), lambda z: math.tanh(z) ** 2, [0]),
    "Softshrink": (lambda z: math.copysign(max(abs(z) - 0.5, 0), z), lambda z: float(abs(z) > 0.5), [-0.5, 0.5]),
}


def moment(function, kinks):
    return scipy.integrate.quad(lambda z: function(z) ** 2 * scipy.stats.norm.pdf(z), -12, 12, points=kinks)[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_gains_of_smooth_functions_are_those_published(name):
    found = gain_of(name)
    assert (found.forward, found.backward) == pytest.approx(PUBLISHED[name], abs=6e-5)


@pytest.mark.parametrize("name", KINKED)
def test_gains_are_those_of_adaptive_quadrature(name):
    """Gauss-Hermite quadrature is wrong in the second digit on kinks."""
    function, slope, kinks = KINKED[name]
    found = gain_of(name)
    expected = moment(function, kinks) ** -0.5, moment(slope, kinks) ** -0.5
    assert (found.forward, found.backward) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.25, 1.0])
def test_leaky_relu_has_a_closed_form(slope):
    found, expected = gain(nn.LeakyReLU(slope)), math.sqrt(2 / (1 + slope**2))
    assert (found.forward, found.backward) == pytest.approx((expected, expected), rel=1e-7)


@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_drawn_numbers_keep_their_second_moment(kind):
    """A million drawn numbers through the module itself: the gain is that of what torch computes."""
    z = torch.from_numpy(np.random.default_rng(0).standard_normal(1_000_000)).requires_grad_()
    out = kind().double().eval()(z)
    out.sum().backward()
    found = gain(kind())
    assert out.square().mean().item() * found.forward**2 == pytest.approx(1, rel=0.01)
    assert z.grad.square().mean().item() * found.backward**2 == pytest.approx(1, rel=0.01)


def test_a_function_of_the_users_own_is_integrated():
    def bump(x):
        return x * torch.exp(-x.square())

    def square(z):
        return (z * np.exp(-(z**2))) ** 2 * scipy.stats.norm.pdf(z)

    assert gain(bump).forward == pytest.approx(scipy.integrate.quad(square, -12, 12)[0] ** -0.5, rel=1e-7)


def test_a_jump_is_no_slope():
    """The derivative that backpropagation takes is 1 outside of the gap and 0 in it, whatever the jump."""
    outside = 2 * scipy.stats.norm.sf(0.5)
    assert gain(nn.Hardshrink()).backward == pytest.approx(outside**-0.5, rel=1e-6)


def test_what_passes_nothing_has_no_gain():
    assert gain(torch.zeros_like).forward == math.inf
    assert gain(torch.ones_like).backward == math.inf
    assert gain(torch.ones_like).forward == pytest.approx(1)


@pytest.mark.parametrize("act", [lambda x: x[:10], lambda x: x.sum(), lambda x: 1.0])
def test_what_is_no_function_of_each_element_is_refused(act):
    with pytest.raises(TypeError, match=r"gain\(activation=.*expected a function of each element\."):
        gain(act)


def test_a_module_is_left_as_it_was():
    prelu, dropout = nn.PReLU(), nn.Sequential(nn.Dropout(0.5), nn.ReLU())
    state = torch.get_rng_state()
    assert gain(prelu).forward == pytest.approx(math.sqrt(2 / (1 + 0.25**2)), rel=1e-7)
    assert gain(dropout).forward == pytest.approx(math.sqrt(2), rel=1e-7)
    assert prelu.weight.dtype == torch.float32
    assert dropout.training
    assert dropout[0].training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "same_as"), [("leaky_relu", "LeakyReLU"), ("silu", "SiLU"), ("log_sigmoid", "LogSigmoid")]
)
def test_functions_are_known_by_their_names_too(name, same_as):
    assert gain_of(name) == gain_of(same_as) is not None


def test_what_is_no_activation_has_no_gain():
    assert gain_of("Linear") is None
