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

import torch
from torch import Tensor

from lightning_weightwatch.stats._base import Partials, Statistic, precise
from lightning_weightwatch.stats._rows import flattened

_ROW = 1 << 12  # elements whose float32 sum of squares keeps five digits, also if all are equal; of 262,144 it is four
_SQUARES_UNDERFLOW = 1e-15  # squares of smaller float32 elements begin to vanish; 1.4e-45 is the least float32


def measure(tensors: Sequence[Tensor]) -> Partials:
    """Return the sum of squares of each tensor, shape ``[P]``, float64; 0 for an empty tensor."""
    if not tensors:
        return {"sum_sq": torch.zeros(0, dtype=torch.float64)}
    norms = _norms_on_cpu(tensors) if all(t.device.type == "cpu" for t in tensors) else _norms(tensors)
    return {"sum_sq": norms.square()}


def read(partials: Partials) -> dict[str, Tensor]:
    """Return the l2 norm of each tensor, shape ``[P]``."""
    return {"l2": partials["sum_sq"].sqrt()}


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    wide = precise(tensors[0])
    norms = torch._foreach_norm(list(tensors), 2, dtype=wide)  # noqa: SLF001 - torch's own clipping is built on it
    return torch.stack([n.to(tensors[0].device) for n in norms])


def _norms_on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    flat = [flattened(t) for t in tensors]
    ends = [t.numel() // _ROW * _ROW for t in flat]
    squares = _norms_of_pieces([t[end:] if end else t for t, end in zip(flat, ends, strict=True)]).square()
    large = [i for i, end in enumerate(ends) if end]
    if large:
        squares[large] += torch.stack([_squares_of_rows(flat[i][: ends[i]].view(-1, _ROW)) for i in large])
    norms = squares.sqrt()
    least = _SQUARES_UNDERFLOW * (torch.tensor(ends, dtype=torch.float64, device="cpu") / _ROW + 1).sqrt()
    doubtful = (norms < least) | ~norms.isfinite()
    for i in doubtful.nonzero().flatten().tolist():
        norms[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64)
    return norms


def _squares_of_rows(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=_at_least_single(rows.dtype))
    return norms.double().square().sum()


def _norms_of_pieces(pieces: Sequence[Tensor]) -> Tensor:
    alike: dict[torch.dtype, list[int]] = defaultdict(list)
    for i, piece in enumerate(pieces):
        alike[piece.dtype].append(i)
    norms = torch.empty(len(pieces), dtype=torch.float64, device="cpu")
    for dtype, places in alike.items():
        of_alike = [pieces[i] for i in places]
        found = torch._foreach_norm(of_alike, 2, dtype=_at_least_single(dtype))  # noqa: SLF001 - as above
        norms[places] = torch.stack(found).double()
    return norms


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Return the type to take a norm in; one of half precision would be rounded to half precision."""
    return torch.promote_types(dtype, torch.float32)


STATISTIC = Statistic(
    partials={"sum_sq": "sum"},
    units={"l2": "unit of the tensor"},
    measure=measure,
    read=read,
)
