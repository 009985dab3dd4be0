"""Units that no gradient reaches: how many steps in a row the gradient of each was exactly zero.

The gradient of a unit's bias is the sum of what comes back to it over the batch, and exactly zero where the unit was
silent for all of it. That needs no forward hook and costs next to nothing, as biases are small. A layer without a bias
is judged by the rows of its weight, if that is small enough to be read on every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_weightwatch.parameters import Parameter

STEPS = 20  # in a row: a unit that is merely seldom active was active in one of so many batches
_SMALL = 65_536  # elements of a weight whose rows are looked at


class UnitMeter:
    """Counts, for every unit, the measured steps in a row without a gradient.

    Args:
        parameters: All that is watched.
        held: What this process holds of each.
        device: Where the counts are.

    Attributes:
        columns: Which of the parameters have units, ascending.

    Example:
        >>> from lightning_weightwatch.parameters import describe
        >>> layer = torch.nn.Linear(3, 2)
        >>> meter = UnitMeter(describe(layer), list(layer.parameters()), torch.device("cpu"))
        >>> for _ in range(20):
        ...     meter.add([1], [torch.tensor([0.0, 1.0])])
        >>> meter.dead(2)
        tensor([nan, 1.])
    """

    def __init__(self, parameters: Sequence[Parameter], held: Sequence[Tensor], device: torch.device) -> None:
        # Flat shards of matrices have no rows.
        self.columns = [i for i in _with_units(parameters) if held[i].dim() >= len(parameters[i].shape)]
        self._sizes = {i: held[i].shape[0] for i in self.columns}
        starts = list(accumulate(self._sizes.values(), initial=0))
        self._place = {i: (starts[k], starts[k + 1]) for k, i in enumerate(self.columns)}
        self._streaks = torch.zeros(starts[-1], dtype=torch.int32, device=device)
        self._ends = torch.tensor(list(self._place.values()), dtype=torch.int64).reshape(-1, 2).to(device)
        self._index = torch.tensor(self.columns, dtype=torch.int64).to(device)

    def add(self, columns: Sequence[int], gradients: Sequence[Tensor]) -> None:
        """Take note of gradients, one for each of ``columns``; those of parameters without units are passed over."""
        pairs = zip(columns, gradients, strict=True)
        known = [(i, g) for i, g in pairs if i in self._place and g.dim() and g.shape[0] == self._sizes[i]]
        if not known:
            return
        known.sort(key=lambda pair: pair[0])  # an optimizer holds its parameters in an order of its own
        silent = torch.cat([_sizes_of_rows(g) for _, g in known]) == 0
        if len(known) == len(self.columns):
            self._streaks.add_(1).mul_(silent)
            return
        sizes = [self._sizes[i] for i, _ in known]
        for (i, _), part in zip(known, silent.split(sizes), strict=True):
            streak = self._streaks[slice(*self._place[i])]
            streak.copy_((streak + 1) * part)

    def dead(self, parameters: int) -> Tensor:
        """Return how many units had no gradient in each of the last ``STEPS`` steps, shape ``[parameters]``.

        NaN for parameters that are not looked at.
        """
        found = torch.full((parameters,), torch.nan, dtype=torch.float32, device=self._streaks.device)
        if self.columns:
            reached = torch.cat([self._streaks.new_zeros(1), (self._streaks >= STEPS).int().cumsum(0)]).float()
            found[self._index] = reached[self._ends[:, 1]] - reached[self._ends[:, 0]]
        return found


def unit_counts(parameters: Sequence[Parameter]) -> NDArray[np.float64]:
    """Return the number of units of each parameter that is looked at, shape ``[P]``; NaN for the others."""
    counts = np.full(len(parameters), np.nan)
    for i in _with_units(parameters):
        counts[i] = parameters[i].shape[0]
    return counts


def _sizes_of_rows(gradient: Tensor) -> Tensor:
    """Return a number for each unit that is zero where its whole gradient is, and only there."""
    return gradient if gradient.dim() == 1 else gradient.flatten(1).abs().sum(dim=1)


def _with_units(parameters: Sequence[Parameter]) -> list[int]:
    """Return the biases, and of layers that have none, the small weights; what is trained sparsely is left out.

    A layer that a norm follows has its units' biases there.
    """
    biased = {p.layer for p in parameters if _is_units_bias(p)}
    followed = {one.name for one, other in pairwise(parameters) if other.kind == "norm"}
    return [
        i
        for i, p in enumerate(parameters)
        if _is_units_bias(p) or (p.is_matrix and p.layer not in biased and p.name not in followed and p.numel <= _SMALL)
    ]


def _is_units_bias(parameter: Parameter) -> bool:
    return parameter.kind == "bias" and len(parameter.shape) == 1
