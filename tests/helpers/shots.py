"""Evidence with full statistics now and then: training runs as rules of the optimizer's side see them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_weightwatch.evidence import Evidence, Snapshot

SHOTS = (0, 10, 20, 30, 40)  # steps of the first snapshots of a run


def shoot(evidence: Evidence, step: int, **columns: Any) -> None:
    """Add a snapshot; a single number counts for every parameter."""
    names = tuple(p.name for p in evidence.parameters)
    values = {key: np.broadcast_to(np.asarray(value, dtype=float), len(names)) for key, value in columns.items()}
    evidence.add_snapshot(Snapshot(step, names, values))


def train(
    evidence: Evidence,
    losses: Sequence[float | None],
    *,
    shots: Mapping[int, Mapping[str, Any]] | None = None,
    norms: Callable[[int], Sequence[float]] | None = None,
    rate: Callable[[int], float | None] = lambda step: 0.1,
    first: int = 0,
) -> Evidence:
    """Add one step per loss, and the snapshots of their steps.

    Args:
        evidence: The evidence.
        losses: The loss of each step; ``None`` where it is unknown.
        shots: The columns of each snapshot, by its step.
        norms: The gradient norms at a step, NaN where there is none; 1 for all, if not given.
        rate: The learning rate at a step; ``None`` where it is unknown.
        first: The first step.
    """
    for step, loss in enumerate(losses, start=first):
        row = np.array([1.0] * len(evidence.parameters) if norms is None else norms(step), dtype=float)
        evidence.add(step, row, measured=~np.isnan(row), loss=loss, learning_rate=rate(step))
        if shots and step in shots:
            shoot(evidence, step, **shots[step])
    return evidence
