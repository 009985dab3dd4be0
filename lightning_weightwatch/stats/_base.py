"""What a statistic is: partials that merge, and read-outs made of merged partials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

Merge = Literal["sum", "max", "min"]
Partials = dict[str, Tensor]
Value = TypeVar("Value")


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


def keyed(named: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """Return what several statistics say of their partials in one dict, keyed ``statistic/partial``."""
    return {f"{name}/{key}": value for name, values in named.items() for key, value in values.items()}
