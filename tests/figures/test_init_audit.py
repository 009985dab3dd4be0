"""The worst first, on the right side of what was expected, and a last line for the rest."""

import numpy as np
import pytest

from lightning_weightwatch.figures import _paper, init_audit
from lightning_weightwatch.figures.init_audit import doublings, worst_first

INF, NAN = np.inf, np.nan


def _texts(figure) -> list[str]:
    return [word.text for word in figure.words]


def _rows(figure) -> list[str]:
    return [
        word.text for word in figure.words if word.right < 196 and 36 < word.top < 250 and word.colour == _paper.INK
    ]


def test_doublings_of_zero_nan_and_extremes() -> None:
    off = doublings([2, 0, 0, 1, NAN, INF, 1e300], [1, 1, 0, 0, 1, 1, 1e-300])
    np.testing.assert_allclose(off, [1, -INF, 0, INF, NAN, INF, 600 * np.log2(10)])


def test_order_is_by_verdict_then_by_distance() -> None:
    off = np.array([0.1, 3, NAN, -INF, 0.2, 0])
    verdicts = ["ok", "ok", "skipped", "warning", "warning", "strange"]
    assert worst_first(off, verdicts) == [5, 3, 4, 2, 1, 0]


def test_rows_verdicts_and_ratios_belong_together() -> None:
    figure = init_audit(
        names=["a", "b", "c"], measured_std=[1, 0.5, 0], expected_std=[1, 2, 1], verdicts=["ok", "warning", "critical"]
    )
    assert _rows(figure) == ["c", "b", "a"]
    lines = {word.text: word.bottom for word in figure.words}
    assert "Initialisation: 1 critical, 1 warning, 1 ok" in lines
    for row in (["c", "zero", "critical"], ["b", "x 0.25", "warning"], ["a", "x 1.00", "ok"]):
        assert np.ptp([lines[word] for word in row]) <= 4  # of one line, but for the tail of a letter


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (13, 13), (14, 12), (600, 12)])
def test_those_without_a_row_are_counted(count: int, shown: int) -> None:
    figure = init_audit(
        names=[f"p{i}" for i in range(count)],
        measured_std=np.linspace(1.02, 1.0, count),
        expected_std=np.ones(count),
        verdicts=["ok"] * count,
    )
    assert len(_rows(figure)) == shown
    rest = [text for text in _texts(figure) if text.startswith("and ")]
    assert len(rest) == (shown < count)
    if rest:
        assert rest[0].startswith(f"and {count - shown} more, all within ±")


def test_rest_that_cannot_be_compared_is_said_to_be_so() -> None:
    figure = init_audit(
        names=[f"p{i}" for i in range(20)],
        measured_std=[3.0] * 18 + [NAN] * 2,
        expected_std=np.ones(20),
        verdicts=["ok"] * 20,
    )
    assert "and 8 more; 6 within a factor of 3, 2 not comparable" in _texts(figure)


def test_band_of_chance_shrinks_with_the_size() -> None:
    figure = init_audit(
        names=["a", "b"], measured_std=[1, 1], expected_std=[1, 1], verdicts=["ok"] * 2, sizes=[50, 5000]
    )
    pale = np.array(_paper.ink(_paper.PALE))
    pixel = 262 / 3.4  # the axis goes from 1.7 halvings to 1.7 doublings
    for y, chance in ((44, 0.3), (44 + 34, 0.03)):
        band = np.flatnonzero((figure.pixels[y] == pale).all(axis=-1))
        assert band.min() == pytest.approx(331 + np.log2(1 - chance) * pixel, abs=1)
        assert band.max() + 1 == pytest.approx(331 + np.log2(1 + chance) * pixel, abs=1)


def test_unknown_verdict_is_no_good_news() -> None:
    figure = init_audit(names=["a"], measured_std=[1], expected_std=[1], verdicts=["odd"])
    words = {word.text: word.colour for word in figure.words}
    assert words["Initialisation: 1 critical"] == words["odd"]
