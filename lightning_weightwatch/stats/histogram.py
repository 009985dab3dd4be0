"""Exact counts of every tensor's elements over the bit patterns of float32.

Sign, exponent and the first three mantissa bits of a float32 are 12 bits, and so 4,096 fixed bins: eight to each
doubling, over every magnitude there is. No range has to be found first, counts of shards, ranks and steps simply add,
and non-finite elements have bins of their own. ``linear`` and ``log10`` draw the histograms that people read from the
counts.

Elements below 1.2e-38 (subnormal in float32) are counted as zeros.

Counts are int64, 32 kB a tensor, so that no tensor is too large and sums never overflow. Whoever has thousands of small
tensors should measure some hundreds at a time and keep what is drawn from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_weightwatch.stats._base import Partials, Statistic
from lightning_weightwatch.stats._rows import Scratch, batches, on_host

Counts = NDArray[np.float64]
BINS = 4096
_PER_SIGN = BINS // 2
_PER_EXPONENT = 8
_NON_FINITE = 255 * _PER_EXPONENT  # the exponent of Inf and NaN
_ROWS = 8  # rows counted at once: int16, a twentieth quicker than int32 altogether, has room for the bins of eight
_FIRST_BIN = torch.arange(0, _ROWS * BINS, BINS, dtype=torch.int16, device="cpu").unsqueeze(1)


def measure(tensors: Sequence[Tensor]) -> Partials:
    """Return the counts per tensor, shape ``[P, 4096]``, int64."""
    if on_host(tensors):
        return {"counts": _count_on_host(tensors)}
    return {"counts": torch.stack([_count(t).to(tensors[0].device) for t in tensors])}


def read(partials: Partials) -> dict[str, Tensor]:
    """Return how many elements were zero and how many were not finite, shape ``[P]``."""
    signs = partials["counts"].unflatten(-1, (2, _PER_SIGN)).sum(-2)
    return {
        "zero_count": signs[..., :_PER_EXPONENT].sum(-1),
        "nonfinite_count": signs[..., _NON_FINITE:].sum(-1),
    }


def linear(counts: Counts, edges: Counts) -> Counts:
    """Spread the finite counts of one tensor over linear bins.

    Args:
        counts: One row of the counts, shape ``[4096]``.
        edges: Ascending edges of the wanted bins, shape ``[n + 1]``. What lies outside goes to the end bins.

    Returns:
        Counts per wanted bin, shape ``[n]``; their sum is the number of finite elements. Within one bit-pattern bin
        (12.5 % wide at most) elements are taken to lie evenly.
    """
    low, high, weight = _intervals(counts)
    filled = weight > 0
    low, high, weight = low[filled], high[filled], weight[filled]
    # The share of each bit-pattern bin that lies below each edge; zeros are a bin without width.
    width = np.where(high > low, high - low, 1.0)[:, None]
    reach = np.clip(edges, low[:, None], high[:, None]) - low[:, None]
    below = np.where((high > low)[:, None], reach / width, edges > low[:, None])
    out = weight @ np.diff(below, axis=1)
    out[0] += weight @ below[:, 0]
    out[-1] += weight @ (1.0 - below[:, -1])
    return np.asarray(out, dtype=np.float64)


def log10(counts: Counts, *, per_decade: int = 4) -> tuple[Counts, Counts]:
    """Return the histogram of log10 of the magnitude of the finite, non-zero elements.

    Args:
        counts: One row of the counts, shape ``[4096]``.
        per_decade: Bins in a factor of ten.

    Returns:
        Edges in decades, shape ``[n + 1]``, trimmed to where there is something, and counts, shape ``[n]``. Both are
        empty where every element was zero or not finite.
    """
    both = counts.reshape(2, _PER_SIGN).sum(0)
    both[:_PER_EXPONENT] = 0
    both[_NON_FINITE:] = 0
    filled = np.flatnonzero(both)
    if not filled.size:
        return np.zeros(0), np.zeros(0)
    low, high = np.log10(_LOWER[filled]), np.log10(_UPPER[filled])
    first, last = np.floor(low[0] * per_decade), np.ceil(high[-1] * per_decade)
    edges = np.arange(first, last + 1) / per_decade
    below = np.clip((edges[None, :] - low[:, None]) / (high - low)[:, None], 0.0, 1.0)
    return edges, np.asarray(both[filled] @ np.diff(below, axis=1), dtype=np.float64)


def zero_count(counts: Counts) -> float:
    """Return how many elements of one tensor were zero (or subnormal), from its row of counts."""
    return float(counts.reshape(2, _PER_SIGN)[:, :_PER_EXPONENT].sum())


def nonfinite_count(counts: Counts) -> float:
    """Return how many elements of one tensor were NaN or Inf, from its row of counts."""
    return float(counts.reshape(2, _PER_SIGN)[:, _NON_FINITE:].sum())


def finite_range(counts: Counts) -> tuple[float, float]:
    """Return bounds that enclose every finite element, at most 12.5 % too wide; NaN where there is none."""
    low, high, weight = _intervals(counts)
    filled = weight > 0
    if not filled.any():
        return float("nan"), float("nan")
    return float(low[filled].min()), float(high[filled].max())


def _count_on_host(tensors: Sequence[Tensor]) -> Tensor:
    counts = np.zeros((len(tensors), BINS), dtype=np.int64)  # NumPy asks for large pages, a quarter of torch's time
    scratch = Scratch()
    for owners, matrix in batches(tensors, most_rows=_ROWS):
        keys = torch.bitwise_right_shift(_bits(matrix), 20, out=scratch.like(matrix, "keys", torch.int16))
        keys &= BINS - 1
        if len(owners) > 1:
            keys += _FIRST_BIN[: len(owners)]
        found = torch.bincount(keys.flatten(), minlength=BINS * len(owners)).view(-1, BINS).numpy()
        for owner, row in zip(owners, found, strict=True):
            counts[owner] += row
    return torch.from_numpy(counts)


def _count(tensor: Tensor) -> Tensor:
    """Count without ``bincount``, which waits for the device to learn its own length."""
    keys = (_bits(tensor.reshape(-1)) >> 20) & (BINS - 1)
    counts = torch.zeros(BINS, dtype=torch.int64, device=tensor.device)
    return counts.scatter_add_(0, keys.long(), counts.new_ones(()).expand_as(keys))


def _bits(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float64:  # casting must not turn a large finite number into Inf
        most = torch.finfo(torch.float32).max
        tensor = torch.where(tensor.isinf(), tensor, tensor.clamp(-most, most))
    return tensor.float().contiguous().view(torch.int32)


def _lower_and_upper() -> tuple[Counts, Counts]:
    """Return the magnitudes at which each of the 2,048 bins of one sign begins and ends."""
    patterns = (np.arange(_NON_FINITE + 1, dtype=np.uint32) << 20).view(np.float32).astype(np.float64)
    patterns[-1] = float(np.finfo(np.float32).max)  # the pattern after the last finite one is Inf
    lower = np.concatenate([patterns[:-1], np.full(_PER_SIGN - _NON_FINITE, np.nan)])
    upper = np.concatenate([patterns[1:], np.full(_PER_SIGN - _NON_FINITE, np.nan)])
    lower[:_PER_EXPONENT], upper[:_PER_EXPONENT] = 0.0, 0.0  # zeros and subnormals
    return lower, upper


_LOWER, _UPPER = _lower_and_upper()


def _intervals(counts: Counts) -> tuple[Counts, Counts, Counts]:
    """Return begin, end and count of every finite bin of both signs."""
    plus, minus = counts[:_NON_FINITE], counts[_PER_SIGN : _PER_SIGN + _NON_FINITE]
    lower, upper = _LOWER[:_NON_FINITE], _UPPER[:_NON_FINITE]
    return np.concatenate([-upper, lower]), np.concatenate([-lower, upper]), np.concatenate([minus, plus])


STATISTIC = Statistic(
    partials={"counts": "sum"},
    units={"zero_count": "number of elements", "nonfinite_count": "number of elements"},
    measure=measure,
    read=read,
)
