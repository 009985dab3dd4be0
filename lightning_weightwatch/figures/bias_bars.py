"""A vector of biases, one bar per unit, or the ends of a few neighbours per bar where units are many."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lightning_weightwatch.figures import _cells, _letters, _paper
from lightning_weightwatch.figures._cells import Floats
from lightning_weightwatch.figures._panel import Panel, index_ticks
from lightning_weightwatch.figures._paper import Paper

_LEFT, _TOP, _ACROSS, _HIGH = 84, 46, 540, 208
_LEAST_BAR = 3.6  # pixels; 150 bars
_PALE = {_paper.ORANGE: "#EBCFB2", _paper.PURPLE: "#D3CAE2"}


def bias_bars(bias: ArrayLike, *, title: str) -> Paper:
    """Draw biases against their unit, counted from 0.

    Args:
        bias: Any shape, read in its own order. NaN and Inf are black bars and counted in the title.
        title: What it is, such as the parameter's name.

    Returns:
        A figure of 640 x 310 pixels. From 151 units on a bar stands for neighbours: solid from the least to the
        greatest of them, pale from zero to the nearer.

    Example:
        >>> figure = bias_bars([0.1, -0.2, 0.0], title="fc.bias")
        >>> [word.text for word in figure.words]
        ['fc.bias', '0.2', '0', '-0.2', '0', '1', '2', 'unit']
    """
    values = np.asarray(bias, float).ravel()
    paper = Paper(title, note=_cells.count_non_finite(values))
    if not values.size:
        return paper.say()
    if not values.any():
        return paper.say(f"all {values.size:,} are exactly zero")
    group = _cells.group_size(len(values), int(_ACROSS / _LEAST_BAR))
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    span = group * -(-len(values) // group)
    panel = Panel(paper, _LEFT, _TOP, _ACROSS, _HIGH, (0, span), (1.08, -1.08))
    _bars(panel, values / (largest or 1), group)
    panel.frame("left bottom")
    heights = [(1, _letters.number(largest)), (0, "0"), (-1, _letters.number(-largest))]
    panel.ticks_beside(heights if largest else heights[1:2])
    panel.ticks_below(index_ticks(len(values), 8))
    pooled = f"; a bar spans the values of {group} units" if group > 1 else ""
    paper.write(_LEFT + _ACROSS / 2, 301, f"unit{pooled}", align="center")
    return paper


def _bars(panel: Panel, shares: Floats, group: int) -> None:
    """Draw values in -1..1; unit ``i`` lies at ``i + 0.5``."""
    low, high = _cells.ends(shares, group)
    middle = (np.arange(len(low)) + 0.5) * group
    half = group * (0.4 if len(low) <= 60 else 0.5)
    left, right = middle - half, middle + half
    panel.boxes(left, right, np.fmax(high, 0), np.fmax(low, 0), _paper.ORANGE)
    panel.boxes(left, right, np.fmin(high, 0), np.fmin(low, 0), _paper.PURPLE)
    for nearest, colour in ((np.fmax(low, 0), _paper.ORANGE), (np.fmin(high, 0), _paper.PURPLE)):
        top, bottom = np.fmax(nearest, 0), np.fmin(nearest, 0)
        panel.boxes(left, right, top, bottom, _PALE[colour] if group > 1 else colour)
    bad = ~np.isfinite(shares)[None]
    black = _cells.pool(bad, bad, 1, group)[0] > 0
    panel.boxes(left[black], right[black], 1.08, -1.08, _paper.BLACK)
    panel.paper.fill(_LEFT, float(panel.down(0)) - 0.5, _ACROSS, 1, _paper.QUIET)
