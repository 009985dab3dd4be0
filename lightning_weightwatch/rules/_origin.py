"""Where a broken number came from: the batch of its step, and the processes whose own loss broke."""

from __future__ import annotations

import numpy as np

from lightning_weightwatch.evidence import Evidence


def with_batch(evidence: Evidence, row: int) -> str:
    """Return ``"step 7 (batch_idx 3)"`` for a remembered row, or ``"step 7"`` where the batch is unknown.

    Example:
        >>> evidence = Evidence([])
        >>> evidence.add(7, [], batch=3)
        >>> with_batch(evidence, 0)
        'step 7 (batch_idx 3)'
    """
    batch = evidence.batches[row]
    place = "" if np.isnan(batch) else f" (batch_idx {batch:.0f})"
    return f"step {evidence.steps[row]}{place}"


def of_its_epoch(evidence: Evidence, row: int) -> str:
    """Return `` (batch 3 of its epoch)`` for a remembered row, with a space before it; nothing where it is unknown."""
    batch = evidence.batches[row]
    return "" if np.isnan(batch) else f" (batch {batch:.0f} of its epoch)"


def broken_processes(evidence: Evidence, step: int) -> tuple[int, ...]:
    """Return the processes whose own loss was not finite by a step; none where all were, for then it is nobody's own.

    Example:
        >>> evidence = Evidence([])
        >>> evidence.broken_losses = {1: 7}
        >>> broken_processes(evidence, 6), broken_processes(evidence, 7)
        ((), (1,))
    """
    broken = evidence.broken_losses
    ranks = tuple(sorted(rank for rank, first in broken.items() if first <= step))
    processes = max(evidence.setup.processes, max(broken, default=0) + 1)
    return ranks if len(ranks) < processes else ()


def on_processes(ranks: tuple[int, ...]) -> str:
    """Return a sentence that names the processes, with a space before it; nothing, if there are none.

    Example:
        >>> on_processes((1,)), on_processes((0, 2)), on_processes(())
        (' Only process 1 had such a loss.', ' Only processes 0, 2 had such a loss.', '')
    """
    if not ranks:
        return ""
    return f" Only process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} had such a loss."


def only(ranks: tuple[int, ...]) -> int | None:
    """Return the process if it is just one."""
    return ranks[0] if len(ranks) == 1 else None
