"""What a convolution has learnt: its filters, side by side on one scale.

Nothing is averaged over input channels, which would show filters that are not there. What is shown, and of how many,
stands in the caption.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_weightwatch.figures import _cells, _paper
from lightning_weightwatch.figures._cells import Floats
from lightning_weightwatch.figures._panel import colour_bar
from lightning_weightwatch.figures._paper import MARGIN, Paper, Pixels

_LEFT, _TOP, _ACROSS, _HIGH = 10, 44, 524, 218
_LEAST_CELL, _MOST_CELL = 3, 24  # pixels per weight; thinner ones vanish when TensorBoard scales the picture down
_GAP = 4  # pixels between tiles
_TILES = 64  # the most filters shown where each is one tile
_PAIRS = 8, 16  # the most filters and the most input channels shown where each pair is one tile
_FRAME = "#BFBFBF"  # the line around a tile, so that a filter of zeros is seen


class _Grid(NamedTuple):
    rows: int
    columns: int
    cell: int  # pixels per weight


def convolution_filters(weight: ArrayLike, *, title: str) -> Paper:
    """Draw the filters of a convolution.

    With one input channel every tile is a filter. With three, in two dimensions, every tile is a filter in colour,
    grey being zero. Otherwise rows are filters and columns are their input channels, the leading ones of each. The
    slices of a three-dimensional kernel lie side by side.

    Args:
        weight: Shape ``[out, in, ...]`` with one to three axes of kernel; of a transposed convolution the first two
            axes come the other way round. NaN and Inf are black and counted in the title.
        title: What it is, such as the parameter's name.

    Returns:
        A figure of 640 x 310 pixels.

    Example:
        >>> figure = convolution_filters([[[[1.0, -1.0], [0.5, 0.0]]]], title="conv.weight")
        >>> figure.words[-1].text
        '1 filter of 2 x 2'
    """
    weight = np.asarray(weight)
    paper = Paper(title, note=_cells.count_non_finite(weight))
    if not weight.size or weight.ndim < 3:
        return paper.say("no kernel" if weight.size else "no elements")
    in_colour = weight.ndim == 4 and weight.shape[1] == 3
    paired = weight.shape[1] > 1 and not in_colour
    block = _block(weight.shape)
    planes = _planes(weight[:_TILES, : _PAIRS[1]], block)
    slices = math.prod(weight.shape[2:-2]) if block == (1, 1) else 1
    size = planes.shape[2], planes.shape[3] + slices - 1
    grid = _pair_grid(planes.shape, size) if paired else _filter_grid(len(planes), size)
    shown = planes[: grid.rows, : grid.columns] if paired else planes[: grid.rows * grid.columns]
    limit, beyond = _cells.colour_limit(shown)
    paper.lay(_LEFT, _TOP, _sheet(_painted(shown, limit, slices, in_colour), grid))
    _scale(paper, limit, beyond, in_colour)
    for y, line in zip((282, 301), _caption(weight.shape, grid, block, paired, in_colour), strict=True):
        paper.write(MARGIN, y, line)
    return paper


def _block(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many weights, down and across, share a cell so that one filter fits the figure."""
    high, slices = (1, *shape[2:])[-2], math.prod(shape[2:-2])
    return (
        _cells.group_size(high, _HIGH // _LEAST_CELL),
        _cells.group_size(shape[-1] * slices + slices - 1, _ACROSS // _LEAST_CELL),
    )


def _planes(weight: NDArray[Any], block: tuple[int, int]) -> Floats:
    """Return filters as planes, shape ``[out, in, h, w]``, slices side by side, pooled in blocks."""
    outs, ins, *kernel = weight.shape
    slices, high, wide = math.prod(kernel[:-2]), (1, *kernel)[-2], kernel[-1]
    stacked = np.asarray(weight, float).reshape(outs, ins, slices, high, wide).swapaxes(2, 3)
    beside: Floats = stacked.reshape(outs, ins, high, slices * wide)
    if block == (1, 1):
        return beside
    return np.array([[_cells.pool_largest(plane, *block) for plane in one] for one in beside])


def _filter_grid(count: int, size: tuple[int, int]) -> _Grid:
    """Arrange up to ``count`` tiles as large as they go, in full rows if that costs little; fewer if cells get thin."""
    high, wide = size
    for shown in range(count, 0, -1):
        cells = {columns: _cell(-(-shown // columns), columns, high, wide) for columns in range(1, shown + 1)}
        best = max(cells, key=lambda columns: (cells[columns] * (1 if shown % columns == 0 else 0.85), columns))
        if cells[best] >= _LEAST_CELL:
            return _Grid(-(-shown // best), best, cells[best])
    return _Grid(1, 1, _LEAST_CELL)


def _pair_grid(shape: tuple[int, ...], size: tuple[int, int]) -> _Grid:
    """Arrange filters in rows and their input channels in columns, the leading ones of each that fit."""
    rows = max(1, min(shape[0], _PAIRS[0], (_HIGH + _GAP) // (_LEAST_CELL * size[0] + _GAP)))
    columns = max(1, min(shape[1], _PAIRS[1], (_ACROSS + _GAP) // (_LEAST_CELL * size[1] + _GAP)))
    return _Grid(rows, columns, max(_LEAST_CELL, _cell(rows, columns, *size)))


def _cell(rows: int, columns: int, high: int, wide: int) -> int:
    """Return the pixels per weight at which ``rows`` by ``columns`` tiles fit."""
    across = ((_ACROSS + _GAP) // columns - _GAP) // wide
    return min(_MOST_CELL, across, ((_HIGH + _GAP) // rows - _GAP) // high)


def _painted(planes: Floats, limit: float, slices: int, in_colour: bool) -> Pixels:
    """Return one tile per filter or pair, shape ``[n, h, w, 4]``, slices set apart in grey."""
    if in_colour:
        return _paper.to_pixels(_cells.grey_colours(np.moveaxis(planes, 1, -1), limit))
    tiles = _paper.to_pixels(_cells.signed_colours(planes.reshape(-1, *planes.shape[2:]), limit))
    wide = tiles.shape[2] // slices
    return np.insert(tiles, range(wide, wide * slices, wide), _paper.ink(_FRAME), axis=2)


def _sheet(tiles: Pixels, grid: _Grid) -> Pixels:
    """Lay the tiles out pixel by pixel, so that every weight is equally large."""
    enlarged = tiles.repeat(grid.cell, axis=1).repeat(grid.cell, axis=2)
    high, wide = enlarged.shape[1] + 2, enlarged.shape[2] + 2
    between = _GAP - 2
    sheet = np.full((grid.rows * (high + between), grid.columns * (wide + between), 4), 255, np.uint8)
    for i, tile in enumerate(enlarged):
        y, x = i // grid.columns * (high + between), i % grid.columns * (wide + between)
        sheet[y : y + high, x : x + wide] = _paper.ink(_FRAME)
        sheet[y + 1 : y + high - 1, x + 1 : x + wide - 1] = tile
    return sheet


def _scale(paper: Paper, limit: float, beyond: bool, in_colour: bool) -> None:
    ramp = np.linspace(-1, 1, 64)
    greys = np.stack([ramp] * 3, axis=-1)
    colours = _cells.grey_colours(greys, 1) if in_colour else _cells.signed_colours(ramp, 1)
    colour_bar(paper, colours, _TOP, 150, limit=limit, beyond=beyond)


def _caption(
    shape: tuple[int, ...], grid: _Grid, block: tuple[int, int], paired: bool, in_colour: bool
) -> tuple[str, str]:
    """Say what is shown of how much, and how."""
    outs, ins, *kernel = shape
    size = " x ".join(str(n) for n in kernel) if len(kernel) > 1 else f"length {kernel[0]}"
    how = []
    if in_colour:
        how.append("in colour, zero is grey")
    if len(kernel) > 2:
        how.append("slices side by side")
    if block != (1, 1):
        how.append(f"each cell the largest of {block[0]} x {block[1]}")
    if paired:
        what = f"rows: {_of(grid.rows, outs, 'filter')}; columns: {_of(grid.columns, ins, 'input')}; {size} each"
    else:
        what = f"{_of(min(grid.rows * grid.columns, outs, _TILES), outs, 'filter')} of {size}"
    return ", ".join(how), what


def _of(shown: int, count: int, noun: str) -> str:
    nouns = noun if count == 1 else noun + "s"
    return f"{count:,} {nouns}" if shown == count else f"first {shown:,} of {count:,} {nouns}"
