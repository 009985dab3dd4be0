"""Activations and gradients against depth: what is seen, and where."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from lightning_weightwatch import figures
from lightning_weightwatch.figures import _paper
from lightning_weightwatch.figures.signal_profile import _HIGH, _TOPS

NAN, INF = np.nan, np.inf


def drawn(spread, gradient=None, **options):
    names = [f"layers.{i}.weight" for i in range(len(spread))]
    return figures.signal_profile(
        names=names, spread=spread, gradient=spread if gradient is None else gradient, title="T", **options
    )


def words(figure):
    return [word.text for word in figure.words]


def rows_of(figure, colour):
    """Return the rows of pixels that have a colour."""
    ink = (np.array(to_rgba(colour)) * 255 + 0.5).astype(np.uint8)
    return np.flatnonzero((figure.pixels == ink).all(axis=-1).sum(axis=1) > 100)


def test_first_and_last_layer_stand_below():
    assert {"layers.0.weight", "layers.4.weight"} <= set(words(drawn([1.0] * 5)))


def test_an_ill_one_has_a_red_title_and_a_healthy_one_a_green_one():
    assert drawn([1.0] * 5).words[0].colour == _paper.GOOD
    assert drawn([1.0] * 5, healthy=False).words[0].colour == _paper.BAD


def test_the_shaded_band_is_three_decades_around_the_median():
    figure = drawn([1.0, 1.0, 1.0])  # 3.6 decades are shown
    for top in _TOPS:
        rows = rows_of(figure, _paper.PALE)
        inside = rows[(rows >= top) & (rows < top + _HIGH)]
        assert np.ptp(inside) + 1 == pytest.approx(_HIGH * 3.0 / 3.6, abs=2)


def test_a_line_that_falls_far_widens_the_scale():
    assert "1e-5" in words(drawn(10.0 ** -np.arange(10)))
    assert "1e-5" not in words(drawn([1.0] * 10))


def test_what_was_not_measured_is_said():
    assert words(drawn([1.0, 2.0], [NAN, NAN])).count("not measured") == 1


def test_zero_everywhere_is_not_taken_for_not_measured():
    assert "exactly 0 in all layers" in words(drawn([1.0, 2.0], [0.0, 0.0]))


def test_nothing_finite_is_said():
    assert "not finite" in words(drawn([INF, INF]))


def test_no_layers():
    assert "no layer was heard" in words(drawn([]))


@pytest.mark.parametrize("count", [3, 60, 300])
def test_from_three_to_three_hundred_layers(count):
    assert figures.encode(drawn(np.linspace(1, 2, count)))[:4] == b"\x89PNG"
