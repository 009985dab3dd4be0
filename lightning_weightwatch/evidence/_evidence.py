"""The evidence that rules judge."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_weightwatch.evidence._curve import LossCurve
from lightning_weightwatch.evidence._readings import (
    DeadUnits,
    Floats,
    Listened,
    Replicas,
    Setup,
    Snapshot,
    Validation,
    Watched,
)

Computed = TypeVar("Computed")


class Evidence:
    """The last ``window`` steps of every parameter's gradient norm, and the loss; and what was read now and then.

    Attributes:
        names: The names of the parameters.
        setup: How the training is set up.
        first_losses: The first finite losses of the run, at most ``FIRST``.
        curve: The losses of the whole run.
        first_snapshot: The first full statistics of the run, if there were any.
        snapshots: The last full statistics, at most ``SNAPSHOTS``.
        dead: The last readings of units without a gradient.
        listened: The last forward passes that were listened to.
        validations: The last validations.
        replicas: The last comparisons of the processes' copies.
        broken_losses: The processes whose own loss was not finite, and the first step at which it was not.

    Args:
        parameters: What is watched, in forward order.
        window: Steps to remember.
        scaled_loss: A GradScaler skips steps with non-finite gradients; it makes them on purpose to find its scale.

    Example:
        >>> evidence = Evidence([Watched("fc1", 4, True), Watched("fc2", 4, True)])
        >>> evidence.add(0, [2.0, 4.0], loss=1.5)
        >>> evidence.rms
        array([[1., 2.]])
    """

    def __init__(self, parameters: Sequence[Watched], *, window: int = 200, scaled_loss: bool = False) -> None:
        self.parameters = tuple(parameters)
        self.names = tuple(p.name for p in self.parameters)
        columns = [i for i, p in enumerate(self.parameters) if p.is_matrix]
        self._matrices = tuple(sorted(columns, key=lambda i: self.parameters[i].place))
        self.scaled_loss = scaled_loss
        self.window = window
        self.setup = Setup()
        self.first_losses: list[float] = []
        self.curve = LossCurve()
        self.first_snapshot: Snapshot | None = None
        self.snapshots: list[Snapshot] = []
        self.dead: list[DeadUnits] = []
        self.listened: list[Listened] = []
        self.validations: list[Validation] = []
        self.replicas: list[Replicas] = []
        self.broken_losses: dict[int, int] = {}
        # Twice the window, so that the rows of the window always stand in a row and are moved once in a window.
        self._norms: Floats = np.empty((2 * window, len(self.parameters)))
        self._numbers = {name: np.empty(2 * window) for name in _NUMBERS}
        self._steps = np.empty(2 * window, dtype=np.int64)
        self._roots = np.sqrt([max(p.numel, 1) for p in self.parameters])
        self._begin = self._end = 0
        self._known: dict[Hashable, Any] = {}  # what follows from the rows, until the next one is added

    def __len__(self) -> int:
        """The number of remembered steps."""
        return self._end - self._begin

    def add(
        self,
        step: int,
        norms: ArrayLike,
        *,
        measured: ArrayLike | None = None,
        loss: float | None = None,
        clipped: ArrayLike | None = None,
        learning_rate: float | None = None,
        stale: float | None = None,
        batch: float | None = None,
    ) -> None:
        """Remember one step, or add to the last one.

        Args:
            step: The step, not before the last one.
            norms: The l2 norm of each parameter's gradient, shape ``[P]``; NaN or Inf means non-finite gradients.
            measured: Which of them were measured, shape ``[P]``; all, if not given. The rest have no gradient.
            loss: The loss, if it is known; NaN or Inf means that it was.
            clipped: The norms after clipping, shape ``[P]``, NaN where not measured; none, if nothing clips.
            learning_rate: The largest of all parameter groups.
            stale: 1 where an optimizer's gradients were not cleared since its last step, 0 where all were.
            batch: The place of the step's last batch in its epoch.
        """
        norms = np.asarray(norms, dtype=np.float64)
        norms = np.where(np.isfinite(norms), norms, np.inf)
        if measured is not None:
            norms = np.where(measured, norms, np.nan)
        row = self._row(step)
        self._norms[row] = np.where(np.isnan(norms), self._norms[row], norms)
        if loss is not None:
            is_first = np.isnan(self._numbers["loss"][row])
            self._numbers["loss"][row] = loss if np.isfinite(loss) else np.inf
            if is_first and np.isfinite(loss):
                self.curve.add(step, loss)
                self.first_losses += [float(loss)][: FIRST - len(self.first_losses)]
        if clipped is not None:
            self._numbers["clipped"][row] = _total(np.asarray(clipped, dtype=np.float64)[None])[0]
        for name, number in (("learning_rate", learning_rate), ("stale", stale), ("batch", batch)):
            if number is not None:
                self._numbers[name][row] = number

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Remember full statistics; of those remembered the oldest goes, but for the first of the run."""
        self.first_snapshot = self.first_snapshot or snapshot
        self.snapshots = [*self.snapshots, snapshot][-SNAPSHOTS:]

    def add_reading(self, reading: DeadUnits | Listened | Validation | Replicas) -> None:
        """Remember what was read now and then."""
        kinds: dict[type, list[Any]] = {
            DeadUnits: self.dead,
            Listened: self.listened,
            Validation: self.validations,
            Replicas: self.replicas,
        }
        readings = kinds[type(reading)]
        readings.append(reading)
        del readings[:-READINGS]

    def take_over(self, earlier: Evidence) -> None:
        """Remember what was remembered of parameters of the same name, before others came or went."""
        columns = {p.name: i for i, p in enumerate(earlier.parameters)}
        kept = [(i, columns[p.name]) for i, p in enumerate(self.parameters) if p.name in columns]
        for there, step in enumerate(earlier.steps, start=earlier._begin):
            row = self._row(step)
            for name, numbers in self._numbers.items():
                numbers[row] = earlier._numbers[name][there]
            for i, j in kept:
                self._norms[row, i] = earlier._norms[there, j]
        self.first_losses, self.curve = list(earlier.first_losses), earlier.curve
        self.first_snapshot, self.snapshots = earlier.first_snapshot, list(earlier.snapshots)
        self.setup, self.broken_losses = earlier.setup, dict(earlier.broken_losses)
        self.listened, self.validations = list(earlier.listened), list(earlier.validations)

    def state_dict(self) -> dict[str, Any]:
        """Return what later steps are held against: arrays, plain values, and lists and dicts of them.

        Readings of single moments are left out, but for the first snapshot's weights and the validations.
        """
        first = self.first_snapshot
        return {
            "names": list(self.names),
            "steps": self.steps,
            "norms": _single(self.norms),
            "numbers": {name: self._remembered(name).copy() for name in _NUMBERS},
            "first_losses": list(self.first_losses),
            "curve": self.curve.state_dict(),
            "first_weights": first.column("weight_norm") if first else {},
            "first_step": first.step if first else 0,
            "validations": [[v.step, v.loss, v.name] for v in self.validations],
            "broken_losses": dict(self.broken_losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what an earlier run remembered of parameters of the same name."""
        earlier = Evidence([Watched(name, 1, False) for name in state["names"]], window=self.window)
        keep = slice(-self.window, None)
        for i, step in enumerate(state["steps"][keep]):
            row = earlier._row(int(step))
            earlier._norms[row] = state["norms"][keep][i]
            for name in _NUMBERS:
                earlier._numbers[name][row] = state["numbers"][name][keep][i]
        earlier.first_losses = list(state["first_losses"])
        earlier.curve.load_state_dict(state["curve"])
        if state["first_weights"]:
            weights = np.array(list(state["first_weights"].values()))
            earlier.first_snapshot = Snapshot(
                state["first_step"], tuple(state["first_weights"]), {"weight_norm": weights}
            )
        earlier.validations = [Validation(*plain) for plain in state["validations"]]
        earlier.broken_losses = {int(rank): int(step) for rank, step in state["broken_losses"].items()}
        self.take_over(earlier)

    def _row(self, step: int) -> int:
        """Return the row of a step, which is begun if it is not the last one."""
        self._known.clear()
        if len(self) and self._steps[self._end - 1] == step:
            return self._end - 1
        if self._end == 2 * self.window:
            for rows in (self._norms, self._steps, *self._numbers.values()):
                rows[: len(self)] = rows[self._begin : self._end].copy()
            self._begin, self._end = 0, len(self)
        for rows in (self._norms, *self._numbers.values()):
            rows[self._end] = np.nan
        self._steps[self._end] = step
        self._end += 1
        self._begin = max(self._begin, self._end - self.window)
        return self._end - 1

    @property
    def steps(self) -> list[int]:
        """The remembered steps, ascending, length ``T``."""
        found: list[int] = self.once("steps", self._steps[self._begin : self._end].tolist)
        return list(found)

    @property
    def norms(self) -> Floats:
        """Gradient norms, shape ``[T, P]``: NaN where nothing was measured, Inf where a gradient was not finite."""
        return self._norms[self._begin : self._end]

    @property
    def rms(self) -> Floats:
        """Root mean square gradients, shape ``[T, P]``, marked as ``norms`` are."""
        found: Floats = self.once("rms", lambda: np.asarray(self.norms / self._roots, dtype=np.float64))
        return np.array(found)

    @property
    def global_norm(self) -> Floats:
        """The norm over all parameters, shape ``[T]``; NaN on steps where nothing was measured."""
        found: Floats = self.once("global_norm", lambda: _total(self.norms))
        return np.array(found)

    @property
    def clipped_norm(self) -> Floats:
        """The norm over all parameters after clipping, shape ``[T]``; NaN where nothing clips or it was not measured.

        Where it lies below ``global_norm``, the gradients of that step were clipped.
        """
        return self._remembered("clipped")

    @property
    def losses(self) -> Floats:
        """Losses, shape ``[T]``: NaN where unknown, Inf where not finite."""
        return self._remembered("loss")

    @property
    def learning_rates(self) -> Floats:
        """The largest learning rate of all parameter groups, shape ``[T]``; NaN where unknown."""
        return self._remembered("learning_rate")

    @property
    def stale(self) -> Floats:
        """1 where gradients were not cleared since the last step, else 0, shape ``[T]``; NaN where nobody can tell."""
        return self._remembered("stale")

    @property
    def batches(self) -> Floats:
        """The place of each step's last batch in its epoch, shape ``[T]``; NaN where unknown."""
        return self._remembered("batch")

    @property
    def has_opponents(self) -> bool:
        """Whether several optimizers train, whose losses may rise for one another; then no loss must fall."""
        return len(self.setup.optimizers) > 1

    @property
    def matrices(self) -> list[int]:
        """The columns of the parameters that make the depth profile, in forward order."""
        return list(self._matrices)

    def loss_ratio(self, last: int = 5) -> float:
        """Return the median of the last known losses over that of the first of the run; NaN while unknown.

        Below 1 the loss has fallen. Losses that begin at or below zero have no ratio.
        """
        return self.once(("loss_ratio", last), lambda: self._loss_ratio(last))

    def _loss_ratio(self, last: int) -> float:
        known = self.losses[~np.isnan(self.losses)]
        if not self.first_losses or len(known) < last:
            return float("nan")
        first = float(np.median(self.first_losses))
        return float(np.median(known[-last:])) / first if first > 0 else float("nan")

    def once(self, name: Hashable, work: Callable[[], Computed]) -> Computed:
        """Return what ``work`` gave when it was last asked for by this name, if no step was added since; else ask it.

        For what several rules ask of the remembered steps, and of nothing else; nobody may write to it.
        """
        if name not in self._known:
            self._known[name] = work()
        found: Computed = self._known[name]
        return found

    def _remembered(self, name: str) -> Floats:
        return self._numbers[name][self._begin : self._end]


FIRST = 5  # losses that make the run's starting level
SNAPSHOTS = 20  # remembered
READINGS = 50  # of each kind
_NUMBERS = ("loss", "clipped", "learning_rate", "stale", "batch")


def _single(norms: Floats) -> NDArray[np.float32]:
    """Return norms in single precision; what is finite stays finite."""
    largest = float(np.finfo(np.float32).max)
    return np.where(np.isinf(norms), norms, np.clip(norms, 0.0, largest)).astype(np.float32)


def _total(norms: Floats) -> Floats:
    """Return the norm over all parameters for each row; NaN where nothing was measured."""
    unknown = np.isnan(norms)
    total = np.sqrt((np.where(unknown, 0.0, norms) ** 2).sum(axis=1))
    return np.where(unknown.all(axis=1), np.nan, total)
