"""The whole run in a bounded number of columns, for pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


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
