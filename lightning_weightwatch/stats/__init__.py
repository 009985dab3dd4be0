"""What is measured: one file per statistic; tensors in, mergeable partials out.

A statistic never sees a rank, a Trainer or a name. Every public file here defines ``STATISTIC`` and is found by its
file name; ``measure`` and ``read`` run several of them at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import Tensor

from lightning_weightwatch import _folder
from lightning_weightwatch.stats._base import Merge, Partials, Statistic, precise

__all__ = ["Merge", "Partials", "Statistic", "all_statistics", "measure", "merges", "precise", "read"]


def all_statistics() -> dict[str, Statistic]:
    """Return every statistic of this folder by name."""
    return _folder.members(sys.modules[__name__], "STATISTIC")


def measure(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Measure several statistics of the same tensors; partials are keyed ``statistic/partial``."""
    known = all_statistics()
    return {f"{name}/{key}": part for name in names for key, part in known[name].measure(tensors).items()}


def merges(names: Sequence[str]) -> dict[str, Merge]:
    """Return how each partial that ``measure`` gives is merged."""
    known = all_statistics()
    return {f"{name}/{key}": merge for name in names for key, merge in known[name].partials.items()}


def read(names: Sequence[str], partials: Partials) -> dict[str, Tensor]:
    """Turn what ``measure`` gave, merged or not, into read-outs by their own names."""
    known = all_statistics()
    out: dict[str, Tensor] = {}
    for name in names:
        out |= known[name].read({key: partials[f"{name}/{key}"] for key in known[name].partials})
    return out
