"""How one batch passed an untrained network: the spread of its activations and its gradients, layer by layer.

Whether that is ill is judged elsewhere; here it is only drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgba
from numpy.typing import ArrayLike

from lightning_weightwatch.figures import _letters, _paper
from lightning_weightwatch.figures._cells import Floats, group_size
from lightning_weightwatch.figures._panel import Panel, round_numbers
from lightning_weightwatch.figures._paper import MARGIN, WIDTH, Paper

_LEFT, _ACROSS, _HIGH = 76, 546, 88
_TOPS = (62, 184)
_AROUND = 1.5  # decades to either side of the median that are shaded
_LEAST = 1.8  # decades to either side that are shown at least
_CLOSE = 9  # pixels between two dots that are still told apart
_FAR = 300.0  # decades, in which every float lies


def signal_profile(
    *, names: Sequence[str], spread: ArrayLike, gradient: ArrayLike, title: str, healthy: bool = True
) -> Paper:
    """Draw both against depth, each on a logarithmic scale of its own.

    Args:
        names: The layers in the order of execution, length L.
        spread: What tells samples apart in the output of each, shape ``[L]``. NaN: not measured; Inf: not finite.
        gradient: The gradient of the loss by that output, root mean square, shape ``[L]``; the same.
        title: What is to be read first.
        healthy: Whether nothing is ill; it colours the title.

    Returns:
        A figure of 640 x 310 pixels. A line that stays within the shaded three decades keeps its size through the
        network. A layer that gave exactly 0 is marked at the lower edge, one that was not finite at the upper edge.

    Example:
        >>> figure = signal_profile(names=["a", "b"], spread=[1.0, 0.9], gradient=[0.1, 0.1], title="Two layers")
        >>> figure.words[0].text
        'Two layers'
    """
    paper = Paper(title, colour=_paper.GOOD if healthy else _paper.BAD)
    if not names:
        return paper.say("no layer was heard")
    told = ("activations →  their spread over samples", "←  gradients, over samples and units")
    for top, values, words, colour in zip(_TOPS, (spread, gradient), told, (_paper.PURPLE, _paper.ORANGE), strict=True):
        paper.write(_LEFT, top - 7, words, colour=colour)
        _profile(paper, top, np.asarray(values, float), colour)
    room = (_ACROSS + _LEFT - 2 * MARGIN) / 2
    first, last = _letters.short_names([names[0], names[-1]], room) if len(names) > 1 else (names[0], "")
    bottom = _TOPS[1] + _HIGH + 22
    paper.write(MARGIN, bottom, _letters.fit(first, room))
    paper.write(WIDTH - MARGIN, bottom, last, align="right")
    return paper


def _profile(paper: Paper, top: int, values: Floats, colour: str) -> None:
    """Draw one line of dots over the layers, with its scale at the left."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(np.abs(values))
    drawn = np.where(np.isfinite(logs), np.clip(logs, -_FAR, _FAR), np.nan)
    if not np.isfinite(drawn).any():
        Panel(paper, _LEFT, top, _ACROSS, _HIGH).frame()
        paper.write(_LEFT + _ACROSS / 2, top + _HIGH / 2 + 6, _why_empty(values), colour=_paper.QUIET, align="center")
        return
    middle = float(np.nanmedian(drawn))
    high = max(middle + _LEAST, float(np.nanmax(drawn)) + 0.3)
    low = min(middle - _LEAST, float(np.nanmin(drawn)) - 0.3)
    panel = Panel(paper, _LEFT, top, _ACROSS, _HIGH, (0, len(values)), (high, low))
    panel.boxes([0], [len(values)], [middle + _AROUND], [middle - _AROUND], _paper.PALE)
    panel.frame()
    panel.ticks_beside((power, f"1e{power}") for power in round_numbers(low + 0.2, high - 0.2, 4))
    places = np.arange(len(values)) + 0.5
    panel.curve(places, drawn, colour)
    if group_size(len(values), _ACROSS // _CLOSE) == 1:
        panel.dots(places, drawn, to_rgba(colour), size=6)
    edge = (high - low) / _HIGH * 6
    for odd, y, marker in ((values == 0, low + edge, "v"), (np.isinf(values), high - edge, "^")):
        panel.dots(places[odd], np.full(odd.sum(), y), to_rgba(_paper.BLACK), size=9, marker=marker)


def _why_empty(values: Floats) -> str:
    if np.isnan(values).all():
        return "not measured"
    return "exactly 0 in all layers" if not np.isinf(values).any() else "not finite"
