"""What activations are asked: which dimension has the units, what a few elements tell, which units are silent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_weightwatch.parameters import is_plain

ENOUGH = 65_536  # elements that a spread is measured of


def option(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    """Return an argument of a call, however it was given."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def readable(tensor: Any) -> bool:
    """Whether it is a plain tensor of real numbers; of a distributed one, a number would be a collective."""
    return isinstance(tensor, Tensor) and is_plain(tensor) and not tensor.is_nested and min(tensor.shape, default=0) > 0


def spread(tensor: Any) -> Tensor | None:
    """Return the standard deviation of a tensor, of some of its elements; ``None`` where there is none."""
    if not readable(tensor) or tensor.numel() < 2:
        return None
    found: Tensor = some(tensor.detach()).float().std()
    return found


def some(tensor: Tensor) -> Tensor:
    """Return at most ``ENOUGH`` elements, taken evenly: what is told of them all changes in its third digit."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.flatten()
    step = -(-flat.numel() // ENOUGH)
    while math.gcd(step, flat.numel()) > 1:  # or it would keep to some channels or columns
        step += 1
    return flat[::step]


def largest(tensor: Tensor, unit: int | None) -> Tensor:
    """Return the largest element of each unit; of none below zero it is 0 where all are."""
    others = [d for d in range(tensor.dim()) if d != unit]
    return tensor.amax(dim=others) if others else tensor


def unit_of(tensor: Tensor, matrix: tuple[int, ...]) -> int | None:
    """Return the dimension of the units: as long as the matrix before has outputs; else channels, or the last.

    ``None`` where all elements are of one unit: its dimension may have been taken away.
    """
    last = tensor.dim() - 1
    usual = min(1, last) if tensor.dim() > 3 or len(matrix) > 2 else last
    outputs = matrix[:2] if len(matrix) > 2 else matrix[:1]  # transposed convolutions have them second
    is_one = last == 0 or matrix[:1] == (1,)
    return next((d for d in (usual, last) if tensor.shape[d] in outputs), None if is_one else usual)
