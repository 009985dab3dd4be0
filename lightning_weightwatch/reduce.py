"""How ranks agree. The only file that touches ``torch.distributed``.

Every function here is a collective: all processes enter it, in the same order, whatever they hold. Without a process
group each returns at once what it was given.

Shards are merged by weighting: each process adds its local partial times 1 / (number of processes with the same copy),
so that sharded, replicated and mixed layouts come out alike. However many tensors and partials there are, a merge is
one SUM and one MAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

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


def rank() -> int:
    """Return which of them this process is."""
    return dist.get_rank() if is_distributed() else 0


def anyone(flag: bool, device: torch.device) -> bool:
    """Return whether ``flag`` is true on any process; one all-reduce, one read."""
    if not is_distributed():
        return flag
    seen = torch.tensor([float(flag)], device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen.item())


def largest(number: float, device: torch.device) -> int:
    """Return the largest of every process's number, whole and not negative; one all-reduce, one read."""
    if not is_distributed():
        return int(number)
    seen = torch.tensor([float(number)], device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return int(seen.item())


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
    mine = {key: weighted(part, weights) if merges[key] == "sum" else part for key, part in partials.items()}
    merged = exchange(mine, merges)
    return {key: _like(merged[key], part) for key, part in partials.items()}


def exchange(partials: Mapping[str, Tensor], merges: Mapping[str, Literal["sum", "max", "min"]]) -> dict[str, Tensor]:
    """Merge partials over processes as they are: at most one SUM and one MAX, for those that need it.

    Args:
        partials: Tensors of any shape, the same keys and shapes on every process.
        merges: How each is merged.

    Returns:
        The same keys and shapes, the same numbers on every process, float64; a single process gets back what it gave.

    Example:
        >>> exchange({"losses": torch.tensor([3.0])}, {"losses": "sum"})
        {'losses': tensor([3.])}
    """
    if not is_distributed():
        return dict(partials)
    wide = {key: part.double() for key, part in partials.items()}
    for op, signs in ((dist.ReduceOp.SUM, {"sum": 1}), (dist.ReduceOp.MAX, {"max": 1, "min": -1})):
        keys = [key for key in partials if merges[key] in signs]
        if not keys:
            continue
        packed = torch.cat([wide[key].reshape(-1) * signs[merges[key]] for key in keys])
        dist.all_reduce(packed, op=op)
        for key, piece in zip(keys, packed.split([wide[key].numel() for key in keys]), strict=True):
            wide[key] = piece.reshape(wide[key].shape) * signs[merges[key]]
    return wide


def weighted(partial: Tensor, weights: Tensor) -> Tensor:
    """Return this process's part in a sum: a partial ``[P, ...]`` times ``weights`` ``[P]``, float64."""
    return partial.double() * weights.to(partial.device, torch.float64).reshape(-1, *[1] * (partial.dim() - 1))


def _like(merged: Tensor, partial: Tensor) -> Tensor:
    """Return it in the type it came in; counts are whole."""
    return (merged if partial.is_floating_point() else merged.round()).to(partial.dtype)


def sum_of_partials(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Add up gradients of which every process holds a summand, and lay them out as their parameters lie.

    Where a layer saw a part of the sequence or of the batch, tensor parallelism leaves the sum to the optimizer: the
    gradient is a DTensor with ``Partial`` placements. All sums are taken in a copy, in single precision or better,
    with one all-reduce per mesh dimension however many they are.

    Every process then holds the whole sum, while its parameter may be cut into shards. So of a sum, and of a gradient
    that is replicated for other reasons, a process keeps what it holds of the parameter. That makes the parameters'
    ``replication_weights`` right for the gradients.

    Args:
        gradients: The gradients, ``None`` where there is none. Which there are of DTensors, and how they are placed,
            is the same on all processes of a mesh, because all run the same program.
        parameters: The parameters they belong to.

    Returns:
        The gradients as they were given, but this process's share, a plain tensor, of those that lay otherwise than
        their parameters. What is partial in another way than a sum or a mean stays so; ``unmeasurable`` tells it.

    Example:
        >>> sum_of_partials([torch.ones(2), None], [torch.ones(2), torch.ones(2)])
        [tensor([1., 1.]), None]
    """
    pairs = enumerate(zip(gradients, parameters, strict=True))
    astray = {i: _gathered(g, p) for i, (g, p) in pairs if _lies_otherwise(g, p)}
    shares = {i: _summand(gradient) for i, gradient in astray.items()}
    for group, members in _pending(astray):
        packed = torch.cat([shares[i].reshape(-1) for i in members])
        dist.all_reduce(packed, group=group)
        for i, piece in zip(members, packed.split([shares[i].numel() for i in members]), strict=True):
            shares[i] = (piece if shares[i].is_complex() else piece.real).reshape(shares[i].shape)
    return [
        _cut(shares[i], astray[i], parameters[i]) if i in astray else gradient for i, gradient in enumerate(gradients)
    ]


def _lies_otherwise(gradient: Any, parameter: Any) -> bool:
    """Whether it is a DTensor in another layout than its parameter, with no more than sums and means pending."""
    placements = getattr(gradient, "placements", ())
    pending = [p for p in placements if _is_partial(p)]
    can_be_summed = all(type(p).__name__ == "Partial" and p.reduce_op in ("sum", "avg") for p in pending)
    return bool(placements) and placements != parameter.placements and can_be_summed


def _gathered(gradient: Any, parameter: Any) -> Any:
    """Return it in the layout of its parameter if it is cut where that is not; torch makes no such gradient today."""
    pairs = zip(gradient.placements, parameter.placements, strict=True)
    is_finer = any(_is_cut(mine) and not _is_cut(its) for mine, its in pairs)
    return gradient.redistribute(placements=parameter.placements) if is_finer else gradient


def _summand(gradient: Any) -> Tensor:
    """Return what this process adds to the sum; where a mean is to be taken, its part of it."""
    held: Tensor = gradient.detach().to_local()
    sizes = zip(gradient.device_mesh.shape, gradient.placements, strict=True)
    averaged = math.prod(size for size, p in sizes if _is_partial(p) and p.reduce_op == "avg")
    wide = held.to(torch.promote_types(held.dtype, torch.float32))
    return wide / averaged if averaged > 1 else wide


def _pending(gradients: Mapping[int, Any]) -> list[tuple[dist.ProcessGroup, list[int]]]:
    """Return each group of processes with sums to take, and whose sums; in the order of gradients and of dimensions.

    All processes keep to that order: they would wait for each other otherwise, or add sums to summands.
    """
    found: dict[tuple[int, ...], tuple[dist.ProcessGroup, list[int]]] = {}
    for i, gradient in gradients.items():
        for dim in (d for d, p in enumerate(gradient.placements) if _is_partial(p)):
            group = gradient.device_mesh.get_group(dim)
            found.setdefault(tuple(dist.get_process_group_ranks(group)), (group, []))[1].append(i)
    return list(found.values())


def _cut(share: Tensor, gradient: Any, parameter: Any) -> Tensor:
    """Return the part that this process holds of the parameter, where that is cut and the share is not."""
    mesh = gradient.device_mesh
    for d, (mine, its) in enumerate(zip(gradient.placements, parameter.placements, strict=True)):
        if _is_cut(its) and not _is_cut(mine):
            pieces, rank = share.chunk(mesh.size(d), its.dim), mesh.get_local_rank(d)
            share = pieces[rank] if rank < len(pieces) else share.narrow(its.dim, 0, 0)
    return share


def _is_partial(placement: Any) -> bool:
    return type(placement).__name__.endswith("Partial")


def _is_cut(placement: Any) -> bool:
    return type(placement).__name__.endswith("Shard")  # strided shards are no ``Shard`` to torch
