"""Numbers become cells, and cells colours: many share a cell so that the one a reader looks for stays in sight."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_PURPLE_ORANGE = matplotlib.colormaps["PuOr_r"]


def group_size(count: int, most: int) -> int:
    """Return how many neighbours share a cell so that ``count`` of them need at most ``most`` cells."""
    return max(1, math.ceil(count / most))


def pool(values: ArrayLike, urgency: ArrayLike, rows: int, columns: int) -> Floats:
    """Return, for each block of cells, the value whose urgency is highest; the first of equals.

    Nothing is averaged: an average would hide the one layer or the one step a reader looks for.

    Args:
        values: Shape ``[R, C]``, at least one element; may hold NaN.
        urgency: Shape ``[R, C]``, neither NaN nor -Inf.
        rows: Neighbouring rows in a block. The last block takes what is left.
        columns: Neighbouring columns in a block.

    Returns:
        Shape ``[ceil(R / rows), ceil(C / columns)]``.

    Example:
        >>> pool([[1.0, -5.0, 2.0]], [[1.0, 5.0, 2.0]], rows=1, columns=2)
        array([[-5.,  2.]])
    """
    values = _blocks(np.asarray(values, float), rows, columns, np.nan)
    urgency = _blocks(np.asarray(urgency, float), rows, columns, -np.inf)
    best = urgency.argmax(axis=-1)
    picked: Floats = np.take_along_axis(values, best[..., None], axis=-1)[..., 0]
    return picked


def pool_largest(values: ArrayLike, rows: int, columns: int) -> Floats:
    """Return the value of largest magnitude of each block, NaN and Inf above all; any type of number, without a copy.

    Example:
        >>> pool_largest([[1.0, -5.0, 2.0]], rows=1, columns=2)
        array([[-5.,  2.]])
    """
    values = np.asarray(values)
    low, high = (_reduced(extreme, values, rows, columns) for extreme in (np.minimum, np.maximum))
    return np.where(-low > high, low, high)  # NaN is in both


def _reduced(extreme: np.ufunc, values: NDArray[Any], rows: int, columns: int) -> Floats:
    slabs = [extreme.reduce(values[i : i + rows], axis=0) for i in range(0, values.shape[0], rows)]
    blocks: Floats = extreme.reduceat(np.stack(slabs), range(0, values.shape[1], columns), axis=1).astype(float)
    return blocks


def ends(values: Floats, group: int) -> tuple[Floats, Floats]:
    """Return the least and the greatest finite value of every ``group`` neighbours; NaN where none is finite.

    Example:
        >>> ends(np.array([1.0, 3.0, 2.0]), 2)
        (array([1., 2.]), array([3., 2.]))
    """
    blocks = _blocks(values[None], 1, group, np.nan)[0]
    finite = np.isfinite(blocks)
    nothing_there = ~finite.any(axis=1)
    low = np.where(finite, blocks, np.inf).min(axis=1)
    high = np.where(finite, blocks, -np.inf).max(axis=1)
    return np.where(nothing_there, np.nan, low), np.where(nothing_there, np.nan, high)


def _blocks(grid: Floats, rows: int, columns: int, filler: float) -> Floats:
    down, across = math.ceil(grid.shape[0] / rows), math.ceil(grid.shape[1] / columns)
    padding = ((0, down * rows - grid.shape[0]), (0, across * columns - grid.shape[1]))
    padded = np.pad(grid, padding, constant_values=filler)
    blocks: Floats = padded.reshape(down, rows, across, columns).swapaxes(1, 2).reshape(down, across, -1)
    return blocks


def count_non_finite(values: NDArray[Any]) -> str:
    """Return the note for a title: how many elements are NaN or Inf, or nothing if none is."""
    bad = values.size - int(np.isfinite(values).sum())
    return f"{bad:,} of {values.size:,} NaN/Inf" if bad else ""


def colour_limit(values: Floats) -> tuple[float, bool]:
    """Return the magnitude with the darkest colour, and whether some value lies beyond it.

    It is the largest finite magnitude, unless a few outliers would leave everything else blank.
    """
    finite = np.abs(values[np.isfinite(values)])
    if not finite.size or not finite.max():
        return 1.0, False
    most, usual = float(finite.max()), 1.5 * float(np.quantile(finite, 0.99))
    return (usual, True) if 0 < usual < most else (most, False)


def signed_colours(values: ArrayLike, limit: float) -> Floats:
    """Return RGBA in 0..1, shape ``[..., 4]``: purple below zero, orange above, near white at it, black non-finite."""
    values = np.asarray(values, float)
    colours: Floats = _PURPLE_ORANGE(0.5 + 0.4 * _share(values, limit))  # its ends are all but black
    colours[~np.isfinite(values)] = (0, 0, 0, 1)
    return colours


def grey_colours(values: ArrayLike, limit: float) -> Floats:
    """Return RGBA in 0..1 for values whose last axis is red, green, blue; zero is grey, only non-finite is black."""
    values = np.asarray(values, float)
    colours = np.ones((*values.shape[:-1], 4))
    colours[..., :3] = 0.58 + 0.42 * _share(values, limit)  # the least is 0.16: dark, yet not black
    colours[~np.isfinite(values).all(axis=-1)] = (0, 0, 0, 1)
    return colours


def _share(values: Floats, limit: float) -> Floats:
    with np.errstate(over="ignore"):
        share: Floats = np.clip(np.where(np.isfinite(values), values, 0) / limit, -1, 1)
    return share
