"""The losses of the whole run in a bounded number of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class LossCurve:
    """The median of every few steps; when it is full, neighbours are merged and each point covers twice as many steps.

    Losses that are not finite are left out.

    Args:
        points: The most points to keep; even.
        steps: How many losses make a point at first.

    Example:
        >>> curve = LossCurve(points=4, steps=1)
        >>> for step, loss in enumerate([3.0, 1.0, 0.5, 0.5, 0.4, 0.2]):
        ...     curve.add(step, loss)
        >>> curve.steps, curve.losses.tolist()
        ([0, 2, 4], [2.0, 0.5, 0.30000000000000004])
    """

    def __init__(self, *, points: int = 200, steps: int = 5) -> None:
        self._points, self._stride = points, steps
        self.steps: list[int] = []
        self._losses: list[float] = []
        self._pending: list[float] = []
        self._since = 0

    def __len__(self) -> int:
        """The number of points."""
        return len(self.steps)

    @property
    def stride(self) -> int:
        """How many losses make a point now."""
        return self._stride

    @property
    def losses(self) -> Floats:
        """The points, each the median of as many losses as ``stride`` says."""
        return np.array(self._losses)

    def add(self, step: int, loss: float) -> None:
        """Add the loss of one step."""
        if not np.isfinite(loss):
            return
        if not self._pending:
            self._since = step
        self._pending.append(loss)
        if len(self._pending) >= self._stride:
            self.steps.append(self._since)
            self._losses.append(float(np.median(self._pending)))
            self._pending = []
        if len(self.steps) == self._points:
            self._halve()

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {"stride": self._stride, "steps": list(self.steps), "losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an earlier run stopped."""
        self._stride, self._pending = int(state["stride"]), []
        self.steps, self._losses = list(state["steps"]), list(state["losses"])

    def _halve(self) -> None:
        self._losses = [(a + b) / 2 for a, b in zip(self._losses[::2], self._losses[1::2], strict=True)]
        self.steps = self.steps[::2]
        self._stride *= 2
