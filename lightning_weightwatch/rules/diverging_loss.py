"""A loss that rises, and keeps on standing higher than it did.

What it sees:
    The median of the last ``steps`` losses above ``best`` times the lowest level of the run; or above ``start`` times
    the run's first losses; or ``decades`` above the first of all. By more than noise makes it, and not on its way back.

Why it matters:
    Each step makes the network worse, and what was learnt is lost. What comes next is a loss that is not finite, or a
    network that gives the same for every input.

When it is not a problem:
    The rise must be a quarter of what had been learnt, since a loss near zero doubles easily, and half of it where the
    learning rate has risen. A loss that jumped and comes back (new and harder data) is left out, and so is one that
    rose no more than its own targets, as where a network learns from its own predictions. Networks that play against
    each other and losses at or below zero are left out; a policy gradient, which calls no loss function, is told only
    two decades later. A ``warning``; ``critical`` once the loss is ``decades`` higher than at first, or has been
    higher for ``stays`` steps and is where it began, or above.

Limits:
    best: 2.0. TheDeepChecker's, over 5 steps. Ours is over more.
    start: 1.5. Our choice.
    decades: 1.0. Our choice.
    steps: 20. Enough for a quarter of them to mean something. Our choice.
    stays: 100 steps, in which a loss that comes back has shown it. Our choice.

What to try:
    A learning rate that is smaller, by ten; clipping of the gradients; the last checkpoint before it rose.

References:
    Bengio, Practical recommendations for gradient-based training of deep architectures, 2012, arXiv:1206.5533.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for step in range(100):
    ...     sick.add(step, [1.0], loss=0.5 if step < 60 else 0.5 + (step - 60) / 10)
    ...     well.add(step, [1.0], loss=2.0 * 0.98**step)
    >>> RULE(sick)[0].since_step
    61
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_weightwatch.evidence import Evidence, Floats
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._robust import (
    last_of,
    levels,
    must_fall,
    spread,
    start_level,
    stays_positive,
    target_growth,
)

NAME = "diverging_loss"
_LEARNT = 0.25  # the share of what was learnt that is worth telling when it is lost
_SURE = 5.0  # standard deviations; the lowest of many levels is low by chance too


@dataclass(frozen=True)
class _Level:
    """A level that the loss once had.

    Attributes:
        words: What it is.
        loss: Its median.
        top: What the losses that make it seldom exceed.
    """

    words: str
    loss: float
    top: float


def check(
    evidence: Evidence,
    *,
    best: float = 2.0,
    start: float = 1.5,
    decades: float = 1.0,
    steps: int = 20,
    stays: int = 100,
) -> Iterator[Finding]:
    """Hold the last losses against the best level, then against the first ones."""
    losses = last_of(evidence.losses, evidence.window)
    if len(losses) < steps + len(evidence.first_losses) or not stays_positive(evidence):
        return
    grown, falls, now = target_growth(evidence), must_fall(evidence), float(np.median(losses[-steps:]))
    begin, top = start_level(evidence), max(evidence.first_losses)
    first = evidence.first_losses[0]
    forms = [(_Level("its first value", first, min(2 * first, top)), 10.0 ** (decades if falls else decades + 2))]
    if falls:
        forms += [(_lowest(evidence, losses, steps), best), (_Level("its start", begin, top), start)]
    for level, limit in forms:
        is_much = now - level.loss > _worth(evidence) * (begin - level.loss)
        if is_much and now > limit * grown * level.loss and _is_no_noise(losses, level, grown, steps):
            if not _comes_back(evidence, level):
                yield _finding(evidence, level, now, limit, stays)
            return


def _worth(evidence: Evidence) -> float:
    """Return the share of what was learnt whose loss is worth telling: more of it where the learning rate has risen."""
    rates = last_of(evidence.learning_rates, evidence.window)
    return 2 * _LEARNT if len(rates) and rates[-1] > 1.5 * rates.min() else _LEARNT


def _is_no_noise(losses: Floats, level: _Level, grown: float, steps: int) -> bool:
    """Whether the medians of as many losses then and now differ by far more than chance makes them.

    The noise is that of differences from step to step, which a rise is no part of.
    """
    noise = max(spread(np.diff(np.log(losses))), spread(np.diff(np.log(losses[-steps:]))))
    rise = np.log(np.median(losses[-steps:])) - np.log(grown * level.loss)
    return bool(rise > _SURE * 1.25 * noise / steps**0.5)


def _lowest(evidence: Evidence, losses: Floats, steps: int) -> _Level:
    """Return the lowest level that as many losses in a row as ``steps`` have made."""
    curve = evidence.curve
    early = curve.losses[np.array(curve.steps) + curve.stride <= evidence.steps[0]]
    points = min(max(steps // curve.stride, 1), max(len(early), 1))
    rows = [np.lib.stride_tricks.sliding_window_view(losses, steps)]
    if len(early):
        rows.append(np.lib.stride_tricks.sliding_window_view(early, points))
    found = [row[np.argmin(np.median(row, axis=1))] for row in rows]
    lowest = min(found, key=lambda row: float(np.median(row)))
    return _Level("its lowest level", float(np.median(lowest)), float(lowest.max()))


def _since(evidence: Evidence, level: _Level) -> int:
    """Return the step at which the loss left a level for good."""
    steps, smooth = levels(evidence)
    left = np.flatnonzero(smooth <= level.top)
    begin = steps[min(left[-1] + 1, len(steps) - 1)] if left.size else steps[0]
    above = [s for s, loss in zip(evidence.steps, evidence.losses, strict=True) if s >= begin and loss > level.top]
    return int(begin) if begin < evidence.steps[0] or not above else above[0]


def _comes_back(evidence: Evidence, level: _Level) -> bool:
    after = last_of(evidence.losses[np.array(evidence.steps) >= _since(evidence, level)], evidence.window)
    early, late = np.array_split(after, 2)
    return bool(len(early) and len(late) and np.median(late) < 0.9 * np.median(early))


def _finding(evidence: Evidence, level: _Level, now: float, limit: float, stays: int) -> Finding:
    since, begin = _since(evidence, level), start_level(evidence)
    times = float(np.exp(min(np.log(now) - np.log(level.loss), 690.0)))  # the largest number is e to the power of 709
    is_lost = evidence.steps[-1] - since >= stays and now >= 0.9 * begin
    return Finding(
        rule=NAME,
        severity="critical" if is_lost or limit >= 10 else "warning",
        step=evidence.steps[-1],
        since_step=since,
        value=times,
        limit=limit,
        unit="times the level it had",
        saw=(
            f"The loss rose from {level.words} of {level.loss:.3g} to {now:.3g}, {times:.3g} times as much "
            f"(limit {limit:g}), since step {since}, and does not come back."
        ),
        try_first="Divide the learning rate by 10, and go on from a checkpoint before that step.",
    )


RULE = Rule(name=NAME, check=check)
