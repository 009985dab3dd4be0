"""What is measured: one file per statistic; tensors in, mergeable partials out.

A statistic never sees a rank, a Trainer or a name. Every public file here defines ``STATISTIC`` and is found by its
file name; ``measure`` and ``read`` run several of them at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

from torch import Tensor

from lightning_weightwatch import _folder
from lightning_weightwatch.stats._base import Merge, Partials, Statistic, keyed, precise
from lightning_weightwatch.stats._rows import ByRows, joined

__all__ = ["Merge", "Partials", "Statistic", "all_statistics", "measure", "merges", "precise", "read"]


def all_statistics() -> dict[str, Statistic]:
    """Return every statistic of this folder by name."""
    return dict(_found())


def measure(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Measure several statistics of the same tensors; partials are keyed ``statistic/partial``.

    Those that measure by rows look at each row in turn, so that its elements are fetched once.
    """
    measures = {name: statistic.measure for name, statistic in _found().items() if name in names}
    rows = {name: one for name, one in measures.items() if isinstance(one, ByRows)}
    found = {name: one(tensors) for name, one in measures.items() if name not in rows}
    return keyed(found) | (joined(rows)(tensors) if rows else {})


def merges(names: Sequence[str]) -> dict[str, Merge]:
    """Return how each partial that ``measure`` gives is merged."""
    known = _found()
    return keyed({name: known[name].partials for name in names})


def read(names: Sequence[str], partials: Partials) -> dict[str, Tensor]:
    """Turn what ``measure`` gave, merged or not, into read-outs by their own names."""
    known = _found()
    out: dict[str, Tensor] = {}
    for name in names:
        out |= known[name].read({key: partials[f"{name}/{key}"] for key in known[name].partials})
    return out


@cache
def _found() -> dict[str, Statistic]:
    return _folder.members(sys.modules[__name__], "STATISTIC")
