"""Gradients that are exactly zero: for how long, and which matrix of zeros they may lie behind."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightning_weightwatch.evidence import Evidence, Floats


def streak(norms: Floats) -> tuple[int, int]:
    """Return how many steps in a row, up to the last, a gradient was exactly zero, and in which row they begin.

    Steps on which it was not measured neither count nor break the row.

    Example:
        >>> streak(np.array([0.0, 1.0, 0.0, np.nan, 0.0]))
        (2, 2)
    """
    other = np.flatnonzero(norms > 0)
    after = int(other[-1]) + 1 if other.size else 0
    zeros = np.flatnonzero(norms[after:] == 0)
    return len(zeros), after + int(zeros[0]) if zeros.size else len(norms)


def zero_matrices(evidence: Evidence) -> list[int]:
    """Return the columns of matrices that were zero throughout at the last snapshot and were not moved by its step."""
    taken = evidence.snapshots[-1] if evidence.snapshots else None
    if taken is None or "weight_norm" not in taken.values or not (taken.values["weight_norm"] == 0).any():
        return []
    weights, updates = (taken.column(name) for name in ("weight_norm", "update_norm"))
    names = {name for name, norm in weights.items() if norm == 0 and updates.get(name, 0.0) == 0}
    return [i for i in evidence.matrices if evidence.parameters[i].name in names]


def order(evidence: Evidence, column: int) -> tuple[int, int]:
    """Return a parameter's place in the forward pass; parameters without places follow one another as they stand."""
    return evidence.parameters[column].place, column


def last_order(evidence: Evidence, columns: Iterable[int]) -> tuple[int, int]:
    """Return the place of the last of some parameters; before all others, if there are none."""
    return max((order(evidence, column) for column in columns), default=(-1, -1))
