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
    large = [i for i, t in enumerate(tensors) if t.numel() > 2 * _ROW]
    norms, least = _norms_by_rows(tensors, large) if large else (_norms_of_pieces(tensors), _SQUARES_UNDERFLOW)
    doubtful = (norms < least) | ~norms.isfinite()
    for i in doubtful.nonzero().flatten().tolist():
        norms[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64)
    return norms


def _norms_by_rows(tensors: Sequence[Tensor], large: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return norms, and how small each may be: of many rows that are each too small none may be believed."""
    pieces, rows, counts = list(tensors), [], np.zeros(len(tensors), dtype=np.int64)
    for i in large:
        flat = flattened(tensors[i])
        counts[i] = flat.numel() // _ROW
        end = int(counts[i]) * _ROW
        matrix, pieces[i] = flat[:end].view(-1, _ROW), flat[end:]
        rows.append(torch.linalg.vector_norm(matrix, dim=1, dtype=_at_least_single(flat.dtype)))
    squares = _norms_of_pieces(pieces).square()
    of_rows = torch.cat(rows).double().square().numpy()
    begins = np.concatenate([[0], np.cumsum(counts[large])[:-1]])
    squares[large] += torch.from_numpy(np.add.reduceat(of_rows, begins))
    return squares.sqrt(), _SQUARES_UNDERFLOW * torch.from_numpy(np.sqrt(counts + 1.0))


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
