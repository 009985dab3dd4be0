"""What ``watch()`` with everything at its defaults adds to whole trainings of small networks."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from fits import fit
from networks import GPT, ResNet
from tables import SPREAD, Settings, Table, say
from timing import Ratio, spread

from lightning_weightwatch import watch

_MOST_PAIRS = 3
_WARM_UP = 10  # steps that are left out of the mean
_NETWORKS = {"small ResNet": ResNet, "small GPT": GPT}


def measure(settings: Settings) -> Table:
    """Train pairs, watched and plain, each first in every other pair."""
    rows: dict[str, Ratio] = {}
    plain = {}
    for name, network in _NETWORKS.items():
        _train(network, 2, watched=True)  # imports and fonts are loaded once in a process
        fits, steps, shares = [], [], []
        for pair in range(min(settings.rounds, _MOST_PAIRS)):
            say(f"training, {name}, pair {pair + 1}")
            order = (True, False) if pair % 2 else (False, True)
            taken = {watched: _train(network, settings.steps, watched=watched) for watched in order}
            fits.append(taken[True][0] / taken[False][0])
            steps.append(taken[True][1] / taken[False][1])
            shares.append(1 + taken[True][2])
            plain[name] = taken[False][1]
        rows[f"fit of {settings.steps} steps, {name}, watched over plain"] = spread(fits)
        rows[f"one step of it, {name}, watched over plain"] = spread(steps)
        rows[f"the same without the machine's noise, {name}"] = spread(shares)
    note = ", ".join(f"{1e3 * seconds:.0f} ms a step ({name})" for name, seconds in plain.items())
    note = f"Plain trainings take {note}. Without noise: one step less the time in our hooks, measured in the same run."
    return Table("Whole trainings with watch()", SPREAD, rows, note)


class _StepTimes(pl.Callback):
    """Notes when each step begins."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun.append(time.perf_counter())

    def mean(self) -> float:
        """Return the mean seconds from one step's beginning to the next, after the first few."""
        begun = self.begun[_WARM_UP:] if len(self.begun) > _WARM_UP + 1 else self.begun
        return statistics.mean(after - before for before, after in itertools.pairwise(begun))


class _Stopwatch:
    """Adds up the time spent within the hooks of callbacks that belong to a step."""

    _HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")

    def __init__(self, callbacks: list[pl.Callback], times: _StepTimes) -> None:
        self.seconds, self._times = 0.0, times
        for callback in callbacks:
            for name in (*self._HOOKS, "_before_step", "_after_step"):
                if hasattr(callback, name):
                    setattr(callback, name, functools.partial(self._timed, getattr(callback, name)))

    def _timed(self, hook: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        try:
            return hook(*arguments)
        finally:
            if len(self._times.begun) > _WARM_UP:
                self.seconds += time.perf_counter() - begin


def _train(network: type[ResNet | GPT], steps: int, *, watched: bool) -> tuple[float, float, float]:
    """Return the seconds of the whole fit, those of one step, and our share of the rest of it."""
    callbacks = watch(seed=0) if watched else []
    torch.manual_seed(0)
    times = _StepTimes()
    stopwatch = _Stopwatch(callbacks, times)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    whole = fit(network(), network.batches(steps), [times, *callbacks], accelerator=device, devices=1)
    ours = stopwatch.seconds / max(len(times.begun) - _WARM_UP, 1)
    return whole, times.mean(), ours / (times.mean() - ours)
