"""The smallest and the largest finite element of every tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weightwatch.stats._base import Partials, Statistic, precise, rows


def measure(tensors: Sequence[Tensor]) -> Partials:
    """Return the least and the greatest finite element per tensor, shape ``[P]``.

    A tensor without finite elements gives +Inf and -Inf, which any other piece replaces when they are merged.
    """
    return rows([_of_one(t) for t in tensors], STATISTIC.partials)


def read(partials: Partials) -> dict[str, Tensor]:
    """Return minimum, maximum and largest magnitude; NaN where there was no finite element."""
    low, high = partials["least"], partials["greatest"]
    nothing = low > high
    return {
        "min": low.masked_fill(nothing, math.nan),
        "max": high.masked_fill(nothing, math.nan),
        "abs_max": torch.maximum(low.abs(), high.abs()).masked_fill(nothing, math.nan),
    }


def _of_one(tensor: Tensor) -> Partials:
    wide = precise(tensor)
    if tensor.numel() == 0:
        return {
            "least": torch.full((), math.inf, dtype=wide, device=tensor.device),
            "greatest": torch.full((), -math.inf, dtype=wide, device=tensor.device),
        }
    if tensor.device.type == "cpu":  # elsewhere looking at the result would wait for the device
        low, high = torch.aminmax(tensor)
        if low.isfinite() and high.isfinite():
            return {"least": low.to(wide), "greatest": high.to(wide)}
    finite = tensor.isfinite()
    return {
        "least": torch.where(finite, tensor, math.inf).min().to(wide),
        "greatest": torch.where(finite, tensor, -math.inf).max().to(wide),
    }


STATISTIC = Statistic(
    partials={"least": "min", "greatest": "max"},
    units={"min": "unit of the tensor", "max": "unit of the tensor", "abs_max": "unit of the tensor"},
    measure=measure,
    read=read,
)
