"""The first batch that trains, listened to: its forward pass, and the gradients of the first steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._setup import why_unheard
from lightning_weightwatch.evidence import Signal
from lightning_weightwatch.meters import LossMeter, owned
from lightning_weightwatch.parameters import Parameter, named_tensors
from lightning_weightwatch.propagation import Propagation

_TRIES = 3  # batches that nothing can be learnt from, as after a ``training_step`` that returned ``None``


class FirstBatch:
    """Enters a ``Propagation`` with the first batch, and leaves it before the backward pass.

    Args:
        parameters: What is watched.
        why_not: Why the batch cannot be listened to; nothing where it can.

    Attributes:
        is_done: Whether there is nothing more to be measured.
    """

    def __init__(self, parameters: Sequence[Parameter], why_not: str) -> None:
        self.is_done = bool(why_not)
        self._parameters, self._why_not = parameters, why_not
        self._passing: Propagation | None = None
        self._losses, self._scale = LossMeter(), 1.0
        self._began, self._step, self._steps, self._tries = -1, -1, 0, 0

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Listen to the forward pass that follows, if it is the first."""
        if self.is_done or self._passing is not None:
            return
        tensors = dict(named_tensors(pl_module))
        self._began = _trainer.log_step(trainer)
        self._passing = Propagation(self._parameters, tensors, batch, step=self._began)
        self._passing.listener.__enter__()

    def before_backward(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Stop listening, and note the loss of the first step."""
        if self._passing is None or self._steps:
            return
        self._leave(self._passing)
        scale, window = _trainer.loss_scale(trainer), max(trainer.accumulate_grad_batches, 1)
        self._scale = (1.0 if scale is None else float(scale)) / window
        self._losses.add(_trainer.log_step(trainer), loss, scale=scale, divided_by=window)

    def before_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Note the gradients of an optimizer's parameters; of several optimizers those of the same step together."""
        if self._passing is None or self.is_done:
            return
        step, names = _trainer.log_step(trainer), {}
        for name, tensor in named_tensors(trainer.lightning_module).items():
            names[id(tensor)] = name
        gradients = {names[id(p)]: p.grad for p in owned(optimizer) if id(p) in names and p.grad is not None}
        if not gradients and not self._steps:  # a ``training_step`` that returned ``None`` is followed by this as well
            return
        scale = _trainer.gradient_scale(trainer, optimizer)
        self._passing.add(gradients, scale=1.0 if scale is None else float(scale), anew=step != self._step)
        loss = self._losses.of(step)
        if loss is not None and not self._steps:
            self._passing.loss = float(loss)
        self._steps += step != self._step
        self._step = step

    def end_batch(self, trainer: pl.Trainer) -> None:
        """Decide whether all is known."""
        if self._passing is None or self.is_done:
            return
        self._leave(self._passing)
        if self._passing.failure is not None:
            self.is_done = True
        elif self._is_void(trainer, self._passing):
            self._tries += 1
            self.is_done = self._tries >= _TRIES
            if not self.is_done:
                self._passing, self._step, self._steps = None, -1, 0
        elif self._steps and not self._passing.wants_more:
            self.is_done = True

    def leave(self) -> None:
        """Let go of the forward pass, wherever it is."""
        if self._passing is not None:
            self._leave(self._passing)

    def end_epoch(self) -> None:
        """Let go of a batch that was begun and not trained on: its epoch ended where it was about to begin."""
        self.leave()
        if not self._steps:
            self._passing = None

    def signal(self, optimizers: Sequence[Optimizer]) -> Signal:
        """Return what is known so far; this waits for the device."""
        passing = self._passing
        if passing is None:
            return Signal(not_measured=(f"how a batch passes: {self._why_not or 'no batch was trained on'}",))
        return passing.read(optimizers=[type(o).__name__ for o in optimizers], scale=self._scale)

    def _is_void(self, trainer: pl.Trainer, passing: Propagation) -> bool:
        """Whether it was no batch to train on: without a loss or a step, or skipped in the search for a loss scale."""
        if self._steps:
            return self._steps == 1 and passing.has_overflowed and _trainer.has_grad_scaler(trainer)
        return self._losses.of(self._began) is None or _trainer.ends_window(trainer)

    def _leave(self, passing: Propagation) -> None:
        if not passing.listener.is_closed:
            passing.listener.close()
        passing.listener.remove()


def why_not(kind: _trainer.StrategyKind, trainer: pl.Trainer, pl_module: pl.LightningModule, *, resumed: bool) -> str:
    """Say why the first batch would not be listened to; nothing, if it will."""
    if resumed:
        return "a checkpoint was loaded"
    if kind in ("sharded", "hidden"):
        return f"{type(trainer.strategy).__name__} cuts weights into shards"
    return why_unheard(pl_module, trainer.optimizers)
