"""What a flush sends to the host, and what is read of it there.

The numbers are laid out and merged in ``recorder``; here they get names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch import snapshot
from lightning_weightwatch.evidence import DeadUnits, Listened, Replicas, Snapshot
from lightning_weightwatch.listening import Listener
from lightning_weightwatch.meters import replicas
from lightning_weightwatch.meters.units import STEPS, unit_counts
from lightning_weightwatch.parameters import Parameter
from lightning_weightwatch.parcel import Parcel
from lightning_weightwatch.ring import Rows

Found = Mapping[str, NDArray[np.float64]]
_UNKNOWN = (np.nan, np.nan)  # the learning rate and the batch of a step that was broken off


@dataclass(frozen=True)
class Flight:
    """What is on its way to the host, and what need not travel.

    Attributes:
        rows: The steps and their rows.
        parcel: What travels.
        known: What the host knew, where nobody else has a say.
        host: The learning rate and the batch of each step.
        snapshot_step: The step of full statistics, if they are among it.
        listener: Who knows what the numbers of a forward pass mean, if one was listened to.
    """

    rows: Rows
    parcel: Parcel
    known: Found
    host: Mapping[int, tuple[float, float]]
    snapshot_step: int | None = None
    listener: Listener | None = None


@dataclass(frozen=True)
class Gathered:
    """What a flush brought to the host, one row per step.

    Attributes:
        steps: The steps, ascending, length ``n``.
        norms: Gradient norms before clipping, shape ``[n, P]``; 0 where not measured.
        measured: Where a gradient was measured, shape ``[n, P]``.
        clipped: Gradient norms after clipping, shape ``[n, P]``; NaN where not measured.
        losses: The loss of each step, shape ``[n]``; NaN where it is unknown, Inf where it was not finite.
        stale: 1 where gradients were not cleared since the last step, else 0, shape ``[n]``; NaN where unknown.
        learning_rates: Shape ``[n]``; NaN where unknown.
        batches: The place of each step's last batch in its epoch, shape ``[n]``.
        snapshot: Full statistics, if they were due.
        dead: Units without a gradient.
        listened: What a forward pass was heard to do, if one was listened to.
        replicas: How the copies of several processes differ, if they were compared.
        broken_losses: The first step of each process whose own loss was not finite.
        notes: What the sender added, added up over processes.
    """

    steps: list[int]
    norms: NDArray[np.float64]
    measured: NDArray[np.bool_]
    clipped: NDArray[np.float64]
    losses: NDArray[np.float64]
    stale: NDArray[np.float64]
    learning_rates: NDArray[np.float64]
    batches: NDArray[np.float64]
    snapshot: Snapshot | None = None
    dead: DeadUnits | None = None
    listened: Listened | None = None
    replicas: Replicas | None = None
    broken_losses: Mapping[int, int] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)


def read(flight: Flight, parameters: Sequence[Parameter], *, clipping: bool) -> Gathered:
    """Read what was sent; waits for it if it has not landed."""
    found: Found = {**flight.known, **flight.parcel.read()}
    places, count = flight.rows.places, len(parameters)
    numbers, broken, measured = found["numbers"][places], found["broken"][places] > 0, found["measured"][places] > 0
    norms = np.sqrt(np.where(broken, np.inf, numbers))
    host = np.array([flight.host.get(step, _UNKNOWN) for step in flight.rows.steps], dtype=np.float64).reshape(-1, 2)
    return Gathered(
        steps=flight.rows.steps,
        norms=norms[:, :count],
        measured=measured[:, :count],
        clipped=np.where(measured, norms, np.nan)[:, count:] if clipping else np.full_like(norms, np.nan),
        losses=_losses(found, flight.rows),
        stale=np.where(found["has_stale"][places] > 0, (found["stale"][places] > 0).astype(np.float64), np.nan),
        learning_rates=host[:, 0],
        batches=host[:, 1],
        snapshot=_snapshot(flight, found, parameters),
        dead=_dead(flight, found, parameters),
        listened=flight.listener.read(found["heard"]) if flight.listener is not None else None,
        replicas=_replicas(flight, found),
        broken_losses=replicas.broken_losses(found["broken_loss"]) if "broken_loss" in found else {},
        notes={key.removeprefix("note/"): float(found[key]) for key in found if key.startswith("note/")},
    )


def _losses(found: Found, rows: Rows) -> NDArray[np.float64]:
    losses, has_loss = found["losses"][rows.places], found["has_loss"][rows.places] > 1 - 1e-9
    # Where processes took different steps for the same row, its loss is that of no step.
    has_loss &= np.abs(found["step"][rows.places] - rows.steps) < 0.5
    return np.where(has_loss, np.where(np.isfinite(losses), losses, np.inf), np.nan)


def _snapshot(flight: Flight, found: Found, parameters: Sequence[Parameter]) -> Snapshot | None:
    return None if flight.snapshot_step is None else snapshot.read(flight.snapshot_step, found, parameters)


def _dead(flight: Flight, found: Found, parameters: Sequence[Parameter]) -> DeadUnits | None:
    if not flight.rows.steps:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        share = found["dead"] / unit_counts(parameters)
    return DeadUnits(flight.rows.steps[-1], STEPS, np.asarray(share, dtype=np.float64))


def _replicas(flight: Flight, found: Found) -> Replicas | None:
    if "copy_norm" not in found or flight.snapshot_step is None:
        return None
    return Replicas(flight.snapshot_step, *replicas.spread(found))
