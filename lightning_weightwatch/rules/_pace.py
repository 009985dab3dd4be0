"""How large the steps are: learning rates, and updates over weights, snapshot by snapshot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lightning_weightwatch.evidence import Evidence, Floats, Snapshot


def named(evidence: Evidence, flags: ArrayLike) -> tuple[str, ...]:
    """Return the names of the parameters that a flag is set for."""
    return tuple(evidence.parameters[i].name for i in np.flatnonzero(flags))


def rates(evidence: Evidence) -> dict[int, float]:
    """Return the largest learning rate of each remembered step; NaN where it is unknown."""
    return dict(zip(evidence.steps, evidence.learning_rates.tolist(), strict=True))


def took_a_step(evidence: Evidence, *, least: float = 0.0) -> list[Snapshot]:
    """Return the snapshots of remembered steps that were taken at a rate above zero and that no GradScaler skipped.

    Args:
        evidence: The evidence.
        least: Leave out steps whose rate is below so much of the highest remembered one.
    """
    skipped = np.isposinf(evidence.norms).any(axis=1)
    highest = float(np.nanmax(evidence.learning_rates, initial=0.0))
    low = (evidence.learning_rates == 0) | (evidence.learning_rates < least * highest)
    good = dict(zip(evidence.steps, (~(skipped | low)).tolist(), strict=True))
    return [snapshot for snapshot in evidence.snapshots if good.get(snapshot.step)]


def table(evidence: Evidence, snapshots: Sequence[Snapshot], statistic: str) -> Floats:
    """Return one statistic of every watched parameter, shape ``[snapshots, P]``; NaN where it was not measured."""
    names = evidence.names
    out = np.full((len(snapshots), len(names)), np.nan)
    for row, snapshot in zip(out, snapshots, strict=True):
        values = snapshot.values.get(statistic)
        if values is None:
            continue
        if snapshot.parameters == names:
            row[:] = values
        else:  # parameters have come or gone since
            places = {name: i for i, name in enumerate(snapshot.parameters)}
            known = [(i, places[name]) for i, name in enumerate(names) if name in places]
            row[[i for i, _ in known]] = values[[j for _, j in known]]
    return out


def matrix_ratios(evidence: Evidence) -> Floats:
    """Return update over weight of the matrices, shape ``[snapshots, matrices]``; NaN where nothing can be said.

    A matrix that began at zero has no ratio at first and a large one for long; one whose gradient was zero did not
    step because it could not; and a step that wrote NaN is not a large one. All three are left out.
    """
    columns = evidence.matrices
    ratios = table(evidence, evidence.snapshots, "update_ratio")[:, columns]
    first = [evidence.first_snapshot] if evidence.first_snapshot else []
    from_zero = (table(evidence, first, "weight_norm")[:, columns] == 0).any(axis=0)
    return np.where((ratios > 0) & np.isfinite(ratios) & ~from_zero, ratios, np.nan)


def middle(values: Floats) -> Floats:
    """Return the lower median of what is known in each row; NaN where nothing is.

    Example:
        >>> middle(np.array([[3.0, np.nan, 1.0, np.inf], [np.nan] * 4])).tolist()
        [3.0, nan]
    """
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    known = (~np.isnan(values)).sum(axis=1)
    ordered = np.sort(values, axis=1)  # NaN is sorted to the end
    return np.asarray(ordered[np.arange(len(values)), np.maximum(known - 1, 0) // 2])
