"""Size, centre and spread of every tensor, with zeros and non-finite elements counted apart.

Non-finite elements are counted and otherwise left out, so that one Inf does not hide the rest.

Sums are taken in float64: a spread of 0.1 around a mean of 1,000 would be lost in float32. On a CPU tensors are taken
in pieces that fit the cache, and non-finite elements are searched for only where the sum of squares shows that there
are some; elsewhere such a choice would have to wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weightwatch.stats._base import Partials, Statistic, precise, rows

_PIECE = 1 << 16  # elements: half a megabyte in float64


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
    if tensor.device.type != "cpu":
        return _searched(tensor)
    parts = [_of_piece(piece) for piece in tensor.reshape(-1).split(_PIECE)]
    return {name: torch.stack([part[name] for part in parts]).sum() for name in STATISTIC.partials}


def _of_piece(piece: Tensor) -> Partials:
    wide = piece.double()
    sum_sq = torch.dot(wide, wide)
    if not sum_sq.isfinite():
        return _searched(piece)
    count = torch.tensor(piece.numel(), dtype=torch.float64)
    zeros = count - torch.count_nonzero(piece)
    return {"count": count, "sum": wide.sum(), "sum_sq": sum_sq, "nonfinite": torch.zeros_like(count), "zeros": zeros}


def _searched(tensor: Tensor) -> Partials:
    """Measure a tensor that may hold non-finite elements."""
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
