"""What is gathered on every step: the gradient norm of each parameter and the loss, on the device, without a host sync.

It knows optimizers' parameters and the ring they are put in; not the Trainer that says when, nor what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_weightwatch import reduce, stats
from lightning_weightwatch.parameters import Parameter, unmeasurable, values
from lightning_weightwatch.ring import Ring, Rows
from lightning_weightwatch.stats import norm


def owned(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters an optimizer changes."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def is_lbfgs(optimizer: Optimizer) -> bool:
    """Whether one step of the optimizer asks for the gradients many times."""
    return any(c.__name__ == "LBFGS" for c in type(optimizer).__mro__)


@dataclass(frozen=True)
class Gathered:
    """What a flush brought to the host, one row per step.

    Attributes:
        steps: The steps, ascending, length ``n``.
        norms: Gradient norms, shape ``[n, P]``; 0 where not measured.
        measured: Where a gradient was measured, shape ``[n, P]``.
        losses: The loss of each step, shape ``[n]``; NaN where it is unknown, Inf where it was not finite.
    """

    steps: list[int]
    norms: NDArray[np.float64]
    measured: NDArray[np.bool_]
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class _Columns:
    """The columns of one optimizer's parameters that have a gradient now, on the host and on the device."""

    host: NDArray[np.int64]
    device: Tensor


class LossMeter:
    """Adds up what is differentiated within one step, on the device.

    Example:
        >>> meter = LossMeter()
        >>> meter.add(0, torch.tensor(1.5))
        >>> meter.add(0, torch.tensor(0.5))
        >>> meter.of(0), meter.of(1)
        (tensor(2.), None)
    """

    def __init__(self) -> None:
        self._step = -1
        self._sum: Tensor | None = None
        self._count = 0
        self._divided_by = 1

    def add(self, step: int, loss: Tensor, *, scale: Tensor | None = None, divided_by: int = 1) -> None:
        """Add a loss about to be differentiated.

        Args:
            step: The step it belongs to.
            loss: Of any shape; a vector counts by its mean.
            scale: The factor it was multiplied by, if any.
            divided_by: The length of the accumulation window, by which Lightning divides each loss of it.
        """
        plain = values(loss).mean()
        if scale is not None:
            plain = plain / scale.to(plain.device)
        if self._sum is None or step != self._step:
            self._sum, self._count = plain, 0
        else:
            self._sum = self._sum + plain
        self._step, self._count, self._divided_by = step, self._count + 1, divided_by

    def of(self, step: int) -> Tensor | None:
        """Return the loss of ``step`` so far, a scalar, if anything was differentiated in it.

        The losses of an accumulation window give their mean, also in a window that is cut short by the epoch's end;
        without accumulation several losses of one step give their sum.
        """
        if self._sum is None or step != self._step:
            return None
        return self._sum if self._divided_by == 1 else self._sum * (self._divided_by / self._count)


class GradientRecorder:
    """Puts the gradient norms of every step into a ring and brings them to the host when asked.

    Args:
        parameters: What is watched, in forward order.
        tensors: The tensors by name.
        rows: Steps between two flushes, at most.
        sharded: Each process holds a part of every tensor. Making the recorder is then a collective.
    """

    def __init__(
        self, parameters: Sequence[Parameter], tensors: dict[str, nn.Parameter], *, rows: int, sharded: bool
    ) -> None:
        self.parameters = tuple(parameters)
        self.unmeasured: dict[str, str] = {}
        self._kept = dict(tensors)  # alive, so that no parameter made later is given the id of one that went
        self._column = {id(tensors[p.name]): i for i, p in enumerate(self.parameters)}
        held = [values(tensors[p.name]) for p in self.parameters]
        device = held[0].device if held else torch.device("cpu")
        dtype = stats.precise(held[0]) if held else torch.float64
        self._ring = Ring(rows, len(self.parameters) + 1, device, dtype)  # the last column is the loss
        self._weights = reduce.replication_weights(held, [p.numel for p in self.parameters]) if sharded else None
        self._strangers: dict[int, Tensor] = {}
        self._last_step: dict[int, int] = {}
        self._cached: dict[tuple[int, ...], _Columns] = {}

    def covers(self, optimizer: Optimizer) -> bool:
        """Whether every one of an optimizer's parameters is watched, or known not to be."""
        return all(id(p) in self._column or id(p) in self._strangers for p in owned(optimizer))

    def accept(self, optimizer: Optimizer) -> None:
        """Take note of parameters that are excluded or belong to no module, so that ``covers`` is content."""
        self._strangers.update({id(p): p for p in owned(optimizer) if id(p) not in self._column})

    def add(self, step: int, optimizer: Optimizer, *, scale: Tensor | None = None, loss: Tensor | None = None) -> None:
        """Measure the gradients of one optimizer's parameters; those of others may belong to another loss.

        Args:
            step: The step.
            optimizer: The optimizer about to step. If it steps several times within ``step``, the largest norms
                count; but LBFGS asks up to twenty times for one step, from points that its line search rejects, and
                the first is the gradient at the weights.
            scale: The factor still in the gradients, if any.
            loss: The loss of the step so far, if it is known.
        """
        if self._last_step.get(id(optimizer)) == step and is_lbfgs(optimizer):
            return
        self._last_step[id(optimizer)] = step
        self._ring.begin(step)  # on every process, whatever it holds, so that rows stay aligned
        found = [
            (self._column[id(p)], p.grad) for p in owned(optimizer) if p.grad is not None and id(p) in self._column
        ]
        found = [(i, g) for i, g in found if self._can_read(i, g)]
        if found:
            columns = self._columns(tuple(i for i, _ in found))
            squares = norm.measure([values(g) for _, g in found])["sum_sq"]
            if scale is not None:
                squares = squares / scale.to(squares).square()
            self._ring.put(columns.device, columns.host, squares, keep_largest=True)
        if loss is not None:
            self._ring.put(len(self.parameters), len(self.parameters), loss)

    def drain(self) -> Rows:
        """Hand out the waiting rows, still on the device and local to this process."""
        return self._ring.drain()

    def gather(self, rows: Rows, *, agree: bool) -> Gathered:
        """Bring rows to the host with one copy.

        Args:
            rows: What ``drain`` gave.
            agree: Merge over processes first (a collective): shards into wholes, losses into their mean.
        """
        n_columns = len(self.parameters)
        numbers, measured = rows.numbers.T, torch.from_numpy(rows.measured.T.astype(np.float64))
        if agree and reduce.is_distributed():
            numbers, measured = self._merged(numbers, measured)
        packed = torch.cat([numbers, measured.to(numbers)]).T.cpu().double().numpy()
        numbers_here, measured_here = packed[:, : n_columns + 1], packed[:, n_columns + 1 :] > 0
        losses = np.where(np.isfinite(numbers_here[:, -1]), numbers_here[:, -1], np.inf)
        return Gathered(
            steps=rows.steps,
            norms=np.sqrt(numbers_here[:, :-1]),
            measured=measured_here[:, :-1],
            losses=np.where(measured_here[:, -1], losses, np.nan),
        )

    def _merged(self, numbers: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
        """Merge over processes; gradients that every process holds alike need no collective, losses always do."""
        measured = measured.to(numbers)
        weights = torch.full((1,), 1.0 / reduce.world_size(), dtype=torch.float64)
        merges: dict[str, stats.Merge] = {"numbers": "sum", "known": "min"}
        shared = len(self.parameters)
        partials = {"known": measured[shared:]}  # a loss that is unknown on one process has no mean
        if self._weights is None:  # gradients that no one reduces may break on one process alone
            partials["broken"], merges["broken"] = (~numbers[:shared].isfinite()).to(numbers), "max"
        if self._weights is not None:
            weights, shared = torch.cat([self._weights, weights.to(self._weights)]), 0
            partials["measured"], merges["measured"] = measured[:-1], "max"
        merged = reduce.merge({"numbers": numbers[shared:], **partials}, merges, weights)
        alike = numbers[:shared].masked_fill(merged["broken"] > 0, torch.inf) if shared else numbers[:0]
        return (
            torch.cat([alike, merged["numbers"]]),
            torch.cat([merged.get("measured", measured[:-1]), merged["known"]]),
        )

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
