"""How gradients change with depth, against brute force."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Evidence, Watched
from lightning_weightwatch.rules._profile import _best_step, bias_columns, depth_profile, steep_since
from tests.helpers.chains import MISSING, chain
from tests.helpers.runs import run


@pytest.mark.parametrize("length", [2, 3, 5, 40])
def test_the_best_step_is_that_of_brute_force(length):
    values = np.random.default_rng(length).normal(size=length) + 3.0
    parts = [(values[:i], values[i:]) for i in range(1, length)]
    left = min(np.sum((a - a.mean()) ** 2) + np.sum((b - b.mean()) ** 2) for a, b in parts) / length
    assert _best_step(values) == pytest.approx(left, abs=1e-12)


def test_the_ratio_is_that_of_the_fitted_line():
    profile = depth_profile(run(lambda t: [1e-4, 1e-3, 1e-2, 1e-1]), steps=20)
    assert (profile.decades, profile.ratio) == (pytest.approx(3.0), pytest.approx(1e-3))


def test_a_profile_can_be_that_of_other_columns():
    evidence = chain(*"abc", norm=lambda t, name: {"a": 1.0, "b": 10.0, "c": 100.0}[name[0]] if "bias" in name else 1.0)
    profile = depth_profile(evidence, steps=20, columns=[1, 3, 5])
    assert profile.names == ("a.bias", "b.bias", "c.bias")
    assert profile.decades == pytest.approx(2.0)
    assert depth_profile(evidence, steps=20).decades == pytest.approx(0.0)


def test_the_biases_are_those_of_matrices_in_the_order_of_the_forward_pass():
    parameters = [
        Watched("late.weight", 64, True, 6),
        Watched("late.bias", 8, False, 5, "bias"),
        Watched("early.weight", 64, True, 0),
        Watched("early.bias", 8, False, 1, "bias"),
        Watched("normed.weight", 64, True, 2),
        Watched("normed.bias", 8, False, 2, "bias"),
        Watched("norm.weight", 8, False, 3, "norm"),
        Watched("norm.bias", 8, False, 3, "bias"),
        Watched("bare.weight", 64, True, 4),
    ]
    assert bias_columns(Evidence(parameters)) == [3, 1]
    assert bias_columns(Evidence([])) == []


STEEP, LEVEL = [1e-6, 1e-4, 1e-2, 1.0], [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("norms", "since"),
    [
        (lambda t: STEEP, 0),
        (lambda t: STEEP if t >= 25 else LEVEL, 25),
        (lambda t: STEEP if t >= 25 or t == 9 else LEVEL, 25),  # one odd batch before
        (lambda t: LEVEL if t == 40 else STEEP, 0),  # and one within
        (lambda t: [MISSING, *STEEP[1:]] if t % 2 else STEEP, 0),
        (lambda t: [0.0, *STEEP[1:]] if t % 2 else STEEP, 0),
    ],
)
def test_a_steep_profile_is_dated_step_by_step(norms, since):
    evidence = run(norms, steps=60)
    profile = depth_profile(evidence, steps=20)
    assert steep_since(evidence, profile, 3.0) == since


def test_growth_towards_the_first_layer_is_dated_as_well():
    evidence = run(lambda t: STEEP[::-1] if t >= 25 else LEVEL, steps=60)
    assert steep_since(evidence, depth_profile(evidence, steps=20), 3.0) == 25
