"""What processes that should agree differ in: the copies of the weights, and whose loss broke.

Each process writes into a slot of its own in a row of zeros; adding the rows up puts all slots side by side. So one
SUM tells every process what each of them has.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_weightwatch import reduce

COPIES = ("copy_norm", "copy_square", "copy_known", "copy_sum", "copy_count")
SAME = 1e-6  # relative; norms are good to seven digits


class ReplicaMeter:
    """Lays out what this process has, to be added up over all.

    Example:
        >>> ReplicaMeter().losses(torch.tensor([0.5, float("nan")]), torch.tensor([6.0, 7.0]))
        {'broken_loss': tensor([8.])}
    """

    def losses(self, losses: Tensor, steps: Tensor) -> dict[str, Tensor]:
        """Return the first step (from 1) whose loss is not finite, in the slot of this process; 0 if there is none."""
        never = torch.full_like(steps, torch.inf)
        first = torch.where(losses.isfinite(), never, steps + 1).amin()
        return {"broken_loss": _slot(torch.where(first.isfinite(), first, torch.zeros_like(first)))}

    def weights(self, squares: Tensor, known: Tensor) -> dict[str, Tensor]:
        """Return the partials of ``COPIES``: means of norms, of squares and of what is known, and each process's sums.

        Args:
            squares: Squared norms, shape ``[P]``.
            known: 1 where a norm was measured in this process, else 0.
        """
        share = 1.0 / reduce.world_size()
        norms = squares.double().sqrt()
        means = {"copy_norm": norms * share, "copy_square": squares.double() * share, "copy_known": known * share}
        return means | {"copy_sum": _slot(norms.sum()), "copy_count": _slot(known.sum())}


def broken_losses(slots: NDArray[np.float64]) -> dict[int, int]:
    """Return the first step of each process whose loss was not finite.

    Example:
        >>> broken_losses(np.array([0.0, 8.0]))
        {1: 7}
    """
    return {rank: int(step) - 1 for rank, step in enumerate(slots) if step > 0}


def spread(found: Mapping[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Return by how much the copies of each parameter differ, and whose copy is not that of the majority.

    What a process has not measured, as it left out the step, is not compared.

    Returns:
        The standard deviation of its norm over processes, relative to their mean, shape ``[P]``, NaN where not all have
        measured it; and the odd processes.
    """
    mean, square, sums = found["copy_norm"], found["copy_square"], found["copy_sum"]
    broken = ~np.isfinite(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.sqrt(np.maximum(square - mean**2, 0.0)) / mean
    relative = np.where(relative > 1e-7, relative, 0.0)  # a difference of equal numbers is known to half their digits
    if broken.any() and not broken.all():
        relative = np.where(np.isfinite(mean), relative, np.inf)
    relative = np.where(found["copy_known"] > 1 - 1e-9, relative, np.nan)
    if np.ptp(found["copy_count"]) > 0:
        return relative, ()
    typical = np.median(np.where(broken, np.inf, sums))
    odd: list[int] | NDArray[np.int64] = (
        np.flatnonzero(~(np.abs(sums - typical) <= SAME * np.abs(typical))) if np.isfinite(typical) else []
    )
    ranks = tuple(int(rank) for rank in odd)
    return relative, ranks if 2 * len(ranks) < len(sums) else ()


def _slot(number: Tensor) -> Tensor:
    slots = torch.zeros(reduce.world_size(), dtype=number.dtype, device=number.device)
    slots[reduce.rank()] = number
    return slots
