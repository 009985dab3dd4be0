"""How a run began: whether its first loss is that of a sound initialisation on sound data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_weightwatch.evidence import Evidence, Initial, LossCall


def began_high(evidence: Evidence, times: float) -> bool:
    """Whether the first loss was more than so many times that of a guess; not, where one of the two is unknown.

    Example:
        >>> from lightning_weightwatch.evidence import Listened, LossCall
        >>> evidence = Evidence([])
        >>> evidence.add_reading(Listened(0, losses=(LossCall("cross_entropy", classes=10),)))
        >>> evidence.add(0, [], loss=60.0)
        >>> began_high(evidence, 3.0)
        True
    """
    calls = evidence.listened[0].losses if evidence.listened else ()
    return bool(evidence.first_losses and is_high(evidence.first_losses[0], calls, times))


def begins_high(initial: Initial, times: float) -> bool | None:
    """Whether the first batch has a loss of more than so many times that of a guess; ``None`` where it is unknown."""
    signal = initial.signal
    if signal is None or not signal.losses or np.isnan(signal.loss) or np.isinf(sum(map(guess, signal.losses))):
        return None
    return is_high(signal.loss, signal.losses, times)


def is_high(loss: float, calls: Sequence[LossCall], times: float) -> bool:
    """Whether a loss is more than so many times what these losses are for a guess; not, where that is unknown."""
    return bool(calls and loss > times * sum(guess(call) for call in calls))


def guess(call: LossCall) -> float:
    """Return the loss of an output that says nothing; Inf where it is unknown."""
    if call.classes:
        return float(np.log(max(call.classes, 2)))
    if call.function == "mse_loss" and np.isfinite(call.target_mean):
        return call.target_mean**2 + call.target_std**2
    return call.chance if call.chance > 0 else float("inf")
