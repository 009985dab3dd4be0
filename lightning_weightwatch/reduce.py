"""How ranks agree. The only file that touches ``torch.distributed``.

Every function here is a collective: all processes enter it, in the same order, whatever they hold. Without a process
group each returns at once what it was given.

Shards are merged by weighting: each process adds its local partial times 1 / (number of processes with the same copy),
so that sharded, replicated and mixed layouts come out alike. However many tensors and partials there are, a merge is
one SUM and one MAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


class PeerError(RuntimeError):
    """Work failed on another process, so this one gives up as well."""


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def anyone(flag: bool, device: torch.device) -> bool:
    """Return whether ``flag`` is true on any process; one all-reduce, one read."""
    if not is_distributed():
        return flag
    seen = torch.tensor([float(flag)], device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen.item())


def together(work: Callable[[], Result], device: torch.device) -> Result:
    """Do local work before a collective; if it fails on any process, it fails on all.

    A process that failed alone and left would keep the others waiting in the next collective for ever.

    Raises:
        PeerError: If the work failed elsewhere.
        Exception: What the work raised, if it failed here.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - it is raised again, once all processes know
        failure = error
    if anyone(failure is not None, device):
        raise failure or PeerError("the same work failed on another process")
    return result


def replication_weights(tensors: Sequence[Tensor], numels: Sequence[int]) -> Tensor:
    """Return 1 / (number of identical copies) for every tensor, shape ``[P]``, float64.

    Args:
        tensors: What this process holds of each: the whole, a shard, or nothing.
        numels: The number of elements of each as a whole.

    It follows from counting: all processes together hold copies x whole elements. So it is right for every strategy,
    for uneven and for empty shards.
    """
    device = tensors[0].device if tensors else torch.device("cpu")
    whole = torch.tensor(numels, dtype=torch.float64, device=device)
    if not is_distributed():
        return torch.ones_like(whole)
    held = torch.tensor([float(t.numel()) for t in tensors], dtype=torch.float64, device=device)
    dist.all_reduce(held)
    return whole / held.clamp(min=1)


def merge(
    partials: Mapping[str, Tensor], merges: Mapping[str, Literal["sum", "max", "min"]], weights: Tensor
) -> dict[str, Tensor]:
    """Turn the partials of every process's share into the partials of the whole.

    Args:
        partials: Tensors of shape ``[P, ...]``, the same keys and shapes on every process.
        merges: How each is merged.
        weights: ``replication_weights``, shape ``[P]``.

    Returns:
        The merged partials: same keys, shapes and types, and the same numbers on every process. Counts are whole.

    Example:
        >>> merge({"count": torch.tensor([3.0])}, {"count": "sum"}, torch.ones(1))
        {'count': tensor([3.])}
    """
    if not is_distributed():
        return dict(partials)
    out: dict[str, Tensor] = {}
    for op, signs in ((dist.ReduceOp.SUM, {"sum": 1}), (dist.ReduceOp.MAX, {"max": 1, "min": -1})):
        keys = [key for key in partials if merges[key] in signs]
        if not keys:
            continue
        pieces = [_outgoing(partials[key], signs[merges[key]], weights, merges[key] == "sum") for key in keys]
        packed = torch.cat(pieces)
        dist.all_reduce(packed, op=op)
        for key, piece in zip(keys, packed.split([p.numel() for p in pieces]), strict=True):
            out[key] = _incoming(piece * signs[merges[key]], like=partials[key])
    return {key: out[key] for key in partials}


def _outgoing(partial: Tensor, sign: int, weights: Tensor, weighted: bool) -> Tensor:
    wide = partial.to(weights.dtype)
    if weighted:
        wide = wide * weights.to(wide.device).reshape(-1, *[1] * (wide.dim() - 1))
    return (wide * sign).reshape(-1)


def _incoming(piece: Tensor, like: Tensor) -> Tensor:
    if not like.is_floating_point():
        piece = piece.round()
    return piece.reshape(like.shape).to(like.dtype)
