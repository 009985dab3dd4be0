"""Whether numbers are finite, and which tensors there are to ask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weightwatch.parameters import unmeasurable, values

Number = Literal["NaN", "Inf", "-Inf"]

_WORST_FIRST: tuple[Number, ...] = ("NaN", "Inf", "-Inf")
_DEPTH = 6  # a batch is no deeper; a thing that holds itself has no end


def number_in(tensor: Tensor) -> Number | None:
    """Return the worst number in a tensor, or ``None`` where all are finite or there are none; waits for the device.

    Example:
        >>> number_in(torch.tensor([1.0, math.inf, -math.inf]))
        'Inf'
    """
    if tensor.is_nested or unmeasurable(tensor) is not None:
        return None
    held = values(tensor)
    if not held.numel():
        return None
    least, most = (end.item() for end in torch.aminmax(held))  # both are NaN where one element is
    if math.isnan(least):
        return "NaN"
    if most == math.inf:
        return "Inf"
    return "-Inf" if least == -math.inf else None


def worst(numbers: Iterable[Number | None]) -> Number | None:
    """Return the worst of several answers of ``number_in``."""
    found = set(numbers)
    return next((number for number in _WORST_FIRST if number in found), None)


def share_of(tensor: Tensor) -> str:
    """Say how many elements are not finite.

    Example:
        >>> share_of(torch.tensor([1.0, math.nan]))
        '1 of 2 numbers'
    """
    held = values(tensor)
    return f"{int((~torch.isfinite(held)).sum())} of {held.numel()} numbers"


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no tensor holds NaN or Inf; waits once for each device and kind of number among them.

    Example:
        >>> all_finite([torch.ones(3), None, torch.tensor([1e38, 1e38])])
        True
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None and not tensor.is_nested and unmeasurable(tensor) is None:
            held = values(tensor)
            if held.numel():
                alike.setdefault((held.device, held.dtype), []).append(held)
    # Squares may overflow, so only a norm that is finite says it all; the largest magnitude takes longer.
    return all(_finite_norms(held, 2) or _finite_norms(held, math.inf) for held in alike.values())


def _finite_norms(tensors: list[Tensor], order: float) -> bool:
    norms = torch.stack(torch._foreach_norm(tensors, order))  # noqa: SLF001 - there is no other name for it
    return bool(torch.isfinite(norms).all())


def tensors_in(
    value: Any, path: str = "", depth: int = _DEPTH, *, inside: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested containers with its path.

    Args:
        value: Tensors, mappings, lists, tuples, dataclasses.
        path: The words for ``value`` itself.
        depth: How many containers deep to look.
        inside: Look into other objects too, as batches of graphs are.

    Example:
        >>> [path for path, _ in tensors_in({"x": [torch.ones(1)]}, "batch")]
        ["batch['x'][0]"]
    """
    if isinstance(value, Tensor):
        yield path, value
    elif depth:
        for key, item in _items(value, inside):
            yield from tensors_in(item, f"{path}{key}", depth - 1, inside=inside)


def _items(value: Any, inside: bool) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{i}]", item) for i, item in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name, None)) for field in dataclasses.fields(value))
    elif inside and hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        yield from ((f".{key}", item) for key, item in vars(value).items())


def first_sick(named: Iterable[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """Return the name of the first tensor that holds NaN or Inf, and the words for it; ``None`` if none does.

    Example:
        >>> first_sick([("a", torch.ones(2)), ("b", torch.tensor([1.0, math.nan]))])
        ('b', 'b holds NaN (1 of 2 numbers)')
    """
    for name, tensor in named:
        if number := number_in(tensor):
            return name, f"{name} holds {number} ({share_of(tensor)})"
    return None
