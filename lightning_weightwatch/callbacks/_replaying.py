"""When a step is done again: after it went wrong, and before the optimizer has moved the weights.

How it is done again lies in ``replay``. Here a Trainer is kept from noticing: nothing is logged, no optimizer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer

from lightning_weightwatch import replay
from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.replay import Kept, RandomStates, Replayed

_MOST = 3  # steps of a fit that are done again: the first say why, those after them only that it goes on
_AVERAGED = (
    "on this process the same batch gave finite numbers; gradients are averaged over all processes, so the batch of "
    "another may be the cause."
)
_MOVED = "an optimizer has moved weights since its batch began"
_WRITTEN = "the step wrote into its batch, which is not what it was"


@dataclass
class _Batch:
    kept: Kept
    idx: int
    rng: RandomStates
    losses: list[Tensor] = field(default_factory=list)


class Replayer:
    """Keeps what is needed to do a step again, and does so when its loss or its gradients are not finite.

    Batches are kept until their optimizer has stepped: one, or those of an accumulation window. Nothing here meets
    other processes; each does its own step again, or does not.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trainer, self._module = trainer, pl_module
        self._devices = replay.accelerators(pl_module)
        self._window: list[_Batch] = []
        self._checks = 0  # since the last batch began
        self._left = _MOST

    def note(self, batch: Any, batch_idx: int) -> None:
        """Keep a batch that is about to be trained on; in ``on_train_batch_start``."""
        if not self._left:
            return
        self._checks = 0
        keep = self._trainer.accumulate_grad_batches if self._module.automatic_optimization else 1
        del self._window[: max(len(self._window) - keep + 1, 0)]
        self._window.append(_Batch(Kept(batch), batch_idx, RandomStates.now(self._devices)))

    def note_loss(self, loss: Tensor) -> None:
        """Note a loss; in ``on_before_backward``."""
        if self._window:
            self._window[-1].losses.append(loss.detach())

    def check(self, optimizer: Optimizer, *, gradients: bool = True) -> Replayed | None:
        """Do the step again if it went wrong; in ``on_before_optimizer_step``, for every optimizer.

        It waits once for the device. Whatever fails, it gives an answer rather than an error.

        Args:
            optimizer: The optimizer that is about to step.
            gradients: Look at its gradients too, not at losses only. Under a GradScaler gradients that are not finite
                are how it finds its scale.

        Returns:
            What came of it; ``None`` where all is well, and after three answers in one fit.
        """
        if not (self._left and self._window):
            return None
        self._checks += 1
        found = None
        try:
            if not replay.all_finite([*self._losses(), *(_gradients(optimizer) if gradients else ())]):
                found = self._answer()
                self._left = 0 if found.phase == "weights" else self._left - 1  # what is broken stays broken
        except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
            self._left -= 1
            found = Replayed(None, detail=f"the step could not be replayed ({type(error).__name__}: {error}).")
        # An optimizer such as LBFGS evaluates the step again, from the random numbers that follow.
        self._window[-1].rng = RandomStates.now(self._devices)
        self._window[-1].losses.clear()
        return found

    def forget(self) -> None:
        """Let go of batches whose optimizer has stepped; in ``on_train_batch_end``."""
        if self._checks or not self._left:
            self._window.clear()

    def _losses(self) -> Iterator[Tensor]:
        return (loss for batch in self._window for loss in batch.losses)

    def _answer(self) -> Replayed:
        last = self._window[-1]
        if reason := self._why_not():
            return replay.looked_at(self._module, last.kept.tensors(), reason)
        # A batch whose own loss was not finite comes first, then the last one: it has most often been the only one.
        ill = [batch for batch in self._window if not replay.all_finite(batch.losses)]
        first = ill[0] if ill else last
        found = self._again(first)
        for other in self._window:
            if found.reproducible is False and other is not first:
                found = self._again(other)
                first = other if found.reproducible else first
        if found.reproducible is False and not ill and self._trainer.world_size > 1:
            return Replayed(None, detail=_AVERAGED)
        if found.reproducible and first is not last:
            place, size = self._window.index(first) + 1, len(self._window)
            note = f" It is batch {place} of {size} in the accumulation window (batch_idx {first.idx})."
            return replace(found, detail=found.detail + note)
        return found

    def _why_not(self) -> str | None:
        kind = _trainer.strategy_kind(self._trainer)
        alone, manual = self._trainer.world_size == 1, not self._module.automatic_optimization
        reasons: dict[str, Callable[[], Any]] = {
            "its weights are cut into shards over processes": lambda: kind == "sharded",
            f"{type(self._trainer.strategy).__name__} hides gradients": lambda: kind == "hidden",
            "manual optimization on several processes": lambda: manual and not alone,
            _MOVED: lambda: manual and self._checks > 1,
            "training_step takes its batches from an iterator": lambda: _takes(self._module, "dataloader_iter"),
        }
        own = next((reason for reason, holds in reasons.items() if holds()), None)
        return own or replay.why_not(self._module, alone=alone)

    def _again(self, batch: _Batch) -> Replayed:
        """Do one batch's step again."""
        trainer, model = self._trainer, self._module
        if batch.kept.is_changed():
            return replay.looked_at(model, batch.kept.tensors(), _WRITTEN)
        try:
            with _unnoticed(trainer, model):
                return replay.replay(
                    partial(_loss_of, trainer, model, batch),
                    model,
                    rng=batch.rng,
                    batch=batch.kept.tensors(),
                    scale=_trainer.loss_scale(trainer),
                    alone=trainer.world_size == 1,
                )
        except _Stepped:
            return Replayed(
                None, detail="the step could not be replayed (an optimizer steps within its backward pass)."
            )


class _Stepped(BaseException):
    """Ends a step under manual optimization where its optimizer would move the weights; no ``Exception`` to catch."""


def _loss_of(trainer: pl.Trainer, model: pl.LightningModule, batch: _Batch) -> Tensor | None:
    """Compute what the Trainer sends back; under manual optimization the step does that itself."""
    arguments = (batch.kept.again(), batch.idx) if _takes(model, "batch_idx", 2) else (batch.kept.again(),)
    try:
        with trainer.precision_plugin.train_step_context():
            output: Any = model.training_step(*arguments)
    except _Stepped:
        return None
    if not model.automatic_optimization:
        return None
    loss = output["loss"] if isinstance(output, Mapping) else output
    return None if loss is None else loss / trainer.accumulate_grad_batches


@contextmanager
def _unnoticed(trainer: pl.Trainer, model: pl.LightningModule) -> Iterator[None]:
    """Let a step run that logs nothing, moves no weights, calls no hook and cannot stop the training."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    handed = model.optimizers()  # the Trainer's wrappers around them, which count steps
    loggers, stopping = trainer.loggers, trainer.should_stop
    with ExitStack() as stack:
        for owner in (*trainer.optimizers, *(handed if isinstance(handed, list) else [handed])):
            stack.enter_context(replay.swapped(owner, step=_stop))
        for owner in schedulers:
            stack.enter_context(replay.swapped(owner, step=_nothing))
        silent = dict.fromkeys(("log", "log_dict", "print"), _nothing)
        stack.enter_context(replay.swapped(model, manual_backward=_send_back, **silent))
        stack.callback(setattr, trainer, "should_stop", stopping)
        stack.callback(setattr, trainer, "loggers", loggers)
        trainer.loggers = [DummyLogger() for _ in loggers]
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """Stand in for what a step must not do."""


def _stop(closure: Callable[[], Any] | None = None, **_: Any) -> None:
    """Stand in for the step of an optimizer: evaluate its closure, then end."""
    if closure is not None:
        closure()
    raise _Stepped


def _send_back(loss: Tensor, *args: Any, **kwargs: Any) -> None:
    """Stand in for ``manual_backward``, which tells every callback of the loss."""
    loss.backward(*args, **kwargs)


def _gradients(optimizer: Optimizer) -> Iterator[Tensor | None]:
    return (parameter.grad for group in optimizer.param_groups for parameter in group["params"])


def _takes(model: pl.LightningModule, name: str, least: int | None = None) -> bool:
    """Whether ``training_step`` has a parameter of this name, or so many."""
    step = model.training_step
    return bool(is_param_in_hook_signature(step, name, explicit=least is None, min_args=least))
