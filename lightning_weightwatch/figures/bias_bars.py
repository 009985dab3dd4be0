"""A vector of biases, one bar per unit, or the ends of a few neighbours per bar where units are many."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from lightning_weightwatch.figures import _canvas
from lightning_weightwatch.figures._canvas import Floats

_LEFT, _TOP, _ACROSS, _HIGH = 84, 46, 540, 208
_LEAST_BAR = 3.6  # pixels; 150 bars


def bias_bars(bias: ArrayLike, *, title: str) -> Figure:
    """Draw biases against their unit, counted from 0.

    Args:
        bias: Any shape, read in its own order. NaN and Inf are black bars and counted in the title.
        title: What it is, such as the parameter's name.

    Returns:
        A figure of 640 x 310 pixels. From 151 units on a bar stands for neighbours: solid from the least to the
        greatest of them, pale from zero to the nearer.

    Example:
        >>> figure = bias_bars([0.1, -0.2, 0.0], title="fc.bias")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['0', '1', '2']
    """
    values = np.asarray(bias, float).ravel()
    with _canvas.house_style():
        figure = _canvas.canvas(title, note=_canvas.count_non_finite(values))
        if not values.size:
            return _canvas.nothing(figure)
        if not values.any():
            return _canvas.nothing(figure, f"all {values.size:,} are exactly zero")
        group = _canvas.group_size(len(values), int(_ACROSS / _LEAST_BAR))
        drawn = _canvas.axes(figure, _LEFT, _TOP, _ACROSS, _HIGH)
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
        _bars(drawn, values / (largest or 1), group)
        _ticks(drawn, len(values), largest)
        pooled = f"; a bar spans the values of {group} units" if group > 1 else ""
        _canvas.write(figure, _LEFT + _ACROSS / 2, 301, f"unit{pooled}", align="center")
        return figure


def _bars(drawn: Axes, shares: Floats, group: int) -> None:
    """Draw values in -1..1; unit ``i`` lies at ``i + 0.5``."""
    low, high = _canvas.ends(shares, group)
    places = (np.arange(len(low)) + 0.5) * group
    width = group * (0.8 if len(low) <= 60 else 1.0)
    drawn.set(xlim=(0, len(low) * group), ylim=(-1.08, 1.08))
    for nearest, farthest, pale, colour in (
        (np.fmax(low, 0), np.fmax(high, 0), "#EBCFB2", _canvas.ORANGE),
        (np.fmin(high, 0), np.fmin(low, 0), "#D3CAE2", _canvas.PURPLE),
    ):
        _boxes(drawn, places, width, np.zeros_like(nearest), nearest, pale if group > 1 else colour)
        _boxes(drawn, places, width, nearest, farthest, colour)
    bad = ~np.isfinite(shares)[None]
    black = _canvas.pool(bad, bad, 1, group)[0] > 0
    _boxes(drawn, places[black], width, np.full(black.sum(), -1.08), np.full(black.sum(), 1.08), _canvas.BLACK)
    drawn.axhline(0, color=_canvas.QUIET, linewidth=0.8)


def _boxes(drawn: Axes, places: NDArray[Any], width: float, bottom: Floats, top: Floats, colour: str) -> None:
    """Draw all boxes at once; ``Axes.bar`` takes a millisecond for each."""
    kept = np.isfinite(bottom) & np.isfinite(top)
    left, right = (places + side * width / 2 for side in (-1, 1))
    corners = [(left, bottom), (left, top), (right, top), (right, bottom)]
    boxes = np.stack([np.stack(corner, axis=1) for corner in corners], axis=1)[kept]
    drawn.add_collection(PolyCollection(list(boxes), facecolor=colour, edgecolor=colour, linewidth=0.7), autolim=False)


def _ticks(drawn: Axes, count: int, largest: float) -> None:
    """Label the ends of the value axis, and round units where their bars stand."""
    if largest:
        drawn.set_yticks([-1, 0, 1], [_canvas.number(-largest), "0", _canvas.number(largest)])
    else:
        drawn.set_yticks([0], ["0"])
    ticks = _canvas.index_ticks(count, 8)
    drawn.set_xticks(list(ticks), list(ticks.values()))
    for side in ("top", "right"):
        drawn.spines[side].set_visible(False)
