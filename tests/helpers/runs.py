"""Training runs as rules see them: made up step by step, without a network."""

from collections.abc import Callable, Sequence

import numpy as np

from lightning_weightwatch.evidence import Evidence, Watched

MISSING = float("nan")
INF = float("inf")
STUCK: Callable[[int], float] = lambda step: 2.3  # noqa: E731 - reads as what it is: a loss


def falling(step: int) -> float:
    """Return the loss of a run that learns."""
    return 2.3 * 0.97**step


def rising(step: int) -> float:
    """Return the loss of a run that diverges."""
    return 2.3 + 0.1 * step


def run(
    norms: Callable[[int], Sequence[float]],
    *,
    steps: int = 60,
    loss: Callable[[int], float | None] = STUCK,
    matrices: Sequence[bool] | None = None,
    first: int = 0,
    scaled_loss: bool = False,
) -> Evidence:
    """Return the evidence of a run.

    Args:
        norms: The gradient norm of each layer at a step; ``MISSING`` where there is none.
        steps: Its length.
        loss: The loss at a step; ``None`` where it is unknown.
        matrices: Which layers belong to the depth profile; all, if not given. Each has one element.
        first: The first step.
        scaled_loss: As for ``Evidence``.
    """
    width = len(norms(first))
    matrices = [True] * width if matrices is None else matrices
    evidence = Evidence([Watched(f"fc{i}", 1, m) for i, m in enumerate(matrices)], scaled_loss=scaled_loss)
    for step in range(first, first + steps):
        row = np.array(norms(step), dtype=float)
        evidence.add(step, row, measured=~np.isnan(row), loss=loss(step))
    return evidence


def layers(*numbers: int) -> tuple[str, ...]:
    """Return the names of layers by number."""
    return tuple(f"fc{n}" for n in numbers)
