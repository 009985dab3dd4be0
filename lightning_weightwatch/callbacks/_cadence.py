"""When something is due, so that a run of any length leaves a bounded number of points.

TensorBoard keeps a random 10 images, 50 histograms and 1,000 scalars per tag. What must be seen is therefore written
so seldom that nothing is thrown away.
"""

from __future__ import annotations

import math


class Cadence:
    """Due at the first step it is asked about and then every so many steps.

    Args:
        points: How many times to be due in the whole run, at most.
        least: The shortest distance in steps.
        planned: Steps of the run. If unknown, the distance doubles whenever ``points / 2`` have been used up, which
            leaves at most ``points / 2`` more for each doubling of the run.

    Attributes:
        stride: The distance is this many times as long; set by whoever must save time.

    Example:
        >>> cadence = Cadence(points=4, least=1, planned=10)
        >>> [step for step in range(10) if cadence.due(step)]
        [0, 3, 6, 9]
    """

    def __init__(self, *, points: int, least: int, planned: int | None) -> None:
        self.stride = 1
        self._every = max(least, math.ceil(planned / points) if planned else 1)
        self._double_after = None if planned else max(points // 2, 1)
        self._next: int | None = None
        self._used = 0

    @classmethod
    def every(cls, steps: int) -> Cadence:
        """Return one that is due every ``steps`` steps, however long the run."""
        return cls(points=1, least=steps, planned=1)

    @property
    def distance(self) -> int:
        """The distance in steps as it is now."""
        return self._every * self.stride

    def due(self, step: int) -> bool:
        """Whether ``step`` is due; each step is due once."""
        if self._next is not None and step < self._next:
            return False
        self._used += 1
        if self._used == self._double_after:
            self._every, self._used = 2 * self._every, 0
        self._next = step + self.distance
        return True
