"""What is gathered on every step: the gradient norm of each parameter and the loss, on the device, without a host sync.

It knows optimizers' parameters and the ring they are put in; not the Trainer that says when, nor what the numbers mean.
All that waits is merged over processes with one SUM (and one MAX, with a snapshot of shards) and comes to the host in
one copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_weightwatch import reduce, snapshot, stats
from lightning_weightwatch.flight import Flight, Gathered, read
from lightning_weightwatch.listening import Listener
from lightning_weightwatch.meters import (
    ClearingMeter,
    ReplicaMeter,
    UnitMeter,
    is_lbfgs,
    learning_rate,
    leaves_gradients_alone,
    owned,
)
from lightning_weightwatch.meters.replicas import COPIES
from lightning_weightwatch.parameters import Parameter, is_plain, unmeasurable, values
from lightning_weightwatch.parcel import Parcel, upload
from lightning_weightwatch.ring import Ring, Rows
from lightning_weightwatch.snapshot import SnapshotMeter
from lightning_weightwatch.stats import norm


@dataclass(frozen=True)
class _Columns:
    """The columns of one optimizer's parameters that have a gradient now, on the host and on the device."""

    host: NDArray[np.int64]
    device: Tensor


_LOCAL = {"broken", "losses", "has_loss", "step", "broken_loss", *COPIES}
"""What replicas may differ in, and must merge."""

_TWINS = 2  # of the first snapshots: units that begin equal stay equal

Gradients = dict[int, Tensor]
"""Gradients by the ``id`` of their parameter."""


class GradientRecorder:
    """Puts the gradient norms of every step into a ring and brings them to the host when asked.

    Args:
        parameters: What is watched, in forward order.
        tensors: The tensors by name.
        rows: Steps between two flushes, at most.
        sharded: Each process holds a part of every tensor. Making the recorder is then a collective.
        clipping: Gradients may be clipped between ``add`` and the step; their norms after it are kept too.
        device: Where losses are, for a recorder that watches no parameter.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        tensors: Mapping[str, nn.Parameter],
        *,
        rows: int,
        sharded: bool,
        clipping: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.parameters = tuple(parameters)
        self.unmeasured: dict[str, str] = {}
        self.unclipped: set[str] = set()  # optimizers after whose steps nobody can tell what clipping had left
        self._kept = dict(tensors)  # alive, so that no parameter made later is given the id of one that went
        self._column = {id(tensors[p.name]): i for i, p in enumerate(self.parameters)}
        held = [values(tensors[p.name]) for p in self.parameters]
        self._dtype = stats.precise(held[0]) if held else torch.float64
        self._clipping = clipping
        device, blocks = held[0].device if held else device or torch.device("cpu"), 2 if clipping else 1
        self._loss_column, self._stale_column = blocks * len(self.parameters), blocks * len(self.parameters) + 1
        self._ring = Ring(rows, self._loss_column + 2, device, self._dtype)
        self._host: dict[int, tuple[float, float]] = {}
        self._units, self._clearing = UnitMeter(self.parameters, held, device), ClearingMeter()
        self._replicas, self._snapshots = ReplicaMeter(), 0
        self._weights = reduce.replication_weights(held, [p.numel for p in self.parameters]) if sharded else None
        self._snapshot: SnapshotMeter | None = None
        self._strangers: dict[int, Tensor] = {}
        self._last_step: dict[int, int] = {}
        self._cached: dict[tuple[int, ...], _Columns] = {}

    @property
    def names(self) -> dict[int, str]:
        """The name of every tensor of the module, by its ``id``."""
        return {id(tensor): name for name, tensor in self._kept.items()}

    def has_room(self, step: int) -> bool:
        """Whether there is room for a step."""
        return self._ring.has_room(step)

    def covers(self, optimizer: Optimizer) -> bool:
        """Whether every one of an optimizer's parameters is watched, or known not to be."""
        return all(id(p) in self._column or id(p) in self._strangers for p in owned(optimizer))

    def watches(self, parameters: Sequence[Parameter], tensors: Mapping[str, Tensor]) -> bool:
        """Whether just these parameters are watched, and these tensors are theirs."""
        return len(parameters) == len(self.parameters) and all(id(tensors[p.name]) in self._column for p in parameters)

    def accept(self, optimizer: Optimizer) -> None:
        """Take note of parameters that are excluded or belong to no module, so that ``covers`` is content."""
        self._strangers.update({id(p): p for p in owned(optimizer) if id(p) not in self._column})

    def begin_snapshot(self, step: int) -> None:
        """Measure everything of this step in full; it goes along with the next flush."""
        twins = self._snapshots < _TWINS and self._weights is None
        self._snapshot = SnapshotMeter(step, len(self.parameters), self._ring.device, self._dtype, twins=twins)
        self._snapshots += 1

    def before_backward(self) -> None:
        """Look whether gradients have been cleared."""
        self._clearing.before_backward()

    def gradients(self, optimizer: Optimizer) -> Gradients:
        """Return the gradients of an optimizer's parameters, each as this process's share of the whole.

        A collective where gradients are sums over processes that are not taken yet (tensor parallelism): all processes
        call it, also one on which something has failed.
        """
        held = owned(optimizer)
        found: Sequence[Tensor | None] = [p.grad for p in held]
        if self._weights is not None:
            found = reduce.sum_of_partials(found, held)
        return {id(p): gradient for p, gradient in zip(held, found, strict=True) if gradient is not None}

    def add(
        self,
        step: int,
        optimizer: Optimizer,
        gradients: Gradients,
        *,
        scale: Tensor | None = None,
        loss: Tensor | None = None,
        batch: float = math.nan,
    ) -> None:
        """Measure the gradients of one optimizer's parameters; those of others may belong to another loss.

        Args:
            step: The step.
            optimizer: The optimizer about to step. If it steps several times within ``step``, the largest norms
                count; but LBFGS asks up to twenty times for one step, from points that its line search rejects, and
                the first is the gradient at the weights.
            gradients: Its ``gradients``.
            scale: The factor still in the gradients, if any.
            loss: The loss of the step so far, if it is known.
            batch: The place of its last batch in the epoch.
        """
        if self._last_step.get(id(optimizer)) == step and is_lbfgs(optimizer):
            return
        self._last_step[id(optimizer)] = step
        self._ring.begin(step)  # on every process, whatever it holds, so that rows stay aligned
        columns, shares = self._readable(gradients)
        self._put(0, columns, shares, scale)
        self._units.add(columns, shares)
        self._note(step, optimizer, batch)
        if self._snapshot is not None:
            unscaled = shares if scale is None else [g / scale.to(g.device) for g in shares]
            self._snapshot.gradients(id(optimizer), columns, unscaled, step)
        if loss is not None:
            self._ring.put(self._loss_column, self._loss_column, loss)

    def _note(self, step: int, optimizer: Optimizer, batch: float) -> None:
        """Note how fast the optimizer goes, and whether its gradients were cleared."""
        before = self._host.get(step, (math.nan, math.nan))[0]
        self._host[step] = (float(np.fmax(learning_rate([optimizer]), before)), batch)
        left = self._clearing.before_step(optimizer, owned(optimizer))
        if isinstance(left, Tensor):
            self._ring.put(self._stale_column, self._stale_column, left, keep_largest=True)
        elif left is not None:
            self._ring.mark(self._stale_column)

    def before_step(self, optimizer: Optimizer) -> None:
        """Note the weights that an optimizer is about to change, if there is a snapshot."""
        if self._snapshot is not None and self._snapshot.awaits(id(optimizer)):
            held = self._held(optimizer)
            self._snapshot.weights(id(optimizer), list(held), list(held.values()))

    def after_step(self, step: int, optimizer: Optimizer, gradients: Gradients) -> None:
        """Note the gradients as they were clipped, and what the step has changed."""
        if self._clipping and not leaves_gradients_alone(optimizer):
            self.unclipped.add(type(optimizer).__name__)
        elif self._clipping and self._last_step.get(id(optimizer)) == step:
            self._put(len(self.parameters), *self._readable(gradients), None)
        if self._snapshot is not None and self._snapshot.holds(id(optimizer)):
            self._snapshot.updates(id(optimizer), self._held(optimizer))

    def send(self, notes: Mapping[str, float], *, agree: bool, listener: Listener | None = None) -> Flight:
        """Hand out what waits: merged over processes (a collective, if ``agree``) and on its way to the host.

        Args:
            notes: Numbers of this process to add up over all; the same keys everywhere.
            agree: Merge: shards into wholes, losses into their mean. Else the numbers are those of this process.
            listener: What was heard in this process; its numbers travel along, and are not merged.
        """
        rows, due, self._snapshot = self._ring.drain(), self._snapshot, None
        host, self._host = self._host, {}
        agree = agree and reduce.is_distributed()
        share = 1.0 / reduce.world_size() if agree else 1.0
        known, partials = self._known(rows, notes, share), self._partials(rows, share)
        if due is not None:
            partials |= self._weighted(due.partials)
        if agree:
            partials |= self._uploaded(known) | self._slots(rows, due)
            merges: dict[str, stats.Merge] = dict.fromkeys(partials, "sum")
            partials |= reduce.exchange(self._split(partials), merges | (snapshot.merges() if due is not None else {}))
        if listener is not None:
            partials["heard"] = listener.numbers.to(self._ring.device)
        return Flight(rows, Parcel(partials, self._dtype), known, host, due.step if due is not None else None, listener)

    def receive(self, flight: Flight) -> Gathered:
        """Read what was sent."""
        return read(flight, self.parameters, clipping=self._clipping)

    def _known(self, rows: Rows, notes: Mapping[str, float], share: float) -> dict[str, NDArray[np.float64]]:
        """Lay out what the host knows; the shapes do not depend on what happened on this process."""
        measured, step = rows.measured.astype(np.float64), np.zeros(len(rows.measured))
        step[rows.places] = rows.steps
        return {
            "measured": measured[:, : self._loss_column],
            "has_loss": measured[:, self._loss_column] * share,  # a loss that one process does not know has no mean
            "has_stale": measured[:, self._stale_column],
            "step": step * share,
            **{f"note/{key}": np.array(value, dtype=np.float64) for key, value in notes.items()},
        }

    def _partials(self, rows: Rows, share: float) -> dict[str, Tensor]:
        """Lay out what the device knows, in shapes that do not depend on it."""
        numbers, dead = rows.numbers[:, : self._loss_column], self._units.dead(len(self.parameters))
        if self._weights is not None:
            numbers = numbers * self._weights.to(numbers).repeat(2 if self._clipping else 1)
            dead = dead * self._weights.to(dead)
        broken = (~numbers.isfinite()).to(numbers)  # gradients that no one reduces may break on one process alone
        losses, stale = rows.numbers[:, self._loss_column] * share, rows.numbers[:, self._stale_column]
        return {"numbers": numbers, "broken": broken, "losses": losses, "stale": stale, "dead": dead}

    def _slots(self, rows: Rows, due: SnapshotMeter | None) -> dict[str, Tensor]:
        """Lay out what each process has for itself: whether its loss broke, and its copy of the weights."""
        steps = np.zeros(len(rows.measured))
        steps[rows.places] = rows.steps
        slots = self._replicas.losses(rows.numbers[:, self._loss_column], upload(steps, self._ring.like))
        if due is not None and self._weights is None:
            slots |= self._replicas.weights(due.partials["weight/sum_sq"], due.partials["weight"])
        return slots

    def _uploaded(self, known: Mapping[str, NDArray[np.float64]]) -> dict[str, Tensor]:
        packed = upload(np.concatenate([part.reshape(-1) for part in known.values()]), self._ring.like)
        pieces = packed.split([part.size for part in known.values()])
        return {key: piece.reshape(part.shape) for (key, part), piece in zip(known.items(), pieces, strict=True)}

    def _split(self, partials: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what processes must merge: where they are replicas, most of it is the same on all already."""
        if self._weights is not None:
            return dict(partials)
        return {k: p for k, p in partials.items() if k in _LOCAL or k.startswith("note/")}

    def _weighted(self, partials: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._weights is None:
            return dict(partials)
        merges, weights = snapshot.merges(), self._weights.to(self._ring.device, self._dtype)
        return {key: part * weights if merges[key] == "sum" else part for key, part in partials.items()}

    def _put(self, block: int, columns: Sequence[int], gradients: Sequence[Tensor], scale: Tensor | None) -> None:
        if columns:
            squares = norm.measure(gradients)["sum_sq"]
            if scale is not None:
                squares = squares / scale.to(squares).square()
            where = self._columns(tuple(block + i for i in columns))
            self._ring.put(where.device, where.host, squares, keep_largest=True)

    def _readable(self, gradients: Gradients) -> tuple[list[int], list[Tensor]]:
        """Return the columns of watched parameters that have a gradient, and the gradients as plain tensors."""
        columns, shares = [], []
        for key, gradient in gradients.items():
            column = self._column.get(key)
            if column is not None and (is_plain(gradient) or self._can_read(column, gradient)):
                columns.append(column)
                shares.append(values(gradient))
        return columns, shares

    def _held(self, optimizer: Optimizer) -> dict[int, Tensor]:
        """Return an optimizer's weights, by column."""
        mine = [p for p in owned(optimizer) if id(p) in self._column and not (p.numel() and unmeasurable(p))]
        return {self._column[id(p)]: values(p) for p in mine}

    def _can_read(self, column: int, gradient: Tensor) -> bool:
        reason = unmeasurable(gradient) if gradient.numel() else None
        if reason:
            self.unmeasured[self.parameters[column].name] = reason
        return reason is None

    def _columns(self, wanted: tuple[int, ...]) -> _Columns:
        if wanted not in self._cached:
            if len(self._cached) >= 64:  # experts that come and go would make a new pattern on every step
                self._cached.clear()
            host = np.array(wanted, dtype=np.int64)
            self._cached[wanted] = _Columns(host, torch.from_numpy(host).to(self._ring.device))
        return self._cached[wanted]
