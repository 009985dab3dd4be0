"""Size, centre and spread of every tensor, with zeros and non-finite elements counted apart.

Non-finite elements are counted and otherwise left out, so that one Inf does not hide the rest.

Sums are taken in float64: a spread of 0.1 around a mean of 1,000 would be lost in float32. On a CPU non-finite elements
are searched for only where the sum of squares shows that there are some; elsewhere such a choice would have to wait for
the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_weightwatch.stats._base import Partials, Statistic, precise
from lightning_weightwatch.stats._rows import ByRows, Scratch


def read(partials: Partials) -> dict[str, Tensor]:
    """Return mean, standard deviation (of the population), root mean square, and the shares of zeros and non-finites.

    A tensor without finite elements has no mean: its read-outs are NaN, never a made-up zero.
    """
    count = partials["count"]
    mean, mean_sq = partials["sum"] / count, partials["sum_sq"] / count
    everything = count + partials["nonfinite"]
    return {
        "mean": mean,
        "std": (mean_sq - mean.square()).clamp(min=0).sqrt(),
        "rms": mean_sq.sqrt(),
        "zero_share": partials["zeros"] / everything,
        "nonfinite": partials["nonfinite"],
    }


def _of_finite(matrix: Tensor, scratch: Scratch) -> Partials:
    wide = scratch.copy(matrix, "wide", precise(matrix))
    return {
        "count": scratch.same(matrix, matrix.shape[1]),
        "sum": wide.sum(1),
        "sum_sq": wide.square_().sum(1),
        "nonfinite": scratch.same(matrix, 0),
        "zeros": _zeros(matrix, scratch),
    }


def _of_any(matrix: Tensor, scratch: Scratch) -> Partials:
    """Measure with zeros in the place of what is not finite, and take those out of the count."""
    kept = torch.nan_to_num(matrix, 0.0, 0.0, 0.0, out=scratch.like(matrix, "kept"))
    found, zeros = _of_finite(kept, scratch), _zeros(matrix, scratch)
    nonfinite = found["zeros"] - zeros
    return {**found, "count": found["count"] - nonfinite, "nonfinite": nonfinite, "zeros": zeros}


def _zeros(matrix: Tensor, scratch: Scratch) -> Tensor:
    if not matrix.is_cpu:
        return (matrix == 0).sum(1)
    # Zeros as numbers of their own type, and then a sum, take a third of the time of ``count_nonzero``.
    marks = torch.eq(matrix, 0, out=scratch.like(matrix, "zeros"))
    return marks.sum(1, dtype=torch.promote_types(matrix.dtype, torch.float32))


measure = ByRows(
    merges={"count": "sum", "sum": "sum", "sum_sq": "sum", "nonfinite": "sum", "zeros": "sum"},
    of_finite=_of_finite,
    of_any=_of_any,
)
STATISTIC = Statistic(
    partials=measure.merges,
    units={
        "mean": "unit of the tensor",
        "std": "unit of the tensor",
        "rms": "unit of the tensor",
        "zero_share": "share of elements, 0 to 1",
        "nonfinite": "number of elements",
    },
    measure=measure,
    read=read,
)
