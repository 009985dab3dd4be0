"""Tensors that break naive statistics, and the merging of what was measured in pieces."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weightwatch.stats import Partials, Statistic


def _normal(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


HOSTILE = {
    "plain": _normal(7, 5),
    "one NaN": torch.tensor([1.0, math.nan, -2.0, 0.0, 3.0]),
    "both Infs": torch.tensor([math.inf, 1.0, -math.inf, 2.0]),
    "all NaN": torch.full((6,), math.nan),
    "empty": torch.empty(0),
    "empty matrix": torch.empty(3, 0),
    "one element": torch.tensor([[-4.0]]),
    "no dimension": torch.tensor(2.5),
    "zeros": torch.zeros(9),
    "bfloat16": _normal(33).bfloat16(),
    "float16 whose squares overflow": torch.tensor([6e4, -6e4, 3e4, 1.0], dtype=torch.float16),
    "float16 whose squares vanish": torch.full((50,), 6e-8, dtype=torch.float16),
    "1e-25": _normal(40, scale=1e-25),
    "1e25": _normal(40, scale=1e25),
    "subnormal": torch.tensor([1e-40, -1e-44, 3e-39, 0.0]),
    "transposed": _normal(6, 4).T,
    "strided": _normal(30)[::3],
    "broadcast": torch.tensor([1.0, 2.0]).expand(3, 2),
    "float64": _normal(11).double(),
    "float64 beyond float32": torch.tensor([1e60, -1e100, 1e-70, 1.0], dtype=torch.float64),
}


def merged(statistic: Statistic, parts: Sequence[Partials]) -> Partials:
    """Merge the partials of pieces as the statistic declares it."""
    ways = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}
    return {
        name: functools.reduce(ways[way], [part[name] for part in parts]) for name, way in statistic.partials.items()
    }
