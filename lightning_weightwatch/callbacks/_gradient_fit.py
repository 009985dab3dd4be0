"""All that belongs to one fit under the gradient monitor: what is watched, what waits, which steps are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._cadence import Cadence
from lightning_weightwatch.callbacks._governor import Governor
from lightning_weightwatch.callbacks._gradient_page import GradientPage
from lightning_weightwatch.callbacks._names import select_or_warn
from lightning_weightwatch.callbacks._step_hooks import StepHooks
from lightning_weightwatch.callbacks._trainer import StrategyKind
from lightning_weightwatch.evidence import Evidence, Watched
from lightning_weightwatch.parameters import ForwardOrder, Parameter, as_wholes, describe, named_tensors
from lightning_weightwatch.recorder import Flight, Gathered, GradientRecorder, Gradients, LossMeter
from lightning_weightwatch.sinks import Sinks


@dataclass
class Memory:
    """What is remembered of what was watched, and where it is shown."""

    evidence: Evidence
    page: GradientPage

    def remember(self, gathered: Gathered) -> None:
        """Take over what a flush brought."""
        for i, step in enumerate(gathered.steps):
            loss = gathered.losses[i]
            self.evidence.add(
                step,
                gathered.norms[i],
                measured=gathered.measured[i],
                loss=None if np.isnan(loss) else loss,
                clipped=gathered.clipped[i],
            )
        if gathered.snapshot is not None:
            self.evidence.add_snapshot(gathered.snapshot)
        self.page.remember(len(gathered.steps))


@dataclass
class GradientFit:
    """The state of one fit; dropped after it.

    ``governor.stride`` thins everything: with a stride of 4 every fourth step is measured, and what is measured is read
    a quarter as often. What is decided here must not depend on what one process alone did.
    """

    whole: tuple[Parameter, ...] = ()
    kind: StrategyKind = "single"
    folder: Path | None = None
    automatic: bool = True
    clipping: bool = False
    optimizers: int = 1
    flush_every: int = 1
    flushed: int = 0
    asked_at: int = -1
    ending: bool = False
    governor: Governor = field(default_factory=lambda: Governor(None))
    statistics: Cadence = field(default_factory=lambda: Cadence.every(1))
    hooks: StepHooks | None = None
    announced: set[int] = field(default_factory=set)
    measured: dict[int, int] = field(default_factory=dict)
    flight: Flight | None = None
    losses: LossMeter = field(default_factory=LossMeter)
    seen: set[str] = field(default_factory=set)
    unmeasured: dict[str, str] = field(default_factory=dict)
    order: ForwardOrder | None = None
    recorder: GradientRecorder | None = None
    planned: int | None = None
    sinks: Sinks = field(default_factory=Sinks)
    memory: Memory | None = None
    first_losses: Sequence[float] = ()

    def choose(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, include: Sequence[str], exclude: Sequence[str]
    ) -> list[Parameter]:
        """Return the parameters to watch; what cannot be measured is noted."""
        described = describe(pl_module)
        if self.kind == "sharded":
            tensors, flat = named_tensors(pl_module), _trainer.makes_flat_shards(trainer)
            described = as_wholes(described, self.whole, tensors, flat=flat)
        known = {p.name: p for p in described}
        chosen = [known[name] for name in select_or_warn("GradientHealthMonitor", known, include, exclude)]
        self.unmeasured = {p.name: p.unmeasurable for p in chosen if p.unmeasurable}
        return [p for p in chosen if p.unmeasurable is None]

    def measures(self, step: int, optimizer: Optimizer) -> bool:
        """Whether a step of an optimizer is measured.

        It is the first that the optimizer takes in each stride, so that one that steps on odd batches only is still
        measured. Of several steps within one step all are.
        """
        last = self.measured.get(id(optimizer))
        is_next = last is None or step == last or step >= self._next(last)
        return is_next and self.recorder is not None and self.recorder.has_room(step)

    def expects(self, step: int) -> bool:
        """Whether a step may be measured, as far as can be told before an optimizer steps."""
        known = self.measured.values()
        return len(known) < self.optimizers or any(step == last or step >= self._next(last) for last in known)

    def _next(self, last: int) -> int:
        return (last // self.governor.stride + 1) * self.governor.stride

    def is_due(self, steps: int) -> bool:
        """Whether what waits is to be read after so many steps, whatever waits: all processes must agree on it."""
        return steps >= self.flushed + self.flush_every * self.governor.stride

    def gradients(self, optimizer: Optimizer) -> Gradients:
        """Return an optimizer's gradients; a collective under tensor parallelism."""
        return self.recorder.gradients(optimizer) if self.recorder is not None else {}

    def record(self, step: int, optimizer: Optimizer, gradients: Gradients, scale: Tensor | None) -> None:
        """Measure an optimizer's gradients."""
        if self.recorder is not None:
            self.recorder.add(step, optimizer, gradients, scale=scale, loss=self.losses.of(step))

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        """Note the weights that an optimizer is about to change."""
        if self.recorder is not None and self.measured.get(id(optimizer)) == step:
            self.recorder.before_step(optimizer)

    def after_step(self, step: int, optimizer: Optimizer, clipped: Gradients) -> None:
        """Note what a step has done."""
        if self.recorder is not None and self.measured.get(id(optimizer)) == step:
            self.recorder.after_step(step, optimizer, clipped)

    def begin_snapshot(self, step: int) -> None:
        """Take full statistics of each optimizer's first step after a flush, if they are due.

        Processes merge what they have, so this must not depend on what went well on one of them.
        """
        new = self.flushed > self.asked_at
        if self.recorder is not None and new:
            self.asked_at = self.flushed
            if self.statistics.due(step):
                self.recorder.begin_snapshot(step)

    def remember_with(self, trainer: pl.Trainer, window: int, prefix: str, every_n_steps: int) -> Memory:
        """Return what remembers and shows what is recorded, with what was remembered of the same parameters so far.

        Places in the forward pass are known once there was a backward pass.
        """
        recorded = self.recorder.parameters if self.recorder is not None else ()
        places = self.order.places([p.name for p in recorded]) if self.order else {}
        watched = [Watched(p.name, p.numel, p.is_matrix, places.get(p.name, 0)) for p in recorded]
        evidence = Evidence(watched, window=window, scaled_loss=_trainer.has_grad_scaler(trainer))
        evidence.first_losses = list(self.first_losses)
        if self.memory is not None:
            evidence.take_over(self.memory.evidence)
        else:
            self.sinks = _trainer.sinks_of(trainer)
        page = GradientPage(self.sinks, prefix, evidence, planned=self.planned, every_n_steps=every_n_steps)
        return Memory(evidence, page)

    def stop_listening(self) -> None:
        """Take the hooks of the first backward pass away."""
        if self.order is not None:
            self.order.stop()

    def leave_steps(self) -> None:
        """Note that a batch has ended, and with it every step of an optimizer."""
        if self.hooks is not None:
            self.hooks.settle()

    def let_go(self) -> None:
        """Take every hook away."""
        self.stop_listening()
        if self.hooks is not None:
            self.hooks.remove()
