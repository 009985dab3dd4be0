"""How weights and gradients become histograms of whole tensors, whatever share of them a process holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_weightwatch import reduce
from lightning_weightwatch.parameters import unmeasurable, values
from lightning_weightwatch.parcel import Parcel, upload
from lightning_weightwatch.stats import histogram

Rows = dict[str, NDArray[np.float64]]


def count(names: Sequence[str], held: Sequence[Tensor], tensors: Sequence[Tensor | None], scale: Tensor | None) -> Rows:
    """Count the elements of tensors of this process alone.

    Args:
        names: Their names.
        held: The parameters they belong to.
        tensors: The parameters themselves, or their gradients; ``None`` where there is none.
        scale: The factor still in them, if any.

    Returns:
        The counts of ``stats.histogram`` by name, shape ``[4096]``; those that cannot be read are missing.
    """
    readable = [i for i, t in enumerate(tensors) if t is not None and unmeasurable(t) is None]
    shares = [_share(tensors[i], held[i], scale) for i in readable]
    counts = histogram.measure(shares)["counts"].cpu().double().numpy()
    return {names[i]: row for i, row in zip(readable, counts, strict=True)}


class SharedCounter:
    """Counts shards into wholes: one SUM, and one copy to the host, for all tensors together.

    Args:
        numels: The number of elements of each whole parameter, by name.
    """

    def __init__(self, numels: Mapping[str, int]) -> None:
        self._numels = numels
        self._weights: dict[tuple[str, ...], Tensor] = {}

    def count(
        self,
        names: Sequence[str],
        held: Sequence[Tensor],
        tensors: Sequence[Tensor | None],
        scale: Tensor | None,
        *,
        notes: Mapping[str, float],
        failure: Exception | None,
    ) -> tuple[Rows, dict[str, float]]:
        """Count as ``count`` does; a collective, whose layout does not depend on what this process holds.

        Args:
            names: As there.
            held: As there.
            tensors: As there.
            scale: As there.
            notes: Numbers to add up over all processes, the same keys everywhere.
            failure: What has failed on this process so far.

        Returns:
            The counts, and the notes added up.

        Raises:
            PeerError: If another process failed.
            Exception: What failed here; all processes raise in the same call.
        """
        weights = self._weights_of(names, held)
        local, failure = _attempted(held, tensors, scale, failure)
        told = {"failed": float(failure is not None), **notes}
        mine = {"counts": reduce.weighted(local, weights), "told": upload(list(told.values()), weights)}
        found = Parcel(reduce.exchange(mine, {"counts": "sum", "told": "sum"}), weights.dtype).read()
        told = dict(zip(told, found["told"].tolist(), strict=True))
        if told.pop("failed"):
            raise failure or reduce.PeerError("histograms could not be counted on another process")
        return dict(zip(names, found["counts"].round(), strict=True)), told

    def _weights_of(self, names: Sequence[str], held: Sequence[Tensor]) -> Tensor:
        key = tuple(names)
        if key not in self._weights:
            numels = [self._numels[name] for name in names]
            self._weights[key] = reduce.replication_weights([values(t) for t in held], numels)
        return self._weights[key]


def _attempted(
    held: Sequence[Tensor], tensors: Sequence[Tensor | None], scale: Tensor | None, failure: Exception | None
) -> tuple[Tensor, Exception | None]:
    """Count this process's shares; if that fails, nothing is counted, so that the others are not left waiting."""
    try:
        shares = [_share(tensor, whole, scale) for tensor, whole in zip(tensors, held, strict=True)]
        return histogram.measure(shares)["counts"], failure
    except Exception as error:  # noqa: BLE001 - it is raised on all processes alike
        return histogram.measure([values(t).new_empty(0) for t in held])["counts"], failure or error


def _share(tensor: Tensor | None, whole: Tensor, scale: Tensor | None) -> Tensor:
    """Return this process's share of a tensor; nothing, where it holds nothing that can be read."""
    if tensor is None or (tensor.numel() and unmeasurable(tensor)):
        return values(whole).new_empty(0)
    return values(tensor) if scale is None else values(tensor) / scale
