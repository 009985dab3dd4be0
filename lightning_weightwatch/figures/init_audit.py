"""How the initial weights compare with what their scheme was to give: one lollipop per parameter, worst first.

The verdicts are made elsewhere; here they are only coloured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lightning_weightwatch.figures import _canvas
from lightning_weightwatch.figures._canvas import Floats

# Worst first. A word that is not here counts as critical: better a question too many than an illness in grey.
_COLOURS = {
    "critical": _canvas.BAD,
    "warning": _canvas.ORANGE,
    "note": _canvas.PURPLE,
    "skipped": _canvas.QUIET,
    "ok": _canvas.GOOD,
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
) -> Figure:
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
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['fc.weight']
    """
    with _canvas.house_style():
        figure = _headline(verdicts)
        if not names:
            return _canvas.nothing(figure, "no parameters")
        off = doublings(measured_std, expected_std)
        order = worst_first(off, verdicts)
        shown = order if len(order) <= _ROWS else order[: _ROWS - 1]
        lines = len(shown) + (len(shown) < len(order))
        drawn = _ground(figure, off[shown], _chance(sizes, len(names))[shown], lines)
        labels = _canvas.short_names(names, _LEFT - _canvas.MARGIN - 8)
        drawn.set_yticks(range(len(shown)), [labels[i] for i in shown])
        drawn.tick_params(axis="y", length=0)
        for row, i in enumerate(shown):
            _lollipop(drawn, row, off[i], verdicts[i])
            _words(figure, _TOP + _pitch(lines) * (row + 0.5) + 6, off[i], verdicts[i])
        _rest(figure, off[order[len(shown) :]])
        band = "10 %" if sizes is None else "chance at that size"
        _canvas.write(figure, _LEFT + _ACROSS / 2, 303, f"found / expected std; shaded: {band}", align="center")
        return figure


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


def _headline(verdicts: Sequence[str]) -> Figure:
    counts = {word: sum(_known(v) == word for v in verdicts) for word in _WORST_FIRST}
    told = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    worst = next((word for word, count in counts.items() if count), "skipped")
    colour = _COLOURS[worst] if worst in ("critical", "warning") else _canvas.GOOD if counts["ok"] else _canvas.INK
    return _canvas.canvas(f"Initialisation: {told or 'nothing to judge'}", colour=colour)


def _chance(sizes: Sequence[int] | None, count: int) -> Floats:
    """Return the relative half width of each row's shaded band; a sample's std has a standard error of 1/sqrt(2 n)."""
    if sizes is None:
        return np.full(count, 0.1)
    widths: Floats = 3 / np.sqrt(2 * np.maximum(np.asarray(sizes, float), 1))
    return widths


def _ground(figure: Figure, off: Floats, chance: Floats, lines: int) -> Axes:
    """Draw the axis of doublings, what was expected and the band around it, beside ``lines`` lines of text."""
    rows = len(off)
    drawn = _canvas.axes(figure, _LEFT, _TOP, _ACROSS, _pitch(lines) * lines + _FOOT)
    finite = off[np.isfinite(off)]
    low = -min(_FAR, max(1.0, -finite.min(initial=0))) - 0.7
    high = min(_FAR, max(1.0, finite.max(initial=0))) + 0.7
    drawn.set(xlim=(low, high), ylim=(lines - 0.5 + _FOOT / _pitch(lines), -0.5))
    ends = np.log2(np.maximum(1 - chance, 2.0**low)), np.log2(1 + chance)
    drawn.barh(range(rows), ends[1] - ends[0], left=ends[0], height=1, color=_canvas.PALE)
    drawn.plot([0, 0], [-0.5, rows - 0.5], color=_canvas.QUIET, linewidth=0.8)
    candidates = [(n - low, f"{2**n}" if n >= 0 else f"1/{2**-n}") for n in range(math.ceil(low), math.floor(high) + 1)]
    nearby = candidates if high - low < 6 else [c for c in candidates if (c[0] + low) % 2 == 0]
    kept = _canvas.spaced_ticks(nearby, _ACROSS / (high - low))
    drawn.set_xticks([x + low for x, _ in kept], [label for _, label in kept])
    for side in ("left", "right", "top"):
        drawn.spines[side].set_visible(False)
    return drawn


def _pitch(lines: int) -> float:
    """Return the pixels from one line to the next."""
    return _canvas.LINE * min(2.0, _ROWS / lines)


def _lollipop(drawn: Axes, row: int, off: float, verdict: str) -> None:
    """Draw one parameter; nothing where there is nothing to compare."""
    colour = _COLOURS[_known(verdict)]
    low, high = drawn.get_xlim()
    if math.isnan(off):
        return
    end = min(max(off, low + 0.25), high - 0.25)
    marker = "o" if end == off else "<" if off < 0 else ">"
    drawn.plot([0, end], [row, row], color=colour, linewidth=2)
    drawn.plot([end], [row], color=colour, marker=marker, markersize=7)


def _words(figure: Figure, y: float, off: float, verdict: str) -> None:
    """Write ratio and verdict at the right of a row."""
    _canvas.write(figure, _RATIO, y, _ratio(off))
    word = _canvas.fit(verdict, _canvas.WIDTH - _WORD - _canvas.MARGIN, keep="start")
    _canvas.write(figure, _WORD, y, word, colour=_COLOURS[_known(verdict)])


def _ratio(off: float) -> str:
    if math.isnan(off):
        return "-"
    if math.isinf(off):
        return "zero" if off < 0 else "infinite"
    factor = 2.0 ** max(-900.0, min(900.0, off))
    return f"x {factor:.2f}" if 0.1 <= factor < 9.995 else f"x {_canvas.number(factor)}"


def _rest(figure: Figure, off: Floats) -> None:
    """Say how far off those are for which there is no room."""
    if not off.size:
        return
    finite = off[np.isfinite(off)]
    factor = 2.0 ** min(900.0, float(np.abs(finite).max(initial=0)))
    within = f"±{100 * (factor - 1):.1g} %" if factor < 1.5 else f"a factor of {_canvas.number(factor)}"
    text = f"and {off.size:,} more"
    if finite.size == off.size:
        text += f", all within {within}"
    elif finite.size:
        text += f"; {finite.size:,} within {within}, {off.size - finite.size:,} not comparable"
    _canvas.write(figure, _canvas.MARGIN, _TOP + _canvas.LINE * (_ROWS - 0.5) + 6, text, colour=_canvas.QUIET)
