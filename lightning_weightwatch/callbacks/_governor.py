"""How often a callback may work: it measures its own share of the time and thins itself to stay below a limit."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Hook = TypeVar("Hook", bound=Callable[..., None])

GRACE = 5.0  # seconds of work beyond the limit that nobody notices, however short the run
_WIDEST = 128  # steps


class Governor:
    """Measures how long a callback works, and says how seldom it must.

    What is decided follows from the numbers that ``learn`` gets and from nothing else: processes that are told the same
    numbers decide alike.

    Args:
        limit: The largest share of the time; ``None`` measures, but never thins.
        grace: Seconds of work beyond it that are let pass.

    Example:
        >>> governor = Governor(0.01, grace=1.0)
        >>> governor.learn(own=0.5, whole=10.0), governor.stride
        (False, 1)
        >>> governor.learn(own=0.9, whole=10.0), governor.stride
        (True, 8)
    """

    def __init__(self, limit: float | None, *, grace: float = GRACE) -> None:
        self.stride = 1
        self.share = math.nan
        self._limit, self._grace = limit, grace
        self._own = self._debt = self._worked = self._passed = 0.0
        self._depth, self._since, self._begun = 0, 0.0, time.perf_counter()

    def __enter__(self) -> None:
        """Begin to count time as work."""
        self._depth += 1
        if self._depth == 1:
            self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        self._depth -= 1
        if self._depth == 0:
            self._own += time.perf_counter() - self._since

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Do not count the time within: the device is busy with the training."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._own -= time.perf_counter() - begin

    def take(self) -> tuple[float, float]:
        """Return the seconds worked and the seconds passed since this was last asked."""
        now = time.perf_counter()
        taken = self._own, now - self._begun
        self._own, self._begun = 0.0, now
        return taken

    def learn(self, own: float, whole: float) -> bool:
        """Take note of ``own`` seconds of work within ``whole`` seconds; say whether the stride has become wider."""
        self._worked, self._passed = self._worked + own, self._passed + whole
        self.share = self._worked / self._passed if self._passed else math.nan
        if self._limit is None:
            return False
        self._debt = max(self._debt + own - self._limit * whole, 0.0)
        excess = self.share / self._limit
        if self._debt <= self._grace or not excess > 1 or self.stride == _WIDEST:
            return False
        self.stride = min(self.stride * 2 ** math.ceil(math.log2(excess)), _WIDEST)
        self._debt = self._worked = self._passed = 0.0  # what is measured from now on is another cadence
        return True

    def notice(self, step: int, *, every: int | None = None) -> str:
        """Say what ``learn`` has just decided, to be read after the callback's name.

        Args:
            step: From when on it holds.
            every: The distance of measured steps, if it is not the stride.
        """
        return (
            f"took {self.share:.1%} of the time, more than max_overhead={self._limit:.1%}. "
            f"From step {step} on one step in {every or self.stride} is measured."
        )

    @property
    def is_paid(self) -> bool:
        """Whether all work so far lies within the limit, without grace."""
        return self._debt <= 0


def timed(hook: Hook) -> Hook:
    """Count the time of a hook as work; the callback keeps its governor in ``self._fit.governor``."""

    @functools.wraps(hook)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._fit.governor:
            return hook(self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]  # functools.wraps keeps the signature
