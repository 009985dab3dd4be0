"""What is remembered: a bounded history of read-outs, which rules judge and figures draw.

It knows names, steps and numbers; no tensor, no rank, no Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Watched:
    """A parameter as far as rules need to know it.

    Attributes:
        name: Its name.
        numel: The number of its elements.
        is_matrix: Whether it mixes inputs into outputs: these, in forward order, make the depth profile.
        place: Its place in the forward pass; where places are the same, the order of the parameters counts.
    """

    name: str
    numel: int
    is_matrix: bool
    place: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Full statistics of every parameter at one step.

    Attributes:
        step: The step.
        parameters: The names, length ``P``.
        values: Each statistic by name, shape ``[P]``; NaN where it was not measured.

    Example:
        >>> Snapshot(7, ("fc.weight",), {"grad_norm": np.array([0.5])}).of("fc.weight")
        {'grad_norm': 0.5}
    """

    step: int
    parameters: tuple[str, ...]
    values: Mapping[str, Floats]

    def of(self, parameter: str) -> dict[str, float]:
        """Return every statistic of one parameter.

        Raises:
            ValueError: If there is no such parameter.
        """
        place = self.parameters.index(parameter)
        return {name: float(column[place]) for name, column in self.values.items()}


class Evidence:
    """The last ``window`` steps of every parameter's gradient norm, and the loss.

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
        self.scaled_loss = scaled_loss
        self.window = window
        self.first_losses: list[float] = []
        self.snapshots: list[Snapshot] = []
        # Twice the window, so that the rows of the window always stand in a row and are moved once in a window.
        self._norms: Floats = np.empty((2 * window, len(self.parameters)))
        self._losses: Floats = np.empty(2 * window)
        self._clipped: Floats = np.empty(2 * window)
        self._steps = np.empty(2 * window, dtype=np.int64)
        self._roots = np.sqrt([max(p.numel, 1) for p in self.parameters])
        self._begin = self._end = 0

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
    ) -> None:
        """Remember one step, or add to the last one.

        Args:
            step: The step, not before the last one.
            norms: The l2 norm of each parameter's gradient, shape ``[P]``; NaN or Inf means non-finite gradients.
            measured: Which of them were measured, shape ``[P]``; all, if not given. The rest have no gradient.
            loss: The loss, if it is known; NaN or Inf means that it was.
            clipped: The norms after clipping, shape ``[P]``, NaN where not measured; none, if nothing clips.
        """
        norms = np.asarray(norms, dtype=np.float64)
        norms = np.where(np.isfinite(norms), norms, np.inf)
        if measured is not None:
            norms = np.where(measured, norms, np.nan)
        row = self._row(step)
        self._norms[row] = np.where(np.isnan(norms), self._norms[row], norms)
        if loss is not None:
            self._losses[row] = loss if np.isfinite(loss) else np.inf
            if len(self.first_losses) < FIRST and np.isfinite(loss):
                self.first_losses.append(float(loss))
        if clipped is not None:
            self._clipped[row] = _total(np.asarray(clipped, dtype=np.float64)[None])[0]

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Remember full statistics; of those remembered the oldest goes."""
        self.snapshots = [*self.snapshots, snapshot][-SNAPSHOTS:]

    def take_over(self, earlier: Evidence) -> None:
        """Remember what was remembered of parameters of the same name, before others came or went."""
        columns = {p.name: i for i, p in enumerate(earlier.parameters)}
        kept = [(i, columns[p.name]) for i, p in enumerate(self.parameters) if p.name in columns]
        rows = zip(earlier.steps, earlier.norms, earlier.losses, earlier.clipped_norm, strict=True)
        for step, norms, loss, clipped in rows:
            row = self._row(step)
            self._losses[row], self._clipped[row] = loss, clipped
            for here, there in kept:
                self._norms[row, here] = norms[there]
        self.first_losses, self.snapshots = list(earlier.first_losses), list(earlier.snapshots)

    def _row(self, step: int) -> int:
        """Return the row of a step, which is begun if it is not the last one."""
        if len(self) and self._steps[self._end - 1] == step:
            return self._end - 1
        if self._end == 2 * self.window:
            for rows in (self._norms, self._losses, self._clipped, self._steps):
                rows[: len(self)] = rows[self._begin : self._end].copy()
            self._begin, self._end = 0, len(self)
        for rows in (self._norms, self._losses, self._clipped):
            rows[self._end] = np.nan
        self._steps[self._end] = step
        self._end += 1
        self._begin = max(self._begin, self._end - self.window)
        return self._end - 1

    @property
    def steps(self) -> list[int]:
        """The remembered steps, ascending, length ``T``."""
        return list(map(int, self._steps[self._begin : self._end]))

    @property
    def norms(self) -> Floats:
        """Gradient norms, shape ``[T, P]``: NaN where nothing was measured, Inf where a gradient was not finite."""
        return self._norms[self._begin : self._end]

    @property
    def rms(self) -> Floats:
        """Root mean square gradients, shape ``[T, P]``, marked as ``norms`` are."""
        return np.asarray(self.norms / self._roots, dtype=np.float64)

    @property
    def global_norm(self) -> Floats:
        """The norm over all parameters, shape ``[T]``; NaN on steps where nothing was measured."""
        return _total(self.norms)

    @property
    def clipped_norm(self) -> Floats:
        """The norm over all parameters after clipping, shape ``[T]``; NaN where nothing clips or it was not measured.

        Where it lies below ``global_norm``, the gradients of that step were clipped.
        """
        return self._clipped[self._begin : self._end]

    @property
    def losses(self) -> Floats:
        """Losses, shape ``[T]``: NaN where unknown, Inf where not finite."""
        return self._losses[self._begin : self._end]

    @property
    def matrices(self) -> list[int]:
        """The columns of the parameters that make the depth profile, in forward order."""
        columns = [i for i, p in enumerate(self.parameters) if p.is_matrix]
        return sorted(columns, key=lambda i: self.parameters[i].place)

    def loss_ratio(self, last: int = 5) -> float:
        """Return the median of the last known losses over that of the first of the run; NaN while unknown.

        Below 1 the loss has fallen. Losses that begin at or below zero have no ratio.
        """
        known = self.losses[~np.isnan(self.losses)]
        if not self.first_losses or len(known) < last:
            return float("nan")
        first = float(np.median(self.first_losses))
        return float(np.median(known[-last:])) / first if first > 0 else float("nan")


FIRST = 5  # losses that make the run's starting level
SNAPSHOTS = 20  # remembered


def _total(norms: Floats) -> Floats:
    """Return the norm over all parameters for each row; NaN where nothing was measured."""
    total = np.sqrt(np.nansum(norms**2, axis=1))
    return np.where(np.isnan(norms).all(axis=1), np.nan, total)


class History:
    """The whole run in a bounded number of columns, for pictures.

    When the columns are full, neighbours are merged and each column covers twice as many steps. A merged cell keeps
    whichever of the two lies farther from the step's median, and a non-finite cell stays non-finite: one step of NaN
    stays visible through a run of any length.

    Args:
        rows: Numbers per step.
        columns: Columns to keep; even.

    Example:
        >>> history = History(rows=1, columns=2)
        >>> for step, value in enumerate([0.0, np.inf, 0.0, 0.0, 0.0]):
        ...     history.add(step, [value], loss=1.0)
        >>> history.steps, history.values.ravel().tolist()
        ([0, 4], [inf, 0.0])
    """

    def __init__(self, *, rows: int, columns: int = 120) -> None:
        self._rows, self._columns, self._stride = rows, columns, 1
        self.steps: list[int] = []
        self._values: list[Floats] = []
        self._losses: list[float] = []
        self._in_last = 0

    @property
    def values(self) -> Floats:
        """What is kept, shape ``[columns so far, rows]``."""
        return np.array(self._values).reshape(len(self.steps), self._rows)

    @property
    def losses(self) -> Floats:
        """The largest loss in each column, shape ``[columns so far]``."""
        return np.array(self._losses)

    def add(self, step: int, values: ArrayLike, *, loss: float) -> None:
        """Add one step: ``values`` of shape ``[rows]`` (NaN: not measured, Inf: not finite) and its loss."""
        row = np.array(values, dtype=np.float64)
        if self.steps and self._in_last < self._stride:
            self._values[-1] = _farther(self._values[-1], row)
            self._losses[-1] = float(np.fmax(self._losses[-1], loss))
            self._in_last += 1
            return
        if len(self.steps) == self._columns:
            self._halve()
            self.add(step, values, loss=loss)
            return
        self.steps.append(step)
        self._values.append(row)
        self._losses.append(loss)
        self._in_last = 1

    def _halve(self) -> None:
        pairs = range(0, len(self.steps) - 1, 2)
        self._values = [_farther(self._values[i], self._values[i + 1]) for i in pairs]
        self._losses = [float(np.fmax(self._losses[i], self._losses[i + 1])) for i in pairs]
        self.steps = [self.steps[i] for i in pairs]
        self._in_last = 2 * self._stride
        self._stride *= 2


def _farther(a: Floats, b: Floats) -> Floats:
    """Keep, cell by cell, the value farther from its own column's median; +Inf (non-finite) above all, NaN below."""
    distance = [_distance(a), _distance(b)]
    return np.where((distance[1] > distance[0]) | np.isnan(a), b, a)


def _distance(values: Floats) -> Floats:
    finite = values[np.isfinite(values)]
    middle = np.median(finite) if finite.size else 0.0
    away = np.where(np.isposinf(values), np.inf, np.abs(np.where(np.isfinite(values), values, -300.0) - middle))
    return np.where(np.isnan(values), -1.0, away)
