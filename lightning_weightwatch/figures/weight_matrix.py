"""A weight matrix as it is, and the root mean square of its rows and columns beside it.

A healthy matrix is noise with even margins; stripes and gaps in the margins are units that died or took over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_weightwatch.figures import _cells, _letters, _paper
from lightning_weightwatch.figures._cells import Floats
from lightning_weightwatch.figures._letters import LINE
from lightning_weightwatch.figures._panel import Panel, colour_bar, index_ticks
from lightning_weightwatch.figures._paper import Paper

_LEFT, _TOP, _ACROSS, _HIGH = 84, 86, 392, 166  # the heat map
_LEAST_CELL = 2  # pixels; TensorBoard scales to two thirds, which never loses a cell of two
_ABOVE, _BESIDE = (44, 38), (480, 52)  # top edge and height of the columns' margin; left edge and width of the rows'


class _Condensed(NamedTuple):
    """What is drawn of a matrix: pooled cells ``[r, c]``, their block, and the RMS of rows and columns."""

    cells: Floats
    block: tuple[int, int]
    row_rms: Floats
    column_rms: Floats


def weight_matrix(weight: ArrayLike, *, title: str) -> Paper:
    """Draw a weight matrix with the root mean square (RMS) of its rows and columns.

    A matrix with more elements than there is room for is drawn in blocks, each showing its element of largest
    magnitude, so that an outlier or a NaN stays in sight. The margins are taken over all finite elements.

    Args:
        weight: Shape ``[out, in]``. NaN and Inf are black and counted in the title.
        title: What it is, such as the parameter's name.

    Returns:
        A figure of 640 x 310 pixels.

    Example:
        >>> figure = weight_matrix([[0.5, -0.5], [0.1, 0.0]], title="fc.weight")
        >>> [word.text for word in figure.words][:5]
        ['fc.weight', '0', '1', '0', '1']
    """
    weight = np.asarray(weight)
    paper = Paper(title, note=_cells.count_non_finite(weight))
    if not weight.size or weight.ndim != 2:
        return paper.say("no matrix" if weight.size else "no elements")
    condensed = _condense(weight)
    limit, beyond = _cells.colour_limit(condensed.cells)
    _heat_map(paper, condensed, limit, weight.shape)
    _margins(paper, condensed)
    bar = _cells.signed_colours(np.linspace(-1, 1, 64), 1)
    colour_bar(paper, bar, _TOP, _HIGH, limit=limit, beyond=beyond)
    return paper


def _condense(weight: NDArray[Any]) -> _Condensed:
    """Pool and sum up; a large matrix whose elements are all finite is read, never copied."""
    down = _cells.group_size(weight.shape[0], _HIGH // _LEAST_CELL)
    across = _cells.group_size(weight.shape[1], _ACROSS // _LEAST_CELL)
    finite = np.isfinite(weight)
    known = weight if finite.all() else np.where(finite, weight, 0)
    largest = float(max(known.max(), -known.min()))
    scale = 1.0 if 1e-100 < largest < 1e100 else largest or 1.0  # squares stay in range
    known = known if scale == 1 else known / scale
    margins = (
        _root_mean(np.einsum(sum_up, known, known, dtype=float), finite.sum(axis=axis)) * scale
        for sum_up, axis in (("ij,ij->i", 1), ("ij,ij->j", 0))
    )
    return _Condensed(_cells.pool_largest(weight, down, across), (down, across), *margins)


def _root_mean(squares: Floats, counts: NDArray[Any]) -> Floats:
    """Return the root of ``squares / counts``; NaN where nothing was counted."""
    return np.where(counts > 0, np.sqrt(squares / np.maximum(counts, 1)), np.nan)


def _heat_map(paper: Paper, condensed: _Condensed, limit: float, shape: tuple[int, ...]) -> None:
    """Draw the cells; on these scales row ``i`` lies at ``i + 0.5`` and column ``j`` at ``j + 0.5``."""
    (rows, columns), (down, across) = condensed.cells.shape, condensed.block
    panel = Panel(paper, _LEFT, _TOP, _ACROSS, _HIGH, (0, columns * across), (0, rows * down))
    panel.cells(_cells.signed_colours(condensed.cells, limit))
    panel.frame()
    panel.ticks_beside(index_ticks(shape[0], 5))
    panel.ticks_below(index_ticks(shape[1], 6))
    pooled = "" if condensed.block == (1, 1) else f"; a cell shows the largest of {down} x {across}"
    paper.write(_LEFT + _ACROSS / 2, 301, f"column{pooled}", align="center")
    paper.write(16, _TOP + _HIGH / 2, "row", upright=False)


def _margins(paper: Paper, condensed: _Condensed) -> None:
    """Draw the RMS of columns above and of rows beside the heat map, both from zero and on one scale.

    It is filled darkly from zero to the least RMS of neighbours that share a cell, and on to the greatest lightly.
    """
    (rows, columns), (down, across) = condensed.cells.shape, condensed.block
    most = float(np.fmax.reduce(np.concatenate([condensed.row_rms, condensed.column_rms, [0]])))
    above = Panel(paper, _LEFT, _ABOVE[0], _ACROSS, _ABOVE[1], (0, columns * across), (1.1, 0))
    beside = Panel(paper, _BESIDE[0], _TOP, _BESIDE[1], _HIGH, (0, 1.1), (0, rows * down))
    low, high = _cells.ends(condensed.column_rms / (most or 1), across)
    least, greatest = _cells.ends(condensed.row_rms / (most or 1), down)
    left, top = np.arange(columns) * across, np.arange(rows) * down
    for colour, heights, widths in (("#C9C9C9", high, greatest), (_paper.QUIET, low, least)):
        above.boxes(left, left + across, heights, 0, colour)
        beside.boxes(0, widths, top, top + down, colour)
    above.frame("left bottom")
    beside.frame("left bottom")
    paper.write(_BESIDE[0], _ABOVE[0] + 13, "RMS, at most")
    paper.write(_BESIDE[0], _ABOVE[0] + 13 + LINE, _letters.number(most))
