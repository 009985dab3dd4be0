"""Which dimension of a layer's output has its units, and which its samples; the others are places of a sample.

A tensor alone does not tell: it takes the function that made it, and on which side of it the weight stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SEQUENCES = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


@dataclass(frozen=True)
class Axes:
    """Dimensions of a layer's output, and of what went in.

    Attributes:
        unit: Its units.
        sample: Its samples; ``None`` where it is all of one.
        incoming: The units of what went in, counted from the end.
    """

    unit: int
    sample: int | None = 0
    incoming: int = -1


def axes_of(function: str, args: Sequence[Any], dims: int, *, weight: int, other: int) -> Axes:
    """Return the dimensions of the output of a call.

    Args:
        function: Its name in torch.
        args: Its arguments.
        dims: How many dimensions its output has.
        weight: The place of the weight among its tensors.
        other: The place of what goes in.

    Example:
        >>> axes_of("conv2d", (), 4, weight=1, other=0)
        Axes(unit=1, sample=0, incoming=-3)
        >>> axes_of("einsum", ("bsi,oi->bos",), 3, weight=1, other=0)
        Axes(unit=1, sample=0, incoming=-1)
    """
    last = dims - 1
    if function.startswith("conv"):
        places = int(function[-2])
        return Axes(last - places, 0 if last > places else None, -1 - places)
    if function == "multi_head_attention_forward":  # whose modules put the sequence first
        return Axes(last, 1 if last > 1 else None)
    if function in _SEQUENCES and last > 1:
        return Axes(last, 0 if args[-1] is True else 1)  # whether the batch is first
    if function == "einsum" and isinstance(args[0], str) and "->" in args[0]:
        return _of_einsum(args[0], last, weight, other)
    if function in ("matmul", "mm", "bmm", "addmm", "__matmul__") and weight < other:
        return Axes(last - 1, 0 if last > 1 else 1, -2)
    return Axes(last)


def _of_einsum(equation: str, last: int, weight: int, other: int) -> Axes:
    """Units are what the weight alone brings; what went in has those that are summed over."""
    given, out = equation.replace(" ", "").replace("...", ".").split("->")
    mine, theirs = (given.split(",")[place] for place in (weight, other))
    brought = [i - len(out) for i, letter in enumerate(out) if letter in mine and letter not in theirs]
    summed = [i - len(theirs) for i, letter in enumerate(theirs) if letter in mine and letter not in out]
    unit = last + 1 + (brought or [-1])[-1]
    return Axes(unit, 0 if unit else last, (summed or [-1])[-1])
