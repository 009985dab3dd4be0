"""Weights and biases are shown as they are, and the caption says how much of them."""

import numpy as np
import pytest

from lightning_weightwatch.figures import _cells, _paper, bias_bars, convolution_filters, weight_matrix
from lightning_weightwatch.figures.filters import _planes
from lightning_weightwatch.figures.weight_matrix import _condense


def _texts(figure) -> list[str]:
    return [word.text for word in figure.words if word.text]


@pytest.mark.parametrize(
    ("shape", "caption"),
    [
        ((16, 1, 3, 3), "16 filters of 3 x 3"),
        ((1, 1, 5, 5), "1 filter of 5 x 5"),
        ((64, 3, 7, 7), "64 filters of 7 x 7"),
        ((768, 3, 16, 16), "first 40 of 768 filters of 16 x 16"),
        ((200, 1, 3, 3), "first 64 of 200 filters of 3 x 3"),
        ((64, 32, 3, 3), "rows: first 8 of 64 filters; columns: first 16 of 32 inputs; 3 x 3 each"),
        ((4, 2, 5), "rows: 4 filters; columns: 2 inputs; length 5 each"),
        ((512, 1, 10), "first 64 of 512 filters of length 10"),
        ((6, 1, 3, 3, 3), "6 filters of 3 x 3 x 3"),
        ((2, 2, 200, 900), "rows: first 1 of 2 filters; columns: first 1 of 2 inputs; 200 x 900 each"),
    ],
)
def test_caption_says_what_is_shown_of_how_much(shape: tuple[int, ...], caption: str) -> None:
    figure = convolution_filters(np.random.default_rng(0).normal(size=shape), title="conv.weight")
    assert _texts(figure)[-1] == caption


def test_special_ways_of_showing_are_said() -> None:
    assert "in colour, zero is grey" in _texts(convolution_filters(np.ones((4, 3, 3, 3)), title="a"))
    assert "slices side by side" in _texts(convolution_filters(np.ones((4, 3, 3, 3, 3)), title="a"))
    assert "each cell the largest of 3 x 6" in _texts(convolution_filters(np.ones((1, 1, 200, 900)), title="a"))


def test_slices_lie_side_by_side_in_order() -> None:
    weight = np.arange(2 * 3 * 4.0).reshape(1, 1, 2, 3, 4)
    np.testing.assert_array_equal(_planes(weight, (1, 1))[0, 0], np.hstack([weight[0, 0, 0], weight[0, 0, 1]]))


def test_tiles_are_the_filters_in_order() -> None:
    weight = np.zeros((4, 1, 2, 2))
    weight[2, 0, 0, 1] = np.nan
    pixels = convolution_filters(weight, title="a").pixels
    black = np.argwhere((pixels[..., :3] == 0).all(axis=-1))
    cell, tile = 24, 2 * 24 + 4
    assert black.min(axis=0).tolist() == [44 + 1, 10 + 2 * tile + 1 + cell]
    assert len(black) == cell**2


@pytest.mark.parametrize("draw", [weight_matrix, bias_bars, convolution_filters])
def test_non_finite_elements_are_counted_in_the_title(draw) -> None:
    weight = np.ones((4, 3, 5)) if draw is convolution_filters else np.ones((12, 5))
    assert not [text for text in _texts(draw(weight, title="a")) if "NaN" in text]
    weight.flat[[3, 11]] = np.nan, np.inf
    assert "2 of 60 NaN/Inf" in _texts(draw(weight, title="a"))


@pytest.mark.parametrize("shape", [(1, 1), (10, 256), (512, 2048), (83, 196), (84, 197), (301, 7)])
def test_matrix_is_condensed_as_by_brute_force(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[-1, -1] = np.nan
    condensed = _condense(weight)
    down, across = condensed.block
    assert condensed.cells.shape[0] <= 83
    assert condensed.cells.shape[1] <= 196
    assert np.isnan(condensed.cells[-1, -1])
    assert condensed.cells[0, 0] == weight[:down, :across].flat[np.abs(weight[:down, :across]).argmax()] or shape == (
        1,
        1,
    )
    squares = np.where(np.isnan(weight), 0, weight.astype(float)) ** 2
    counts = np.isfinite(weight)
    if shape != (1, 1):
        np.testing.assert_allclose(condensed.row_rms, np.sqrt(squares.sum(1) / counts.sum(1)))
        np.testing.assert_allclose(condensed.column_rms, np.sqrt(squares.sum(0) / counts.sum(0)))


def test_rms_of_extreme_weights_does_not_overflow() -> None:
    condensed = _condense(np.full((3, 4), 1e300))
    np.testing.assert_allclose(condensed.row_rms, 1e300)
    np.testing.assert_allclose(_condense(np.full((3, 4), 1e-300)).column_rms, 1e-300)


def test_matrix_rows_run_downwards_and_ticks_count_from_zero() -> None:
    weight = np.arange(12.0).reshape(3, 4)
    figure = weight_matrix(weight, title="a")
    colours = _cells.signed_colours(weight, 11.0)[..., :3] * 255
    for (i, j), _ in np.ndenumerate(weight):
        y, x = 86 + (i + 0.5) * 166 / 3, 84 + (j + 0.5) * 392 / 4
        assert np.abs(figure.pixels[int(y), int(x), :3] - colours[i, j]).max() <= 1
        row = [w for w in figure.words if w.text == str(i) and w.right < 84]
        column = [w for w in figure.words if w.text == str(j) and w.top > 252]
        assert row[0].top < y < row[0].bottom
        assert column[0].left < x < column[0].right


def test_bars_stand_at_their_unit_with_their_value() -> None:
    figure = bias_bars([0.5, -1.0, 0.0], title="a")
    bars = figure.pixels[46 : 46 + 208, [84 + 90, 84 + 270, 84 + 450]]  # columns through the middle of each unit
    for colour, signed in ((_paper.ORANGE, [0.5, 0, 0]), (_paper.PURPLE, [0, 1.0, 0])):
        heights = (bars == _paper.ink(colour)).all(axis=-1).sum(axis=0)
        assert heights == pytest.approx(np.array(signed) * 208 / 2.16, abs=1.5)  # the axis covers one
    assert [w.text for w in figure.words if w.right < 84 and w.top > 40] == ["1", "0", "-1"]


def test_many_units_share_bars_and_it_is_said() -> None:
    figure = bias_bars(np.linspace(0, 1, 1000), title="a")
    assert _texts(figure)[-1] == "unit; a bar spans the values of 7 units"
    assert _texts(bias_bars(np.ones(150), title="a"))[-1] == "unit"


def test_all_zero_is_said_in_words() -> None:
    assert "all 256 are exactly zero" in _texts(bias_bars(np.zeros(256), title="a"))
