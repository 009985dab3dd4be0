"""The scale of what a batch brings, per feature, on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_weightwatch.parameters import is_plain

_MOST = 4  # tensors of one batch
_WIDE = 32  # parts of a batch, and of each of its parts, that are looked at
_DEEP = 6  # parts of parts


@dataclass(frozen=True)
class InputNumbers:
    """What was measured of one tensor; each value a scalar on its device."""

    features: int
    names: list[str]
    values: list[Tensor]


def float_tensors(batch: Any) -> list[tuple[str, Tensor]]:
    """Return the first plain tensors of real numbers in a batch, each with its place.

    Example:
        >>> [name for name, _ in float_tensors({"image": torch.zeros(2), "label": torch.tensor(1)})]
        ["batch['image']"]
    """
    return list(islice(_tensors(batch, "batch", 0), _MOST))


def _tensors(part: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(part, Tensor):
        if is_plain(part) and not part.is_nested and part.numel() > 1:
            yield name, part
        return
    inner: Any = ()
    if depth < _DEEP and isinstance(part, Mapping):
        inner = part.items()
    elif depth < _DEEP and isinstance(part, (list, tuple)):
        inner = enumerate(part)
    for key, one in islice(inner, _WIDE):
        yield from _tensors(one, f"{name}[{key!r}]", depth + 1)


def input_numbers(tensor: Tensor) -> InputNumbers:
    """Measure a tensor of inputs; features are the channels of images, else the last dimension.

    Elements that are not finite are counted and left out. A single sample per feature has no spread: NaN.
    """
    x = tensor.detach()
    x = x if x.dtype is torch.float64 else x.float()
    unit = 1 if x.dim() > 3 else x.dim() - 1
    rows = x.reshape(1, -1) if x.dim() < 2 else x.transpose(0, unit).flatten(1)
    finite = rows.isfinite()
    kept = torch.where(finite, rows, torch.zeros_like(rows))
    count = finite.sum(dim=1).clamp(min=1)
    mean = kept.sum(dim=1) / count
    std = (torch.where(finite, rows - mean[:, None], torch.zeros_like(rows)).square().sum(dim=1) / count).sqrt()
    least = 1e-6 * kept.abs().amax(dim=1)  # what is left of a constant by rounding
    varies = std > least
    inf = torch.full_like(std, torch.inf)
    smallest = torch.where(varies, std, inf).amin()
    every = finite.sum().clamp(min=1)
    overall = kept.sum() / every
    variance = torch.where(finite, rows - overall, torch.zeros_like(rows)).square().sum() / every
    values = {
        "mean": overall,
        "std": variance.sqrt(),
        "abs_max": kept.abs().amax(),
        "largest_std": std.amax(),
        "spread": torch.where(smallest.isfinite(), std.amax() / smallest, torch.full_like(smallest, torch.nan)),
        "offset": torch.where(varies, mean.abs() / std, torch.zeros_like(std)).amax(),
        "nonfinite": (~finite).sum().float(),
    }
    return InputNumbers(int(rows.shape[0]), list(values), list(values.values()))
