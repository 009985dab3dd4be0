"""The l2 norm of every tensor, cheap enough to be taken on every step.

One multi-tensor call. On a CPU a norm accumulated in float64 costs about 18 times the float32 one, so float32 goes
first and only the tensors whose squares may have left float32's range (below 1e-15 or not finite) are taken again in
float64. On other devices such a choice would have to wait for the device, so float64 is used throughout there
(float32 on MPS, which has nothing wider).

A norm is not finite if and only if an element is not finite (or a float64 element lies beyond 1e154).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_weightwatch.stats._base import Partials, Statistic, precise
from lightning_weightwatch.stats._rows import flattened, on_host

_ROW = 1 << 12  # elements whose float32 sum of squares keeps five digits, also if all are equal; of 262,144 it is four
_SQUARES_UNDERFLOW = 1e-15  # squares of smaller float32 elements begin to vanish; 1.4e-45 is the least float32


def measure(tensors: Sequence[Tensor]) -> Partials:
    """Return the sum of squares of each tensor, shape ``[P]``, float64; 0 for an empty tensor."""
    if not tensors:
        return {"sum_sq": torch.zeros(0, dtype=torch.float64)}
    norms = _norms_on_cpu(tensors) if on_host(tensors) else _norms(tensors)
    return {"sum_sq": norms.square()}


def read(partials: Partials) -> dict[str, Tensor]:
    """Return the l2 norm of each tensor, shape ``[P]``."""
    return {"l2": partials["sum_sq"].sqrt()}


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    wide = precise(tensors[0])
    norms = torch._foreach_norm(list(tensors), 2, dtype=wide)  # noqa: SLF001 - torch's own clipping is built on it
    return torch.stack([n.to(tensors[0].device) for n in norms])


def _norms_on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    parts, owners = _norms_of_parts(tensors)
    squares = np.bincount(owners, weights=parts.square().numpy(), minlength=len(tensors))
    # Of many parts that are each too small none may be believed.
    norms, least = np.sqrt(squares), _SQUARES_UNDERFLOW * np.sqrt(np.bincount(owners, minlength=len(tensors)))
    for i in np.flatnonzero((norms < least) | ~np.isfinite(norms)).tolist():
        norms[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64)
    return torch.from_numpy(norms)


def _norms_of_parts(tensors: Sequence[Tensor]) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the norms of rows of large tensors, of what these leave over and of small ones, and whose each is."""
    norms, owners, counts = list[Tensor](), list[int](), list[int]()
    small: dict[torch.dtype, dict[int, Tensor]] = defaultdict(dict)
    for i, tensor in enumerate(tensors):
        if tensor.numel() <= 2 * _ROW:
            small[tensor.dtype][i] = tensor
            continue
        flat = flattened(tensor)
        rows = flat.unfold(0, _ROW, _ROW)
        norms.append(torch.linalg.vector_norm(rows, dim=1, dtype=_at_least_single(flat.dtype)))
        owners.append(i)
        counts.append(len(rows))
        if rows.numel() < flat.numel():
            small[flat.dtype][i] = flat[rows.numel() :]
    for dtype, pieces in small.items():
        found = torch._foreach_norm(list(pieces.values()), 2, dtype=_at_least_single(dtype))  # noqa: SLF001 - as above
        norms.append(torch.stack(found))
        owners += pieces
        counts += [1] * len(pieces)
    return torch.cat(norms).double(), np.repeat(owners, counts)


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Return the type to take a norm in; one of half precision would be rounded to half precision."""
    return torch.promote_types(dtype, torch.float32)


STATISTIC = Statistic(
    partials={"sum_sq": "sum"},
    units={"l2": "unit of the tensor"},
    measure=measure,
    read=read,
)
