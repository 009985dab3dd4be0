"""Whether a training learns, as far as its loss can tell."""

from __future__ import annotations

import numpy as np

from lightning_weightwatch.evidence import Evidence, Listened, LossCall
from lightning_weightwatch.rules._base import Severity
from lightning_weightwatch.rules._robust import must_fall

_LONG = 20  # steps whose median loss is held against the loss of a constant prediction
_AT_CHANCE = 0.05  # so near to it counts as being there
_SETTLED = 100  # steps after which a loss above that of a constant prediction ought at least to fall fast


def learns(evidence: Evidence, *, falling: float = 0.9) -> bool | None:
    """Say whether the loss has fallen; ``None`` where it cannot tell.

    Below ``falling`` of its start it has fallen, unless all it knows may be how frequent each target is. Below half of
    the loss of the best constant prediction the network knows its task, however it began: it was trained before. A loss
    cannot tell where it is unknown or began at zero or below, where it need not fall (opponents, rewards), and while
    the learning rate is still rising.
    """
    if evidence.has_opponents:
        return None
    ratio, level = evidence.loss_ratio(), chance_ratio(evidence)
    if level < 0.5 and not np.isinf(ratio):
        return True
    if ratio < falling:
        return not _knows_frequencies_at_most(evidence, level)
    is_early = ratio < 1 / falling and is_warming_up(evidence)
    return None if np.isnan(ratio) or is_early or not must_fall(evidence) else False


def _knows_frequencies_at_most(evidence: Evidence, level: float) -> bool:
    """Whether the loss rests at that of the best constant prediction, or above it after long.

    A loss that still falls by a twentieth in so many steps is on its way, and one far above must fall faster.
    """
    now, before = _last_levels(evidence)
    pace = now / before if before > 0 else 1.0
    if abs(level - 1) < _AT_CHANCE:
        return pace > 0.95
    return level > 1 and len(evidence) >= _SETTLED and pace > 0.8


def eased(severity: Severity, learning: bool | None) -> Severity:
    """Return the severity for a run that learns (a note), that may do so (a warning at most), or that does not."""
    if learning:
        return "info"
    return "warning" if learning is None and severity == "critical" else severity


def chance_ratio(evidence: Evidence) -> float:
    """Return the loss now over that of the best constant prediction; NaN where it is not known."""
    calls = next((heard.losses for heard in reversed(evidence.listened) if heard.losses), ())
    known = len(calls) == 1 and calls[0].chance > 0
    return _last_levels(evidence)[0] / calls[0].chance if known else float("nan")


def _last_levels(evidence: Evidence) -> tuple[float, float]:
    """Return the median of the last 20 finite losses, and that of the 20 before them; NaN where there are none."""

    def levels() -> tuple[float, float]:
        losses = evidence.losses[np.isfinite(evidence.losses)]
        now, before = losses[-_LONG:], losses[-2 * _LONG : -_LONG]
        return (float(np.median(now)) if now.size else np.nan, float(np.median(before)) if before.size else np.nan)

    return evidence.once("last levels", levels)


def is_warming_up(evidence: Evidence) -> bool:
    """Whether the learning rate has risen in each of the last steps, early in the run."""
    rates = evidence.learning_rates[-5:]
    return len(evidence) < evidence.window and len(rates) > 1 and bool((np.diff(rates) > 0).all())


def loss_calls(evidence: Evidence) -> list[tuple[Listened, LossCall]]:
    """Return every loss heard, with the pass in which it was."""
    return [(heard, call) for heard in evidence.listened for call in heard.losses]
