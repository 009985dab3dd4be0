"""Size, centre and spread of every tensor, with zeros and non-finite elements counted apart.

Non-finite elements are counted and otherwise left out, so that one Inf does not hide the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weightwatch.stats._base import Partials, Statistic, precise, rows


def measure(tensors: Sequence[Tensor]) -> Partials:
    """Return per tensor the number of finite elements, their sum and sum of squares, and how many were 0 or not finite.

    Every partial has shape ``[P]`` and is float64 (float32 on MPS).
    """
    return rows([_of_one(t) for t in tensors], STATISTIC.partials)


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


def _of_one(tensor: Tensor) -> Partials:
    wide = precise(tensor)
    finite = tensor.isfinite()
    kept = torch.where(finite, tensor, 0).to(wide)
    count = finite.sum(dtype=wide)
    return {
        "count": count,
        "sum": kept.sum(),
        "sum_sq": kept.square().sum(),
        "nonfinite": tensor.numel() - count,
        "zeros": (tensor == 0).sum(dtype=wide),
    }


STATISTIC = Statistic(
    partials={"count": "sum", "sum": "sum", "sum_sq": "sum", "nonfinite": "sum", "zeros": "sum"},
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
