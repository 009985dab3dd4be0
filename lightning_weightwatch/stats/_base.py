"""What a statistic is: partials that merge, and read-outs made of merged partials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Merge = Literal["sum", "max", "min"]
Partials = dict[str, Tensor]


@dataclass(frozen=True)
class Statistic:
    """A measurement that gives the same answer however its tensors are cut into pieces.

    Attributes:
        partials: How each partial of two pieces is merged into that of the whole.
        units: The unit of each read-out.
        measure: Takes plain local tensors, gives partials of shape ``[P]`` or ``[P, bins]``, one row per tensor.
            Never reads a number back to the host.
        read: Takes merged partials, gives read-outs of shape ``[P]``.
    """

    partials: Mapping[str, Merge]
    units: Mapping[str, str]
    measure: Callable[[Sequence[Tensor]], Partials]
    read: Callable[[Partials], dict[str, Tensor]]


def precise(tensor: Tensor) -> torch.dtype:
    """Return the widest float the tensor's device has: float64, or float32 on Apple's MPS."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def rows(parts: Sequence[Partials], names: Mapping[str, Merge]) -> Partials:
    """Stack one small dict per tensor into one dict of stacked partials, on the device of the first tensor."""
    if not parts:
        return {name: torch.zeros(0, dtype=torch.float64) for name in names}
    return {name: torch.stack([part[name].to(parts[0][name].device) for part in parts]) for name in names}
