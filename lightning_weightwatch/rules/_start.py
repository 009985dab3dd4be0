"""How a run began: whether its first loss is that of a sound initialisation on sound data."""

from __future__ import annotations

import numpy as np

from lightning_weightwatch.evidence import Evidence, LossCall


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
    guess = sum(_guess(call) for call in calls)
    return bool(calls and evidence.first_losses and evidence.first_losses[0] > times * guess)


def _guess(call: LossCall) -> float:
    """Return the loss of an output that says nothing; Inf where it is unknown."""
    if call.classes:
        return float(np.log(max(call.classes, 2)))
    if call.function == "mse_loss" and np.isfinite(call.target_mean):
        return call.target_mean**2 + call.target_std**2
    return call.chance if call.chance > 0 else float("inf")
