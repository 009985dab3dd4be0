"""Times of two acts taken in turn, so that whatever else the machine does slows both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Ratio = tuple[float, float, float]

_LEAST = 3  # pairs, however slow
_ENOUGH = 0.5  # seconds of repetitions
_PATIENCE = 15.0  # seconds for the pairs of one row; slow ones are measured fewer times


def paired(measure: Callable[[], Any], against: Callable[[], Any], *, rounds: int) -> Ratio:
    """Run both in turn, each first in every other pair, and return the spread of the ratios of their times."""
    seconds(measure), seconds(against)  # warms up
    ratios: list[float] = []
    begin = time.perf_counter()
    while len(ratios) < rounds and (len(ratios) < _LEAST or time.perf_counter() - begin < _PATIENCE):
        if len(ratios) % 2:
            below, above = seconds(against), seconds(measure)
        else:
            above, below = seconds(measure), seconds(against)
        ratios.append(above / below)
    return spread(ratios)


def typical(act: Callable[[], Any], *, rounds: int) -> float:
    """Return the median of the seconds that an act takes; a short one is repeated more often."""
    act()
    taken: list[float] = []
    while len(taken) < rounds or sum(taken) < _ENOUGH:
        taken.append(seconds(act))
    return statistics.median(taken)


def seconds(act: Callable[[], Any]) -> float:
    """Return how long an act takes, what it leaves to the device included, Python's garbage collection not.

    As in ``timeit``: a collection costs by what else is alive in the process and falls on whoever happens to run.
    """
    _wait()
    was_on = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        act()
        _wait()
        return time.perf_counter() - begin
    finally:
        if was_on:
            gc.enable()


def spread(values: Sequence[float]) -> Ratio:
    """Return the least, the median and the largest."""
    return min(values), statistics.median(values), max(values)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
