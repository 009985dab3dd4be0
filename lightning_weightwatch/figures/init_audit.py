"""How the initial weights compare with what their scheme was to give: one lollipop per parameter, worst first.

The verdicts are made elsewhere; here they are only coloured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgba
from numpy.typing import ArrayLike

from lightning_weightwatch.figures import _letters, _paper
from lightning_weightwatch.figures._cells import Floats
from lightning_weightwatch.figures._letters import LINE
from lightning_weightwatch.figures._panel import Panel
from lightning_weightwatch.figures._paper import MARGIN, Paper

# Worst first. A word that is not here counts as critical: better a question too many than an illness in grey.
_COLOURS = {
    "critical": _paper.BAD,
    "warning": _paper.ORANGE,
    "note": _paper.PURPLE,
    "skipped": _paper.QUIET,
    "ok": _paper.GOOD,
}
_WORST_FIRST = tuple(_COLOURS)
_LEFT, _TOP, _ACROSS = 200, 40, 262
_ROWS = 13  # as many lines of text as the height holds
_FOOT = 3  # pixels between the last line and the axis
_FAR = 10.0  # doublings at which the axis ends; what lies beyond is drawn as an arrow at its end
_RATIO, _WORD = _LEFT + _ACROSS + 14, _LEFT + _ACROSS + 90  # left edges of the two columns at the right


def init_audit(
    *,
    names: Sequence[str],
    measured_std: ArrayLike,
    expected_std: ArrayLike,
    verdicts: Sequence[str],
    sizes: Sequence[int] | None = None,
) -> Paper:
    """Draw measured over expected standard deviation of every parameter.

    Args:
        names: The parameters, length P.
        measured_std: Standard deviations found, shape ``[P]``. NaN: not measured; Inf: the weights are not finite.
        expected_std: Standard deviations the scheme was to give, shape ``[P]``. NaN: there is no expectation.
        verdicts: One of ``ok``, ``note``, ``warning``, ``critical``, ``skipped`` for each; any other word is coloured
            as ``critical``.
        sizes: Elements of each parameter. With them the shaded band is what chance gives at that size (three standard
            errors of a normal sample); without them it is 10 % for all.

    Returns:
        A figure of 640 x 310 pixels with the worst parameters; the last line says how far off the others are.

    Example:
        >>> figure = init_audit(names=["fc.weight"], measured_std=[0.02], expected_std=[0.04], verdicts=["warning"])
        >>> figure.words[0].text
        'Initialisation: 1 warning'
    """
    paper = _headline(verdicts)
    if not names:
        return paper.say("no parameters")
    off = doublings(measured_std, expected_std)
    order = worst_first(off, verdicts)
    shown = order if len(order) <= _ROWS else order[: _ROWS - 1]
    panel = _ground(paper, off[shown], _chance(sizes, len(names))[shown], len(shown) + (len(shown) < len(order)))
    labels = _letters.short_names(names, _LEFT - MARGIN - 8)
    for row, i in enumerate(shown):
        panel.ticks_beside([(row, labels[i])], marks=False)
        _lollipop(panel, row, off[i], verdicts[i])
        _words(paper, float(panel.down(row)) + 6, off[i], verdicts[i])
    _rest(paper, off[order[len(shown) :]])
    band = "10 %" if sizes is None else "chance at that size"
    paper.write(_LEFT + _ACROSS / 2, 303, f"found / expected std; shaded: {band}", align="center")
    return paper


def doublings(measured_std: ArrayLike, expected_std: ArrayLike) -> Floats:
    """Return log2 of measured over expected, shape ``[P]``: 0 where both are zero, +-Inf where one of them is."""
    measured, expected = np.asarray(measured_std, float), np.asarray(expected_std, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        off: Floats = np.log2(measured) - np.log2(expected)  # the quotient itself could overflow
    off[(measured == 0) & (expected == 0)] = 0
    return off


def worst_first(off: Floats, verdicts: Sequence[str]) -> list[int]:
    """Return positions ordered by verdict, then by distance from what was expected, not comparable ones last."""
    distance = np.where(np.isnan(off), -1, np.abs(off))
    return sorted(range(len(off)), key=lambda i: (_WORST_FIRST.index(_known(verdicts[i])), -distance[i]))


def _known(verdict: str) -> str:
    return verdict if verdict in _COLOURS else "critical"


def _headline(verdicts: Sequence[str]) -> Paper:
    counts = {word: sum(_known(v) == word for v in verdicts) for word in _WORST_FIRST}
    told = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    worst = next((word for word, count in counts.items() if count), "skipped")
    colour = _COLOURS[worst] if worst in ("critical", "warning") else _paper.GOOD if counts["ok"] else _paper.INK
    return Paper(f"Initialisation: {told or 'nothing to judge'}", colour=colour)


def _chance(sizes: Sequence[int] | None, count: int) -> Floats:
    """Return the relative half width of each row's shaded band; a sample's std has a standard error of 1/sqrt(2 n)."""
    if sizes is None:
        return np.full(count, 0.1)
    widths: Floats = 3 / np.sqrt(2 * np.maximum(np.asarray(sizes, float), 1))
    return widths


def _ground(paper: Paper, off: Floats, chance: Floats, lines: int) -> Panel:
    """Draw the axis of doublings, what was expected and the band around it, beside ``lines`` lines of text."""
    rows, pitch = np.arange(len(off)), _pitch(lines)
    finite = off[np.isfinite(off)]
    low = -min(_FAR, max(1.0, -finite.min(initial=0))) - 0.7
    high = min(_FAR, max(1.0, finite.max(initial=0))) + 0.7
    height = round(pitch * lines) + _FOOT
    panel = Panel(paper, _LEFT, _TOP, _ACROSS, height, (low, high), (-0.5, height / pitch - 0.5))
    panel.boxes(np.log2(np.maximum(1 - chance, 2.0**low)), np.log2(1 + chance), rows - 0.5, rows + 0.5, _paper.PALE)
    panel.frame("bottom")
    middle = float(panel.across(0))
    paper.fill(middle - 0.5, _TOP, 1, pitch * len(off), _paper.QUIET)
    every = 1 if high - low < 6 else 2
    doubled = [n for n in range(math.ceil(low), math.floor(high) + 1) if n % every == 0]
    panel.ticks_below((n, f"{2**n}" if n >= 0 else f"1/{2**-n}") for n in doubled)
    return panel


def _pitch(lines: int) -> float:
    """Return the pixels from one line to the next."""
    return LINE * min(2.0, _ROWS / lines)


def _lollipop(panel: Panel, row: int, off: float, verdict: str) -> None:
    """Draw one parameter; nothing where there is nothing to compare."""
    if math.isnan(off):
        return
    colour = _COLOURS[_known(verdict)]
    low, high = panel.x
    end = min(max(off, low + 0.25), high - 0.25)
    start, stop = sorted((float(panel.across(0)), float(panel.across(end))))
    panel.paper.fill(start, float(panel.down(row)) - 1.5, stop - start, 3, colour)
    marker = "o" if end == off else "<" if off < 0 else ">"
    panel.dots([end], [row], to_rgba(colour), size=11, marker=marker)


def _words(paper: Paper, y: float, off: float, verdict: str) -> None:
    """Write ratio and verdict at the right of a row."""
    paper.write(_RATIO, y, _ratio(off))
    word = _letters.fit(verdict, _paper.WIDTH - _WORD - MARGIN, keep="start")
    paper.write(_WORD, y, word, colour=_COLOURS[_known(verdict)])


def _ratio(off: float) -> str:
    if math.isnan(off):
        return "-"
    if math.isinf(off):
        return "zero" if off < 0 else "infinite"
    factor = 2.0 ** max(-900.0, min(900.0, off))
    return f"x {factor:.2f}" if 0.1 <= factor < 9.995 else f"x {_letters.number(factor)}"


def _rest(paper: Paper, off: Floats) -> None:
    """Say how far off those are for which there is no room."""
    if not off.size:
        return
    finite = off[np.isfinite(off)]
    factor = 2.0 ** min(900.0, float(np.abs(finite).max(initial=0)))
    within = f"±{100 * (factor - 1):.1g} %" if factor < 1.5 else f"a factor of {_letters.number(factor)}"
    text = f"and {off.size:,} more"
    if finite.size == off.size:
        text += f", all within {within}"
    elif finite.size:
        text += f"; {finite.size:,} within {within}, {off.size - finite.size:,} not comparable"
    paper.write(MARGIN, _TOP + LINE * (_ROWS - 0.5) + 6, text, colour=_paper.QUIET)
