"""All that belongs to one fit under the gradient monitor: what is watched, what waits, which steps are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._cadence import Cadence
from lightning_weightwatch.callbacks._governor import Governor
from lightning_weightwatch.callbacks._gradient_page import GradientPage
from lightning_weightwatch.callbacks._listening import Ear
from lightning_weightwatch.callbacks._names import select_or_warn
from lightning_weightwatch.callbacks._replaying import Replayer
from lightning_weightwatch.callbacks._setup import setup_of, why_unheard
from lightning_weightwatch.callbacks._state import unpacked
from lightning_weightwatch.callbacks._step_hooks import StepHooks
from lightning_weightwatch.callbacks._trainer import StrategyKind
from lightning_weightwatch.evidence import Evidence, Validation, Watched
from lightning_weightwatch.flight import Flight, Gathered
from lightning_weightwatch.meters import LossMeter
from lightning_weightwatch.parameters import ForwardOrder, Parameter, as_wholes, describe, named_tensors
from lightning_weightwatch.recorder import GradientRecorder, Gradients
from lightning_weightwatch.sinks import Sinks, log

_SNAPSHOTS = 200  # full statistics in a run
_EARLY = 3  # flushes at the start of a run that come with full statistics: more found nothing earlier


@dataclass(frozen=True)
class Plan:
    """What the user asked for."""

    every_n_steps: int = 1
    window: int = 200
    statistics_every: int | None = None
    prefix: str = "health"
    replay: bool = False

    @property
    def flush_every(self) -> int:
        """Steps from one reading to the next; what no window holds would never be judged."""
        return min(self.every_n_steps, self.window // 2)


@dataclass
class Memory:
    """What is remembered of what was watched, and where it is shown."""

    evidence: Evidence
    page: GradientPage

    def remember(self, gathered: Gathered, validations: list[tuple[int, Any, str]]) -> None:
        """Take over what a flush brought, and the validations that came since the last one."""
        for i, step in enumerate(gathered.steps):
            self.evidence.add(
                step,
                gathered.norms[i],
                measured=gathered.measured[i],
                loss=_known(gathered.losses[i]),
                clipped=gathered.clipped[i],
                learning_rate=_known(gathered.learning_rates[i]),
                stale=_known(gathered.stale[i]),
                batch=_known(gathered.batches[i]),
            )
        if gathered.snapshot is not None:
            self.evidence.add_snapshot(gathered.snapshot)
        validated = [Validation(step, float(loss), name) for step, loss, name in validations]  # read with the rest
        readings = (gathered.dead, gathered.listened, gathered.replicas, *validated)
        for reading in readings:
            if reading is not None:
                self.evidence.add_reading(reading)
        validations.clear()
        self.evidence.broken_losses = {**gathered.broken_losses, **self.evidence.broken_losses}
        self.page.remember(len(gathered.steps))


@dataclass
class GradientFit:
    """The state of one fit; dropped after it.

    ``governor.stride`` thins everything: with a stride of 4 every fourth step is measured, and what is measured is read
    a quarter as often. What is decided here must not depend on what one process alone did.
    """

    plan: Plan = field(default_factory=Plan)
    whole: tuple[Parameter, ...] = ()
    kind: StrategyKind = "single"
    folder: Path | None = None
    automatic: bool = True
    clipping: bool = False
    optimizers: int = 1
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
    remembered: Mapping[str, Any] = field(default_factory=dict)
    validations: list[tuple[int, Any, str]] = field(default_factory=list)
    ear: Ear = field(default_factory=Ear)
    batch: int = -1
    replayer: Replayer | None = None
    replayed: list[str] = field(default_factory=list)
    early: int = _EARLY

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask how gradients lie on the processes, and what happens to them; all processes must ask."""
        self.kind = _trainer.strategy_kind(trainer)
        self.folder = _trainer.evidence_folder(trainer)
        self.flushed, self.optimizers = _trainer.log_step(trainer), len(trainer.optimizers)
        self.automatic, self.clipping = pl_module.automatic_optimization, _trainer.clips(trainer, pl_module)
        self.governor.take()  # what came before is no training
        self.replayer = Replayer(trainer, pl_module) if self.plan.replay else None

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

    def watch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        chosen: Sequence[Parameter],
        planned: int | None,
        remembered: Mapping[str, Any],
    ) -> None:
        """Begin to record parameters; a collective where each process holds a part of them.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            chosen: What to watch.
            planned: Steps of the run, if known.
            remembered: What an earlier run remembered.
        """
        self.recorder = GradientRecorder(
            chosen,
            named_tensors(pl_module),
            rows=self.plan.flush_every * max(self.optimizers, 1) + 1,
            sharded=self.kind == "sharded",
            clipping=self.clipping,
            device=pl_module.device,
        )
        self.planned, self.remembered, self.asked_at = planned, remembered, -1
        if self.plan.statistics_every is not None:
            self.statistics, self.early = Cadence.every(self.plan.statistics_every), 0
        else:
            self.statistics = Cadence(points=_SNAPSHOTS, least=_trainer.log_every_n_steps(trainer), planned=planned)
        self.memory = self.remember(trainer) if self.memory else None

    def learn(self, trainer: pl.Trainer, pl_module: pl.LightningModule, memory: Memory, gathered: Gathered) -> None:
        """Remember what a flush brought."""
        is_first = not len(memory.evidence)
        memory.remember(gathered, self.validations)
        if is_first or gathered.snapshot is not None:
            memory.evidence.setup = setup_of(pl_module, self.known_optimizers(trainer), trainer.world_size)
        watched = enumerate(memory.evidence.parameters)
        self.seen.update(p.name for i, p in watched if gathered.measured[:, i].any())

    def leftovers(self) -> Iterator[Gathered]:
        """Yield what waits when a run breaks off. Other processes may be gone, so a shard alone tells nothing."""
        if self.recorder is None or self.kind == "sharded":
            return
        if self.flight is not None and (self.kind == "single" or self.flight.parcel.landed):
            yield self.recorder.receive(self.flight)
        yield self.recorder.receive(self.recorder.send({}, agree=False))

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
        return steps >= self.flushed + self.plan.flush_every * self.governor.stride

    def gradients(self, optimizer: Optimizer) -> Gradients:
        """Return an optimizer's gradients; a collective under tensor parallelism."""
        return self.recorder.gradients(optimizer) if self.recorder is not None else {}

    def record(self, step: int, optimizer: Optimizer, gradients: Gradients, scale: Tensor | None) -> None:
        """Measure an optimizer's gradients."""
        if self.recorder is not None:
            loss = self.losses.of(step)
            self.recorder.add(step, optimizer, gradients, scale=scale, loss=loss, batch=self.batch)

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        """Note the weights that an optimizer is about to change."""
        if self.recorder is not None and self.measured.get(id(optimizer)) == step:
            self.recorder.before_step(optimizer)

    def after_step(self, step: int, optimizer: Optimizer, clipped: Gradients) -> None:
        """Note what a step has done."""
        if self.recorder is not None and self.measured.get(id(optimizer)) == step:
            self.recorder.after_step(step, optimizer, clipped)

    def begin_snapshot(self, step: int) -> bool:
        """Take full statistics of each optimizer's first step from here on, if they are due; say whether they are.

        They are due at the first batch after a flush: of the first flushes, as most illnesses begin there, and then now
        and then. Processes merge what they have, so this must not depend on what one of them does: it may leave out a
        step of its optimizer.
        """
        if self.recorder is None or self.flushed <= self.asked_at:
            return False
        self.asked_at = self.flushed
        due = self.statistics.due(step) or self.early > 0
        if due:
            self.early -= 1
            self.recorder.begin_snapshot(step)
        return due

    def begin_batch(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, is_due: bool
    ) -> None:
        """Take note of a batch, and listen to its forward pass if full statistics are due."""
        self.batch = batch_idx
        if self.replayer is not None:
            self.replayer.note(batch, batch_idx)
        if not is_due or self.recorder is None:
            return
        why_not = why_unheard(pl_module, trainer.optimizers)
        if why_not:
            self.ear.unheard.add(why_not)
        else:
            self.ear.enter(_trainer.log_step(trainer), self.recorder.names, batch)

    def end_batch(self) -> None:
        """Take note that a batch has ended, and with it every step of an optimizer."""
        self.ear.leave()
        self.stop_listening()  # where no optimizer steps through Lightning, nothing else would
        if self.hooks is not None:
            self.hooks.settle()
        if self.replayer is not None:
            self.replayer.forget()

    def replay_if_broken(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Run the batch again if its gradients or loss are not finite, and keep what that shows.

        What happened on another process than the one that logs is told by itself.
        """
        if self.replayer is None:
            return
        told = self.replayer.check(optimizer, gradients=not _trainer.has_grad_scaler(trainer))
        if told is not None:
            self.replayed.append(str(told))
            if not trainer.is_global_zero:
                log.warning("weightwatch: on process %d: %s", trainer.global_rank, told)

    def before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the loss; before the first backward pass, begin to listen for the order it reaches parameters in."""
        self.ear.leave()
        if self.replayer is not None:
            self.replayer.note_loss(loss)
        if self.recorder is not None:
            self.recorder.before_backward()
        if self.order is None:
            self.order = ForwardOrder(named_tensors(pl_module))
        step = _trainer.log_step(trainer)
        if self.expects(step):
            scale = _trainer.loss_scale(trainer)
            self.losses.add(step, loss, scale=scale, divided_by=trainer.accumulate_grad_batches)

    def note_validation(self, trainer: pl.Trainer) -> None:
        """Note the loss of a validation that has just ended."""
        found = _trainer.validation_loss(trainer)
        if found is not None and self.recorder is not None:
            self.validations.append((_trainer.log_step(trainer), *found))

    def known_optimizers(self, trainer: pl.Trainer) -> list[Optimizer]:
        """Return every optimizer, also those that Lightning does not know."""
        seen = self.hooks.watched if self.hooks is not None else []
        return [*trainer.optimizers, *(o for o in seen if not any(o is known for known in trainer.optimizers))]

    def remember(self, trainer: pl.Trainer) -> Memory:
        """Return what remembers and shows what is recorded, with what was remembered of the same parameters so far.

        Places in the forward pass are known once there was a backward pass.
        """
        recorded = self.recorder.parameters if self.recorder is not None else ()
        places = self.order.places([p.name for p in recorded]) if self.order else {}
        watched = [Watched(p.name, p.numel, p.is_matrix, places.get(p.name, 0), p.kind, p.shape) for p in recorded]
        evidence = Evidence(watched, window=self.plan.window, scaled_loss=_trainer.has_grad_scaler(trainer))
        if self.memory is not None:
            evidence.take_over(self.memory.evidence)
        else:
            self.sinks = _trainer.sinks_of(trainer)
            if self.remembered:
                evidence.load_state_dict(unpacked(self.remembered))
        plan = self.plan
        page = GradientPage(self.sinks, plan.prefix, evidence, planned=self.planned, every_n_steps=plan.every_n_steps)
        return Memory(evidence, page)

    def stop_listening(self) -> None:
        """Take the hooks of the first backward pass away."""
        if self.order is not None:
            self.order.stop()

    def let_go(self) -> None:
        """Take every hook away."""
        self.replayer = None
        self.ear.leave()
        self.stop_listening()
        if self.hooks is not None:
            self.hooks.remove()


def _known(number: float) -> float | None:
    return None if np.isnan(number) else float(number)
