"""The picture a reviewer lands on: how every layer's gradient did over the whole run.

At the top the verdict, under it loss and gradient level over the steps, then a heat map of layer by step, first layer
at the top, and at the right where every layer stands now. Colour says how far a layer lies from the median layer of
the same step, so a healthy run is grey all over. The verdict itself is made elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgba
from numpy.typing import ArrayLike

from lightning_weightwatch.figures import _cells, _letters, _paper
from lightning_weightwatch.figures._cells import Floats
from lightning_weightwatch.figures._panel import Panel, round_numbers
from lightning_weightwatch.figures._paper import MARGIN, Paper

_LEFT, _TOP, _ACROSS, _HIGH = 126, 94, 363, 159  # the heat map: 121 columns or 53 rows of 3 pixels
_NOW = 502, 128  # left edge and width of the panel at the right
_STRIP = 44, 40  # top edge and height of the strip with loss and gradient level
_GRADIENT = "#0B7A75"
_TEXT_LINE = 301  # the baseline of the last line
_LEAST_CELL = 3  # pixels; thinner lines vanish when TensorBoard scales the picture down


def health_report(
    *,
    verdict: str,
    healthy: bool,
    layers: Sequence[str],
    steps: Sequence[int],
    log_rms: ArrayLike,
    losses: ArrayLike,
    band: float = 2.0,
) -> Paper:
    """Draw the health of all gradients over the whole run.

    Args:
        verdict: What is to be said, in a few words.
        healthy: Whether the verdict is good news; bad news is dark red.
        layers: Names in forward order, length P. An ending that all share, such as ``.weight``, is left out.
        steps: The step of every read-out, ascending, length T.
        log_rms: log10 of the gradient's root mean square, shape ``[T, P]``. NaN: not measured, drawn hatched; +Inf:
            NaN or Inf in the gradient, drawn black; -Inf: exactly zero, drawn darkest blue.
        losses: The loss at every read-out, shape ``[T]``. NaN: unknown, a gap; Inf: not finite, a black mark.
        band: Decades around the median layer of the same step within which a layer is in order.

    Returns:
        A figure of 640 x 310 pixels. More layers or steps than there is room for share cells: a cell shows the one
        that is not finite or else lies farthest out.

    Example:
        >>> figure = health_report(verdict="No illness found", healthy=True, layers=["conv", "fc"], steps=[0, 1],
        ...                        log_rms=[[-2.0, -2.1], [-2.2, -2.0]], losses=[2.3, 1.9])
        >>> figure.words[0].text
        'No illness found'
    """
    paper = Paper(verdict, colour=_paper.GOOD if healthy else _paper.BAD)
    values = np.asarray(log_rms, float)
    values = np.where(np.isfinite(values), np.clip(values, -400, 400), values)  # no float's logarithm lies outside
    if not values.size:
        return paper.say("nothing measured yet")
    middle = medians(values)
    offset = values - np.where(np.isfinite(middle), middle, 0)[:, None]
    _strip(paper, np.asarray(losses, float), middle)
    shared = _heat_map(paper, offset.T, band)
    _step_ticks(shared, steps)
    paper.write(MARGIN, _TOP + _HIGH + 20, "↓ depth")
    _layer_ticks(shared, layers)
    _now(shared, values, offset, steps, band)
    _legend(paper, offset, band)
    return paper


def medians(log_rms: Floats) -> Floats:
    """Return the median over the layers that have a finite, non-zero gradient, shape ``[T]``; NaN where none has."""
    ordered = np.sort(np.where(np.isfinite(log_rms), log_rms, np.nan), axis=1)  # NaN goes last
    count = np.isfinite(ordered).sum(axis=1)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, ordered.shape[1] - 1)
    rows = np.arange(len(ordered))
    middle: Floats = (ordered[rows, low] + ordered[rows, high]) / 2
    return middle


def colours(offset: ArrayLike, band: float) -> Floats:
    """Return RGBA in 0..1 for distances from the median layer in decades, any shape; transparent where not measured.

    Inside the band one grey; outside, blue below and red above, darkest from three times the band on.
    """
    offset = np.asarray(offset, float)
    painted = np.empty((*offset.shape, 4))
    painted[:] = to_rgba(_paper.PALE)
    share = np.clip((np.abs(offset) - band) / (2 * band or 1), 0, 1)[..., None]
    for out, near, far in (
        (offset < -band, _paper.LOW, _paper.LOWEST),
        (offset > band, _paper.HIGH, _paper.HIGHEST),
    ):
        ramp = (1 - share) * to_rgba(near) + share * np.array(to_rgba(far))
        painted[out] = ramp[out]
    painted[np.isposinf(offset)] = to_rgba(_paper.BLACK)
    painted[np.isnan(offset)] = 0
    return painted


def pooled(offset: Floats, rows: int, columns: int) -> Floats:
    """Return one distance per block of ``rows`` layers by ``columns`` steps; ``offset`` has shape ``[P, T]``.

    What is not finite is kept first, then what is exactly zero, then what lies farthest from the median layer.
    """
    most = np.finfo(float).max
    urgency = np.where(np.isnan(offset), -1, np.where(np.isposinf(offset), np.inf, np.minimum(np.abs(offset), most)))
    return _cells.pool(offset, urgency, rows, columns)


def _heat_map(paper: Paper, offset: Floats, band: float) -> Panel:
    """Draw ``[P, T]`` distances; on its scales layer ``i`` lies at ``i + 0.5`` and read-out ``t`` at ``t + 0.5``."""
    rows = _cells.group_size(offset.shape[0], _HIGH // _LEAST_CELL)
    columns = _cells.group_size(offset.shape[1], _ACROSS // _LEAST_CELL)
    cells = pooled(offset, rows, columns)
    span = (0, cells.shape[1] * columns), (0, cells.shape[0] * rows)
    panel = Panel(paper, _LEFT, _TOP, _ACROSS, _HIGH, *span)
    if np.isnan(cells).any():
        panel.hatch()  # shines through where nothing was measured
    panel.cells(colours(cells, band))
    panel.frame()
    return panel


def _strip(paper: Paper, losses: Floats, middle: Floats) -> None:
    """Draw loss and gradient level, each on a scale of its own, with their last values beside them."""
    group = _cells.group_size(len(losses), _ACROSS // _LEAST_CELL)
    span = group * math.ceil(len(losses) / group)
    panel = Panel(paper, _LEFT, _STRIP[0], _ACROSS, _STRIP[1], (0, span), (1.12, -0.12))
    black = np.flatnonzero(_cells.pool(np.isinf(losses)[None], np.isinf(losses)[None], 1, group)[0]) * group
    panel.boxes(black, black + max(group, span / _ACROSS * _LEAST_CELL), 1.12, -0.12, _paper.BLACK)
    panel.frame()
    loss, scale = _loss_scale(losses)
    _line(panel, middle, group, _GRADIENT)
    _line(panel, loss, group, _paper.INK)
    words = _last_loss(losses) + scale, _last_level(middle)
    for i, (name, value, ink) in enumerate(zip(("loss", "median layer"), words, (_paper.INK, _GRADIENT), strict=True)):
        paper.write(_LEFT - 6, _STRIP[0] + 15 + 20 * i, name, colour=ink, align="right")
        paper.write(_NOW[0], _STRIP[0] + 15 + 20 * i, value, colour=ink)


def _line(panel: Panel, values: Floats, group: int, colour: str) -> None:
    """Draw the least and the greatest finite value of each group of steps, scaled to the panel's height."""
    finite = np.isfinite(values)
    if not finite.any():
        return
    halves = np.where(finite, values, np.nan) / 2  # the difference of halves cannot overflow
    low = np.nanmin(halves)
    span = np.nanmax(halves) - low
    scaled = (halves - low) / span if span else halves - low + 0.5
    low_high = np.stack(_cells.ends(scaled, group), axis=1)
    x = (np.arange(len(low_high)) + 0.5) * group
    if finite.sum() == 1:
        panel.dots(x, low_high[:, 0], to_rgba(colour), size=5)
    panel.curve(np.repeat(x, 2), low_high.ravel(), colour)


def _loss_scale(losses: Floats) -> tuple[Floats, str]:
    """Return what to draw, and how to say so: the logarithm where the loss is positive and spans a factor of 100."""
    finite = losses[np.isfinite(losses)]
    if finite.size and finite.min() > 0 and finite.max() / 100 > finite.min():
        logs: Floats = np.log10(losses, where=np.isfinite(losses), out=np.full(losses.shape, np.nan))
        return logs, " (log)"
    return losses, ""


def _last_loss(losses: Floats) -> str:
    known = losses[~np.isnan(losses)]
    if not known.size:
        return "not known"
    return "NaN or Inf" if np.isinf(known[-1]) else _letters.number(known[-1])


def _last_level(middle: Floats) -> str:
    known = middle[np.isfinite(middle)]
    return f"grad rms {_power(known[-1])}" if known.size else "no gradient"


def _power(log: float) -> str:
    """Return ten to the power of ``log`` in one digit, also where that is too small for a float."""
    exponent = math.floor(log)
    digit = round(10 ** (log - exponent))
    return f"{digit}e{exponent}" if digit < 10 else f"1e{exponent + 1}"


def _step_ticks(panel: Panel, steps: Sequence[int]) -> None:
    """Mark round steps where they were read out; the panel counts read-outs, which may lie unevenly."""
    marked = round_numbers(min(steps), max(steps), 6)
    places = np.interp(marked, steps, np.arange(len(steps))) + 0.5
    first, *others = [f"{step:,}" for step in marked]
    panel.ticks_below(zip(places, [f"step {first}", *others], strict=True), until=_NOW[0])


def _layer_ticks(panel: Panel, layers: Sequence[str]) -> None:
    """Name every n-th layer, as many as fit."""
    nth = math.ceil((_letters.LINE + 2) * panel.y[1] / _HIGH)
    names = _letters.short_names(_without_shared_ending(layers), _LEFT - MARGIN - 8)
    panel.ticks_beside((i + 0.5, names[i]) for i in range(0, len(layers), nth))


def _without_shared_ending(layers: Sequence[str]) -> Sequence[str]:
    endings = {name.rpartition(".")[2] for name in layers}
    stems = [name.rpartition(".")[0] for name in layers]
    return stems if len(endings) == 1 and all(stems) else layers


def _now(shared: Panel, values: Floats, offset: Floats, steps: Sequence[int], band: float) -> None:
    """Draw the last read-out as one dot per layer over the healthy band, in line with the heat map's rows."""
    measured = np.flatnonzero(~np.isnan(values).all(axis=1))
    last = int(measured[-1]) if measured.size else len(values) - 1
    middle = float(medians(values[last : last + 1])[0])
    low, high = _now_range(values[last], middle, band)
    panel = Panel(shared.paper, _NOW[0], _TOP, _NOW[1], _HIGH, (low, high), shared.y)
    panel.boxes(middle - band, middle + band, *shared.y, _paper.PALE)
    panel.frame()
    _dots(panel, values[last], offset[last], band)
    pixel = (high - low) / _NOW[1]
    panel.ticks_below((p, f"1e{p}") for p in (math.ceil(low + 24 * pixel), math.floor(high - 14 * pixel)))
    told = f"rms at {steps[last]:,}"
    told = told if _letters.text_width(told) <= _NOW[1] else f"at {steps[last]:,}"
    panel.paper.write(_NOW[0] + _NOW[1], _TEXT_LINE, told, align="right")


def _now_range(now: Floats, middle: float, band: float) -> tuple[float, float]:
    """Return the ends of an axis that holds the band and every finite layer; anything where there is none."""
    finite = now[np.isfinite(now)]
    if not finite.size:
        return -1.0, 1.0
    return min(middle - band, float(finite.min())) - 0.8, max(middle + band, float(finite.max())) + 0.8


def _dots(panel: Panel, now: Floats, offset: Floats, band: float) -> None:
    """Draw finite layers where they are, exact zeros as triangles at the left, NaN and Inf as crosses at the right."""
    low, high = panel.x
    places = np.arange(len(now)) + 0.5
    inks = np.where((np.abs(offset) <= band)[:, None], to_rgba(_paper.QUIET), colours(offset, band))
    size = 7 if len(now) <= _HIGH / 6 else 4
    for chosen, x, marker in (
        (np.isfinite(now), now, "o"),
        (np.isneginf(now), np.full(len(now), low + 0.05 * (high - low)), "<"),
        (np.isposinf(now), np.full(len(now), high - 0.05 * (high - low)), "X"),
    ):
        panel.dots(x[chosen], places[chosen], inks[chosen], size=size if marker == "o" else size + 2, marker=marker)


def _legend(paper: Paper, offset: Floats, band: float) -> None:
    """Explain the colours; the rarer ones only where they occur."""
    factor = f"{10**band:,.0f}" if band >= 1 else f"{10**band:.2g}"
    entries = [
        (True, _paper.LOW, f"< 1/{factor}"),
        (True, _paper.HIGH, f"> {factor} x median"),
        (np.isneginf(offset).any(), _paper.LOWEST, "zero"),
        (np.isposinf(offset).any(), _paper.BLACK, "NaN/Inf"),
        (np.isnan(offset).any(), "white", "not seen"),
    ]
    x = MARGIN
    for _, colour, words in (entry for entry in entries if entry[0]):
        square = Panel(paper, x, _TEXT_LINE - 11, 11, 11)
        paper.fill(square.left, square.top, 11, 11, colour)
        if colour == "white":
            square.hatch()
        square.frame()
        paper.write(x + 16, _TEXT_LINE, words)
        x += 16 + math.ceil(_letters.text_width(words)) + 9
