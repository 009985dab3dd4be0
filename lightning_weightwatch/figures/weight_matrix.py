"""A weight matrix as it is, and the root mean square of its rows and columns beside it.

A healthy matrix is noise with even margins; stripes and gaps in the margins are units that died or took over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from lightning_weightwatch.figures import _canvas
from lightning_weightwatch.figures._canvas import Floats

_LEFT, _TOP, _ACROSS, _HIGH = 84, 86, 392, 166  # the heat map
_LEAST_CELL = 2  # pixels; TensorBoard scales to two thirds, which never loses a cell of two
_ABOVE, _BESIDE = (44, 38), (480, 52)  # top edge and height of the columns' margin; left edge and width of the rows'


@dataclass(frozen=True)
class _Condensed:
    """What is drawn of a matrix: pooled cells ``[r, c]``, their block, and the RMS of rows and columns."""

    cells: Floats
    block: tuple[int, int]
    row_rms: Floats
    column_rms: Floats


def weight_matrix(weight: ArrayLike, *, title: str) -> Figure:
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
        >>> [axes.get_label() for axes in figure.axes][:3]
        ['weight', 'column RMS', 'row RMS']
    """
    weight = np.asarray(weight)
    with _canvas.house_style():
        figure = _canvas.canvas(title, note=_canvas.count_non_finite(weight))
        if not weight.size or weight.ndim != 2:
            return _canvas.nothing(figure, "no matrix" if weight.size else "no elements")
        condensed = _condense(weight)
        limit, beyond = _canvas.colour_limit(condensed.cells)
        _heat_map(figure, condensed, limit, weight.shape)
        _margins(figure, condensed)
        bar = _canvas.signed_colours(np.linspace(-1, 1, 64), 1)
        _canvas.colour_bar(figure, bar, _TOP, _HIGH, limit=limit, beyond=beyond)
        return figure


def _condense(weight: NDArray[Any]) -> _Condensed:
    """Pool and sum up one row of cells at a time, so that a large embedding needs no copy in float64."""
    outs, ins = weight.shape
    down = _canvas.group_size(outs, _HIGH // _LEAST_CELL)
    across = _canvas.group_size(ins, _ACROSS // _LEAST_CELL)
    slabs = [slice(i, i + down) for i in range(0, outs, down)]
    scale = max(_largest(np.asarray(weight[slab], float)) for slab in slabs) or 1.0  # squares of it stay in range
    cells, row_rms = [], []
    squares, counts = np.zeros(ins), np.zeros(ins)
    for slab in slabs:
        values = np.asarray(weight[slab], float)
        finite = np.isfinite(values)
        squared = np.square(np.where(finite, values, 0) / scale)
        cells.append(_canvas.pool_largest(values, down, across)[0])
        row_rms.append(_root_mean(squared.sum(axis=1), finite.sum(axis=1)))
        squares += squared.sum(axis=0)
        counts += finite.sum(axis=0)
    return _Condensed(
        np.stack(cells), (down, across), np.concatenate(row_rms) * scale, _root_mean(squares, counts) * scale
    )


def _largest(values: Floats) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def _root_mean(squares: Floats, counts: NDArray[Any]) -> Floats:
    """Return the root of ``squares / counts``; NaN where nothing was counted."""
    return np.where(counts > 0, np.sqrt(squares / np.maximum(counts, 1)), np.nan)


def _heat_map(figure: Figure, condensed: _Condensed, limit: float, shape: tuple[int, ...]) -> None:
    """Draw the cells; on these axes row ``i`` lies at ``i + 0.5`` and column ``j`` at ``j + 0.5``."""
    drawn = _canvas.axes(figure, _LEFT, _TOP, _ACROSS, _HIGH)
    drawn.set_label("weight")
    (rows, columns), (down, across) = condensed.cells.shape, condensed.block
    colours = _canvas.signed_colours(condensed.cells, limit)
    drawn.imshow(colours, aspect="auto", interpolation="nearest", extent=(0, columns * across, rows * down, 0))
    for axis, count, most in ((drawn.yaxis, shape[0], 5), (drawn.xaxis, shape[1], 6)):
        ticks = _canvas.index_ticks(count, most)
        axis.set_ticks(list(ticks), labels=list(ticks.values()))
    pooled = "" if condensed.block == (1, 1) else f"; a cell shows the largest of {down} x {across}"
    _canvas.write(figure, _LEFT + _ACROSS / 2, 301, f"column{pooled}", align="center")
    _canvas.write(figure, 20, _TOP + _HIGH / 2, "row", align="center", upright=False)


def _margins(figure: Figure, condensed: _Condensed) -> None:
    """Draw the RMS of columns above and of rows beside the heat map, both from zero and on one scale."""
    (rows, columns), (down, across) = condensed.cells.shape, condensed.block
    most = float(np.fmax.reduce(np.concatenate([condensed.row_rms, condensed.column_rms, [0]])))
    above = _canvas.axes(figure, _LEFT, _ABOVE[0], _ACROSS, _ABOVE[1])
    above.set(label="column RMS", xlim=(0, columns * across), ylim=(0, 1.1))
    _profile(above, condensed.column_rms / (most or 1), across, "vertical")
    beside = _canvas.axes(figure, _BESIDE[0], _TOP, _BESIDE[1], _HIGH)
    beside.set(label="row RMS", xlim=(0, 1.1), ylim=(rows * down, 0))
    _profile(beside, condensed.row_rms / (most or 1), down, "horizontal")
    _canvas.write(figure, _BESIDE[0], _ABOVE[0] + 13, "RMS, at most")
    _canvas.write(figure, _BESIDE[0], _ABOVE[0] + 13 + _canvas.LINE, _canvas.number(most))


def _profile(drawn: Axes, rms: Floats, group: int, orientation: Literal["vertical", "horizontal"]) -> None:
    """Fill from zero to the least RMS of each group darkly, and on to the greatest lightly."""
    low, high = _canvas.ends(rms, group)
    edges = np.arange(len(low) + 1) * group
    for values, colour in ((high, "#C9C9C9"), (low, _canvas.QUIET)):
        drawn.stairs(values, edges, fill=True, color=colour, orientation=orientation, linewidth=0)
    for side in ("right", "top"):
        drawn.spines[side].set_visible(False)
