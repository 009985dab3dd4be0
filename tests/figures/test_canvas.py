"""Letters that fit, cells that hide nothing."""

import math

import numpy as np
import pytest

from lightning_weightwatch.figures import _canvas


def test_pool_agrees_with_brute_force() -> None:
    random = np.random.default_rng(0)
    for _ in range(40):
        shape = random.integers(1, 30, 2)
        rows, columns = random.integers(1, 9, 2)
        values = random.normal(size=shape)
        urgency = random.normal(size=shape)
        pooled = _canvas.pool(values, urgency, rows, columns)
        assert pooled.shape == (math.ceil(shape[0] / rows), math.ceil(shape[1] / columns))
        for (i, j), value in np.ndenumerate(pooled):
            block = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            assert value == values[block].flat[urgency[block].argmax()]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pool_largest_keeps_every_non_finite_element_and_the_outlier(bad: float) -> None:
    values = np.random.default_rng(0).normal(size=(50, 70))
    values[17, 33], values[41, 2] = bad, -1e30
    pooled = _canvas.pool_largest(values, 7, 9)
    assert np.argwhere(~np.isfinite(pooled)).tolist() == [[17 // 7, 33 // 9]]
    assert pooled[41 // 7, 0] == -1e30


@pytest.mark.parametrize(("count", "most"), [(1, 1), (1, 50), (50, 50), (51, 50), (121, 120), (10_000, 121)])
def test_group_size_is_the_least_that_fits(count: int, most: int) -> None:
    size = _canvas.group_size(count, most)
    assert math.ceil(count / size) <= most
    assert size == 1 or math.ceil(count / (size - 1)) > most


def test_ends_of_groups_leave_out_what_is_not_finite() -> None:
    low, high = _canvas.ends(np.array([3.0, np.nan, 1.0, np.inf, np.nan]), 2)
    np.testing.assert_equal(low, [3, 1, np.nan])
    np.testing.assert_equal(high, [3, 1, np.nan])


@pytest.mark.parametrize("room", [80, 110, 182])
@pytest.mark.parametrize(
    "names",
    [
        [f"model.encoder.layers.{i}.attention.q_proj" for i in range(48)],
        [f"blocks.{i}.layers.{j}.mlp.fc" for i in range(5) for j in range(5)],
        ["encoder.a_very_long_name_indeed", "decoder.a_very_long_name_indeed"],
        ["a_very_long_name_indeed_1", "b_very_long_name_indeed_1"],
        ["x", "y", "fc.weight"],
        ["same.name.of.two.layers"] * 2,
    ],
)
def test_short_names_fit_and_stay_different(names: list[str], room: float) -> None:
    short = _canvas.short_names(names, room)
    assert max(map(_canvas.text_width, short)) <= room
    assert len(set(short)) == len(names)


def test_short_names_keep_what_tells_layers_apart() -> None:
    names = [f"model.encoder.layers.{i}.attention.q_proj" for i in range(12)]
    assert _canvas.short_names(names, 110)[11] == "11…q_proj"
    assert _canvas.short_names(["conv1", "fc"], 110) == ["conv1", "fc"]


def test_fit_leaves_short_text_alone_and_marks_what_it_cut() -> None:
    assert _canvas.fit("conv", 100) == "conv"
    assert _canvas.fit("encoder.layers.3.conv", 100).startswith("…")
    assert _canvas.fit("encoder.layers.3.conv", 100, keep="start").endswith("…")


def test_clean_replaces_what_the_font_lacks() -> None:
    assert _canvas.clean("a\n词\tb\x00") == "a ? b?"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.314, "0.31"), (-3e-7, "-3e-7"), (1e30, "1e30"), (1234.0, "1.2e3"), (math.inf, "inf")],
)
def test_number_is_short(value: float, text: str) -> None:
    assert _canvas.number(value) == text


def test_index_ticks_name_the_index_they_stand_at() -> None:
    for count in (1, 2, 10, 97, 512, 50_000):
        ticks = _canvas.index_ticks(count, 6)
        assert 1 <= len(ticks) <= 6
        assert [position - 0.5 for position in ticks] == [
            int(label.replace(",", "").replace("k", "000")) for label in ticks.values()
        ]
        assert max(ticks) < count


def test_colour_limit_is_the_largest_unless_outliers_blank_the_rest() -> None:
    usual = np.random.default_rng(0).normal(size=10_000)
    assert _canvas.colour_limit(np.array([1.0, -2.0, np.nan])) == (2.0, False)
    limit, beyond = _canvas.colour_limit(np.append(usual, 1e6))
    assert 3 < limit < 5
    assert beyond
    assert _canvas.colour_limit(np.array([np.nan, 0.0])) == (1.0, False)


def test_signed_colours_know_sign_and_keep_black_for_non_finite() -> None:
    below, zero, above, bad, worse = _canvas.signed_colours([-1.0, 0.0, 1.0, np.nan, -np.inf], 1.0)
    assert below[2] > below[0]  # more blue than red: purple
    assert above[0] > above[2]
    assert zero[:3].min() > 0.95
    assert bad.tolist() == worse.tolist() == [0, 0, 0, 1]
    assert below[:3].max() > 0.3
    assert _canvas.grey_colours([[-1.0] * 3], 1.0)[0, :3].min() > 0.1  # the least finite value is not black
    assert _canvas.grey_colours([[1.0, np.nan, 1.0]], 1.0)[0].tolist() == [0, 0, 0, 1]
