"""What a loss suffers where steps are too large, and since when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch.evidence import Evidence, Floats
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._robust import spread
from lightning_weightwatch.rules._runs import run_up

_SMOOTH = 5  # losses whose median is a level
_LEARNT = 0.7  # a level below so much of the start counts as having learnt
_KEPT = 0.95  # at or above so much of its start a loss has learnt nothing
_AT_CHANCE = 0.98  # and at or above so much of chance, where it began higher
_LEAP = 1.5  # times the start: a loss that was so high once has leapt
_PATIENCE = 20  # steps after which a loss that learns has begun to fall
_SUDDEN = 10  # times the loss of the step before
_LONG = 50  # steps after which a run that learns knows more than a guess
_CLIMB = 3  # losses in a row that rise make a climb

Kind = Literal["broke", "climbed", "left", "leapt", "still", "idle", "lost"]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Trouble:
    """What the loss suffers.

    Attributes:
        kind: ``"broke"`` from one step to the next; ``"climbed"`` until it broke, which a broken batch does not make
            it do; ``"left"`` its start upwards; ``"leapt"`` and came back to its start; stands ``"still"``, or after
            50 steps is ``"idle"``; ``"lost"`` half of what was learnt.
        step: Since when; for what gets nowhere, the first known step.
        words: The same, as the predicate of a sentence about the loss.
        sudden: Whether the loss grew tenfold from one step to the next as it began.
        grave: Whether the run is ruined.
        learnt: Whether the run had learnt something before.
    """

    kind: Kind
    step: int
    words: str
    sudden: bool = False
    grave: bool = False
    learnt: bool = False


def trouble(evidence: Evidence, rise: float) -> Trouble | None:
    """Return what the loss suffers; ``None`` while it is well, or nobody can tell."""
    known = ~np.isnan(evidence.losses)
    steps, losses = np.array(evidence.steps, dtype=np.int64)[known], evidence.losses[known]
    if not len(losses) or not evidence.first_losses:
        return None
    start, levels = evidence.first_losses[0], _levels(losses)
    best = min(float(levels.min(initial=np.inf)), float(evidence.curve.losses.min(initial=np.inf)))
    learnt = bool(best < _LEARNT * start)
    broken = _broken(evidence, steps, losses, start * rise, learnt)
    if broken is not None or start <= 0 or not _is_judged(evidence, losses) or len(losses) < 2 * _SMOOTH:
        return broken
    if learnt:
        return _lost(steps, losses, levels, start, best)
    left = _left(steps, losses, levels, start * rise)
    nothing = bool(np.median(losses[-2 * _SMOOTH :]) >= min(_KEPT * start, _AT_CHANCE * _chance(evidence)))
    leapt = _leapt(steps, losses, start) if nothing and left is None else None
    return left or leapt or (_still(steps, losses, start) if nothing or learns(evidence) is False else None)


def _chance(evidence: Evidence) -> float:
    """Return the loss of a classifier that guesses; Inf for other losses."""
    classes = max((call.classes for heard in evidence.listened for call in heard.losses), default=0)
    return float(np.log(max(classes, 2))) if classes else float("inf")


def _is_judged(evidence: Evidence, losses: Floats) -> bool:
    """Whether the level of the loss means anything: not that of opponents, nor of one that falls below zero."""
    return not evidence.has_opponents and bool((losses > 0).all() and (evidence.curve.losses > 0).all())


def _levels(losses: Floats) -> Floats:
    if len(losses) < _SMOOTH:
        return np.empty(0)
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(losses, _SMOOTH), axis=1))


def _broken(evidence: Evidence, steps: Steps, losses: Floats, limit: float, learnt: bool) -> Trouble | None:
    """Look for a loss or a gradient that is not finite, though the losses before it were."""
    bad = np.isposinf(evidence.losses)
    if not evidence.scaled_loss:
        bad = bad | np.isposinf(evidence.norms).any(axis=1)
    first = evidence.steps[int(np.argmax(bad))]
    before = losses[steps < first]
    if not bad.any() or not len(before):
        return None
    tail = before[-_CLIMB:]
    above = before > limit
    climbed = limit > 0 and len(tail) == _CLIMB and bool((np.diff(tail) > 0).all() and above[-1])
    climbed = climbed and int(np.argmax(above)) == run_up(above)  # an odd batch before it may have been the cause
    words = f"broke at step {first}, after {before[-1]:.3g} in the step before and {before[0]:.3g} in step {steps[0]}"
    since = int(steps[run_up(before > limit)]) if climbed else first
    return Trouble("climbed" if climbed else "broke", since, words, grave=True, learnt=learnt)


def _left(steps: Steps, losses: Floats, levels: Floats, limit: float) -> Trouble | None:
    """Look whether the loss, which has never been much below its start, stays far above it."""
    last = losses[-_SMOOTH:]
    may_pass = len(losses) < _PATIENCE and (last.min() <= limit or last.max() < 0.5 * losses.max())
    if not levels[-1] > limit or may_pass:  # noise, or a loss that is on its way back
        return None
    first = int(np.argmax(losses > limit))
    words = f"rose above {limit:.3g} at step {steps[first]} and is {levels[-1]:.3g} now"
    return Trouble("left", int(steps[first]), words, _is_sudden(losses, first), grave=True)


def _leapt(steps: Steps, losses: Floats, start: float) -> Trouble | None:
    """Look whether the loss leapt and came back to where it began: what was thrown away is not learnt again."""
    now = losses[-2 * _SMOOTH :]
    limit = max(_LEAP * start, start + 6 * spread(now))
    high = losses > limit
    if not (spread(now) < 0.1 * np.median(now) and losses.max() > _LEAP * now.max()):  # one may be an odd batch
        high[:-1] &= high[1:]
        high[-1:] = False
    if len(losses) < _PATIENCE or not high.any():
        return None
    first = int(np.argmax(high))
    words = f"leapt to {losses.max():.3g} and stands at {np.median(now):.3g}, having begun at {start:.3g}"
    return Trouble("leapt", int(steps[first]), words, _is_sudden(losses, first))


def _still(steps: Steps, losses: Floats, start: float) -> Trouble | None:
    """Tell that the loss has hardly fallen, or to the level of a guess and no farther."""
    if len(losses) < _PATIENCE + 2 * _SMOOTH:
        return None
    words = f"has come from {start:.3g} to {np.median(losses[-2 * _SMOOTH :]):.3g} in {len(losses)} steps"
    return Trouble("idle" if len(losses) >= _LONG else "still", int(steps[0]), words)


def _lost(steps: Steps, losses: Floats, levels: Floats, start: float, best: float) -> Trouble | None:
    """Look whether the loss had fallen, and half of that is lost."""
    limit = best + 0.5 * (start - best)
    above = levels > limit
    if not above[-2 * _SMOOTH :].all() or len(above) < 2 * _SMOOTH or above.all():
        return None
    begin = run_up(above)
    first = begin + int(np.argmax(losses[begin:] > limit))
    words = f"had fallen from {start:.3g} to {best:.3g} and is back at {levels[-1]:.3g}, since step {steps[first]}"
    grave = bool(levels[-1] > start)
    return Trouble("lost", int(steps[first]), words, _is_sudden(losses, first), grave, learnt=True)


def _is_sudden(losses: Floats, row: int) -> bool:
    return row > 0 and bool(losses[row] > _SUDDEN * losses[row - 1])
