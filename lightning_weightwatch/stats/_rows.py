"""Tensors as rows of matrices: what makes measuring cheap on a CPU.

Tensors of equal size become rows of one matrix, so that the many small ones of a network share their calls; tensors
that are larger than the cache are cut into pieces, which are equal in size as well. Memory to compute in is taken once
and used again: fresh memory comes page by page from the kernel, which took five times as long as the arithmetic.

On other devices each tensor is one row, measured where it lies. Which rows belong together would have to be copied
there, and that waits for the device.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_weightwatch.stats._base import Merge, Partials, keyed, precise

_PIECE = 1 << 18  # elements: one megabyte in float32
_MERGED: dict[Merge, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}
_OF_NOTHING: dict[Merge, float] = {"sum": 0.0, "max": -math.inf, "min": math.inf}


class Scratch:
    """Memory to compute in, used again for every matrix; devices other than the CPU see to that themselves."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}
        self._same: dict[tuple[int, float], Tensor] = {}

    def like(self, matrix: Tensor, purpose: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return a matrix of the same shape and of any content; the next for the same purpose takes its place."""
        if not matrix.is_cpu:
            return torch.empty_like(matrix, dtype=dtype)
        key = (purpose, dtype or matrix.dtype)
        if key not in self._held:
            self._held[key] = torch.empty(_PIECE, dtype=key[1], device=matrix.device)
        held = self._held[key]
        return held if held.shape == matrix.shape else held.resize_(matrix.shape)

    def copy(self, matrix: Tensor, purpose: str, dtype: torch.dtype) -> Tensor:
        """Return a copy in another type; the next for the same purpose takes its place."""
        if not matrix.is_cpu:
            return matrix.to(dtype, copy=True)
        return self.like(matrix, purpose, dtype).copy_(matrix)

    def same(self, matrix: Tensor, number: float) -> Tensor:
        """Return the same number for every row, shape ``[rows]``; not to be written to."""
        key = (len(matrix), number)
        if key not in self._same:
            self._same[key] = torch.full(key[:1], number, dtype=precise(matrix), device=matrix.device)
        return self._same[key]


OfRows = Callable[[Tensor, Scratch], Partials]


@dataclass(frozen=True)
class ByRows:
    """The ``measure`` of a statistic that looks at matrices ``[rows, n]``, n > 0, and gives partials ``[rows]``.

    Called with tensors of any shape and type, it gives their partials, shape ``[P]``, float64 (float32 on MPS). Those
    of an empty tensor change nothing when they are merged.

    Attributes:
        merges: The partials, and how each is merged.
        of_finite: Measures rows on the CPU, in memory that is given to it. Where an element is not finite, neither may
            all partials of its row be.
        of_any: Measures rows of any elements, on any device.
    """

    merges: Mapping[str, Merge]
    of_finite: OfRows
    of_any: OfRows

    def __call__(self, tensors: Sequence[Tensor]) -> Partials:
        """Measure tensors; those with elements that are not finite once more."""
        if not on_host(tensors):
            return self._one_by_one(tensors)
        found = self._merged(tensors, self.of_finite)
        ill = np.flatnonzero(~np.isfinite(list(found.values())).all(0)).tolist()
        again = self._merged([tensors[i] for i in ill], self.of_any)
        for name, whole in found.items():
            whole[ill] = again[name]
        return {name: torch.from_numpy(whole) for name, whole in found.items()}

    def _merged(self, tensors: Sequence[Tensor], of_rows: OfRows) -> dict[str, NDArray[np.float64]]:
        scratch, owners, parts = Scratch(), list[int](), list[Partials]()
        for owned, matrix in batches(tensors):
            owners += owned
            parts.append(of_rows(matrix, scratch))
        out = {name: np.full(len(tensors), _OF_NOTHING[merge]) for name, merge in self.merges.items()}
        with np.errstate(invalid="ignore", over="ignore"):
            for name, whole in out.items() if parts else ():
                rows = torch.cat([part[name] for part in parts]).double().numpy()
                _MERGED[self.merges[name]].at(whole, owners, rows)
        return out

    def _one_by_one(self, tensors: Sequence[Tensor]) -> Partials:
        like = torch.empty(1, dtype=precise(tensors[0]), device=tensors[0].device)
        nothing = {name: torch.full_like(like, _OF_NOTHING[merge]) for name, merge in self.merges.items()}
        parts = [self.of_any(t.detach().reshape(1, -1), Scratch()) if t.numel() else nothing for t in tensors]
        return {name: torch.cat([part[name].to(like) for part in parts]) for name in self.merges}


def joined(measures: Mapping[str, ByRows]) -> ByRows:
    """Return the measure that looks with several at each matrix while the cache holds it; ``name/partial`` partials."""
    return ByRows(
        merges=keyed({name: one.merges for name, one in measures.items()}),
        of_finite=lambda rows, scratch: keyed({name: one.of_finite(rows, scratch) for name, one in measures.items()}),
        of_any=lambda rows, scratch: keyed({name: one.of_any(rows, scratch) for name, one in measures.items()}),
    )


def on_host(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors are on the CPU, where reading a number waits for nobody."""
    return all(t.is_cpu for t in tensors)


def batches(tensors: Sequence[Tensor], *, most_rows: int = _PIECE) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Cut tensors of the CPU into matrices that fit the cache; every element is in one of them.

    Args:
        tensors: Tensors of any shape and type.
        most_rows: The largest number of rows of a matrix.

    Yields:
        Which tensor each row is of, and the rows, shape ``[rows, n]``, to be read before the next are asked for.
    """
    alike: dict[tuple[torch.dtype, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        if tensor.numel():
            for piece in cut(tensor.detach(), _PIECE):
                alike[piece.dtype, piece.numel()].append((i, piece))
    scratch = Scratch()
    for (_, size), pieces in alike.items():
        rows = min(_PIECE // size, most_rows)
        for begin in range(0, len(pieces), rows):
            owners, members = zip(*pieces[begin : begin + rows], strict=True)
            yield owners, _stacked(members, scratch)


def flattened(tensor: Tensor) -> Tensor:
    """Return the elements in the order in which they lie in memory: what is merely transposed need not be copied."""
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    return tensor.reshape(-1)


def cut(tensor: Tensor, size: int) -> Sequence[Tensor]:
    """Return the elements in pieces of ``size`` and what is left."""
    flat = flattened(tensor)
    return flat.split(size) if flat.numel() > size else (flat,)


def _stacked(pieces: tuple[Tensor, ...], scratch: Scratch) -> Tensor:
    first = pieces[0].unsqueeze(0)
    if len(pieces) == 1:
        return first
    return torch.stack(pieces, out=scratch.like(first.expand(len(pieces), -1), "rows"))
