"""The smallest and the largest finite element of every tensor.

A tensor without finite elements has the partials +Inf and -Inf, which any other piece replaces when they are merged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_weightwatch.stats._base import Partials, Statistic
from lightning_weightwatch.stats._rows import ByRows, Scratch


def read(partials: Partials) -> dict[str, Tensor]:
    """Return minimum, maximum and largest magnitude; NaN where there was no finite element."""
    low, high = partials["least"], partials["greatest"]
    nothing = low > high
    return {
        "min": low.masked_fill(nothing, math.nan),
        "max": high.masked_fill(nothing, math.nan),
        "abs_max": torch.maximum(low.abs(), high.abs()).masked_fill(nothing, math.nan),
    }


def _of_finite(matrix: Tensor, _: Scratch) -> Partials:
    return {"least": matrix.amin(1), "greatest": matrix.amax(1)}


def _of_any(matrix: Tensor, scratch: Scratch) -> Partials:
    kept = scratch.like(matrix, "kept")
    return {
        "least": torch.nan_to_num(matrix, math.inf, math.inf, math.inf, out=kept).amin(1),
        "greatest": torch.nan_to_num(matrix, -math.inf, -math.inf, -math.inf, out=kept).amax(1),
    }


measure = ByRows(merges={"least": "min", "greatest": "max"}, of_finite=_of_finite, of_any=_of_any)
STATISTIC = Statistic(
    partials=measure.merges,
    units={"min": "unit of the tensor", "max": "unit of the tensor", "abs_max": "unit of the tensor"},
    measure=measure,
    read=read,
)
