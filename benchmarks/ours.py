"""What lightning_weightwatch does to the gradients of a module; each gives an act that can be timed or counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD

from lightning_weightwatch import counter, stats
from lightning_weightwatch.parameters import describe, named_tensors, values
from lightning_weightwatch.recorder import GradientRecorder
from lightning_weightwatch.stats import histogram

Act = Callable[[], Any]

FLUSH_EVERY = 10  # the monitor's default
_FULL = [name for name in stats.all_statistics() if name not in ("histogram", "norm")]


class Monitored:
    """What the gradient monitor does around one optimizer step, without a Trainer."""

    def __init__(self, module: nn.Module, *, rows: int = FLUSH_EVERY + 1, clipping: bool = False) -> None:
        self.optimizer = SGD(module.parameters(), lr=0.0)
        self.recorder = _recorder(module, rows=rows, clipping=clipping)
        self.loss = next(module.parameters()).detach().new_zeros(())
        self.step, self.rows, self.clipping = 0, rows, clipping

    def measure(self) -> None:
        """Do what is done on every step; an emptied ring is as good as a new one."""
        if self.step and self.step % self.rows == 0:
            self.flush()
        recorder, optimizer = self.recorder, self.optimizer
        recorder.covers(optimizer)
        recorder.add(self.step, optimizer, recorder.gradients(optimizer), loss=self.loss)
        recorder.before_step(optimizer)
        recorder.after_step(self.step, optimizer, recorder.gradients(optimizer) if self.clipping else {})
        self.step += 1

    def measure_in_full(self) -> None:
        """Do what is done on a step with full statistics."""
        self.recorder.begin_snapshot(self.step)
        self.measure()
        self.flush()

    def flush(self) -> None:
        """Bring what waits to the host."""
        self.recorder.receive(self.recorder.send({}, agree=False))


def _recorder(module: nn.Module, *, rows: int, clipping: bool) -> GradientRecorder:
    """Make the recorder as the monitor makes it."""
    return GradientRecorder(describe(module), named_tensors(module), rows=rows, sharded=False, clipping=clipping)


@contextmanager
def always_on(module: nn.Module) -> Iterator[Act]:
    """Measure the norm of every gradient, and put it into the ring."""
    yield Monitored(module, rows=1000).measure


@contextmanager
def always_on_clipped(module: nn.Module) -> Iterator[Act]:
    """Measure the norms a second time after clipping, as the monitor does where the Trainer clips."""
    yield Monitored(module, rows=1000, clipping=True).measure


@contextmanager
def full_statistics(module: nn.Module) -> Iterator[Act]:
    """Measure mean, standard deviation, extremes, zeros and non-finite elements of every gradient."""
    yield partial(stats.measure, _FULL, gradients(module))


@contextmanager
def histograms(module: nn.Module) -> Iterator[Act]:
    """Count the elements of every gradient."""
    yield partial(histogram.measure, gradients(module))


@contextmanager
def flush(module: nn.Module) -> Iterator[Act]:
    """Bring ten steps to the host."""
    monitored = Monitored(module)
    for _ in range(FLUSH_EVERY):
        monitored.measure()
    yield monitored.flush


@contextmanager
def due_statistics(module: nn.Module) -> Iterator[Act]:
    """Do all that the monitor does on a step with full statistics."""
    yield Monitored(module).measure_in_full


@contextmanager
def due_histograms(module: nn.Module) -> Iterator[Act]:
    """Count as the histogram logger does: weights before the step, gradients in it."""

    def act() -> None:
        tensors = named_tensors(module)
        names, held = list(tensors), list(tensors.values())
        counter.count(names, held, held, None)
        counter.count(names, held, [p.grad for p in held], None)

    yield act


def gradients(module: nn.Module) -> list[Tensor]:
    """Return the gradients as plain local tensors."""
    return [values(p.grad) for p in module.parameters() if p.grad is not None]


EVERY = {
    "ours: norm of every gradient, every step": always_on,
    "ours: the same before and after clipping": always_on_clipped,
    "ours: full statistics of every gradient": full_statistics,
    "ours: histogram of every gradient": histograms,
}
