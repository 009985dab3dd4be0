"""Cells hide nothing, and colours say what a number is."""

import math

import numpy as np
import pytest

from lightning_weightwatch.figures import _cells


def test_pool_agrees_with_brute_force() -> None:
    random = np.random.default_rng(0)
    for _ in range(40):
        shape = random.integers(1, 30, 2)
        rows, columns = random.integers(1, 9, 2)
        values = random.normal(size=shape)
        urgency = random.normal(size=shape)
        pooled = _cells.pool(values, urgency, rows, columns)
        assert pooled.shape == (math.ceil(shape[0] / rows), math.ceil(shape[1] / columns))
        for (i, j), value in np.ndenumerate(pooled):
            block = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            assert value == values[block].flat[urgency[block].argmax()]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pool_largest_keeps_every_non_finite_element_and_the_outlier(bad: float) -> None:
    values = np.random.default_rng(0).normal(size=(50, 70))
    values[17, 33], values[41, 2] = bad, -1e30
    pooled = _cells.pool_largest(values, 7, 9)
    assert np.argwhere(~np.isfinite(pooled)).tolist() == [[17 // 7, 33 // 9]]
    assert pooled[41 // 7, 0] == -1e30


@pytest.mark.parametrize(("count", "most"), [(1, 1), (1, 50), (50, 50), (51, 50), (121, 120), (10_000, 121)])
def test_group_size_is_the_least_that_fits(count: int, most: int) -> None:
    size = _cells.group_size(count, most)
    assert math.ceil(count / size) <= most
    assert size == 1 or math.ceil(count / (size - 1)) > most


def test_ends_of_groups_leave_out_what_is_not_finite() -> None:
    low, high = _cells.ends(np.array([3.0, np.nan, 1.0, np.inf, np.nan]), 2)
    np.testing.assert_equal(low, [3, 1, np.nan])
    np.testing.assert_equal(high, [3, 1, np.nan])


def test_colour_limit_is_the_largest_unless_outliers_blank_the_rest() -> None:
    usual = np.random.default_rng(0).normal(size=10_000)
    assert _cells.colour_limit(np.array([1.0, -2.0, np.nan])) == (2.0, False)
    limit, beyond = _cells.colour_limit(np.append(usual, 1e6))
    assert 3 < limit < 5
    assert beyond
    assert _cells.colour_limit(np.array([np.nan, 0.0])) == (1.0, False)


def test_signed_colours_know_sign_and_keep_black_for_non_finite() -> None:
    below, zero, above, bad, worse = _cells.signed_colours([-1.0, 0.0, 1.0, np.nan, -np.inf], 1.0)
    assert below[2] > below[0]  # more blue than red: purple
    assert above[0] > above[2]
    assert zero[:3].min() > 0.95
    assert bad.tolist() == worse.tolist() == [0, 0, 0, 1]
    assert below[:3].max() > 0.3
    assert _cells.grey_colours([[-1.0] * 3], 1.0)[0, :3].min() > 0.1  # the least finite value is not black
    assert _cells.grey_colours([[1.0, np.nan, 1.0]], 1.0)[0].tolist() == [0, 0, 0, 1]
