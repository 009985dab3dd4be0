"""Numbers stand where they belong, and labels do not run into one another."""

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from lightning_weightwatch.figures import _panel
from lightning_weightwatch.figures._panel import Panel
from lightning_weightwatch.figures._paper import BLACK, Paper, encode


def _drawn(paper: Paper) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encode(paper))).convert("RGB"))


def test_boxes_cover_the_pixels_their_numbers_stand_for() -> None:
    panel = Panel(Paper(""), 100, 50, 200, 80, (0, 10), (4, 0))
    panel.boxes([1, 5], [2, 6], [3, np.nan], [1, 0], BLACK)
    black = np.argwhere((_drawn(panel.paper) == 0).all(axis=-1))
    assert (black.min(axis=0).tolist(), black.max(axis=0).tolist()) == ([70, 120], [109, 139])
    assert len(black) == 40 * 20


def test_boxes_end_where_the_panel_ends() -> None:
    panel = Panel(Paper(""), 100, 50, 200, 80)
    panel.boxes(-1e300, 1e300, -9, 9, BLACK)
    black = np.argwhere((_drawn(panel.paper) == 0).all(axis=-1))
    assert (black.min(axis=0).tolist(), black.max(axis=0).tolist()) == ([50, 100], [129, 299])


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (80, 200)])
def test_every_cell_gets_its_share_of_the_panel(shape: tuple[int, int]) -> None:
    panel = Panel(Paper(""), 100, 50, 200, 80)
    colours = np.random.default_rng(0).random((*shape, 4))
    colours[..., 3] = 1
    panel.cells(colours)
    shown = _drawn(panel.paper)
    for (i, j), _ in np.ndenumerate(colours[..., 0]):
        middle = shown[50 + int((i + 0.5) * 80 / shape[0]), 100 + int((j + 0.5) * 200 / shape[1])]
        assert np.abs(middle - colours[i, j, :3] * 255).max() <= 1


@pytest.mark.parametrize("x", [50.0, 50.3, 50.5, 50.9])
def test_a_dot_lies_where_it_should(x: float) -> None:
    paper = Paper("")
    paper.dots([x], [x + 40], (0, 0, 0, 1), size=7)
    dark = 255.0 - _drawn(paper)[..., 0]
    rows, columns = np.indices(dark.shape) + 0.5
    assert (columns * dark).sum() / dark.sum() == pytest.approx(x, abs=0.5)
    assert (rows * dark).sum() / dark.sum() == pytest.approx(x + 40, abs=0.5)


def test_a_curve_lies_where_it_should_and_stops_at_nan() -> None:
    paper = Paper("")
    paper.curve([10, 20, 30, 40, 50], [100, 100, np.nan, 120, 120], BLACK)
    dark = np.argwhere(_drawn(paper)[..., 0] < 128)
    assert set(dark[:, 0]) <= {99, 100, 119, 120}
    assert not ((dark[:, 1] > 21) & (dark[:, 1] < 39)).any()


def test_labels_that_would_run_into_the_one_before_are_left_out() -> None:
    panel = Panel(Paper(""), 100, 50, 200, 80, (0, 100))
    panel.ticks_below([(i, f"{i}") for i in range(101)], until=290)
    words = [word for word in panel.paper.words if word.text]
    assert len(words) > 5
    assert all(word.right < after.left for word, after in pairwise(words))
    assert words[-1].right <= 290
    for word in words:
        assert (word.left + word.right) / 2 == pytest.approx(100 + 2 * int(word.text), abs=2)


@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_round_numbers_are_as_many_as_there_may_be(most: int) -> None:
    steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]
    for least, greatest in [(0, 0), (17, 17), (0, 9), (-7, 3), (3, 1990), (990, 1010)]:
        found = _panel.round_numbers(least, greatest, most)
        within = [[i for i in range(least, greatest + 1) if i % step == 0] for step in steps]
        assert found == next(numbers for numbers in within if len(numbers) <= most)


def test_index_ticks_name_the_index_they_stand_at() -> None:
    for count in (1, 2, 10, 97, 512, 50_000):
        ticks = _panel.index_ticks(count, 6)
        assert 1 <= len(ticks) <= 6
        assert [position - 0.5 for position, _ in ticks] == [
            int(label.replace(",", "").replace("k", "000")) for _, label in ticks
        ]
        assert max(position for position, _ in ticks) < count
