"""Watch a model while it trains, and say when it turns unhealthy: which layer, since when, why.

This file decides when to look and whom to tell. What is gathered lies in ``recorder``, what it means in ``rules``, what
is shown in ``_gradient_page``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from lightning_weightwatch import _arguments, reduce
from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._acting import Action, act, checked_action
from lightning_weightwatch.callbacks._governor import Governor, timed
from lightning_weightwatch.callbacks._gradient_fit import GradientFit, Plan
from lightning_weightwatch.callbacks._guard import deferred, guarded, meeting, settle
from lightning_weightwatch.callbacks._judgement import Judgement, checked, ignored, with_limits
from lightning_weightwatch.callbacks._state import packed
from lightning_weightwatch.callbacks._step_hooks import StepHooks
from lightning_weightwatch.callbacks._telling import tell_findings, tell_unmeasured
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.evidence import Snapshot
from lightning_weightwatch.flight import Gathered
from lightning_weightwatch.parameters import describe, named_tensors
from lightning_weightwatch.recorder import Gradients
from lightning_weightwatch.rules import Finding, Rule, Severity, first_cause
from lightning_weightwatch.sinks import files

_ME = "GradientHealthMonitor"
_HIDDEN = "weightwatch: gradients not measured: {} hides them."


class GradientHealthMonitor(pl.Callback):
    """Measure every parameter's gradient on every step, and more on few steps, and report illnesses.

    Gradients are read where they are true: over the full accumulation window, reduced over ranks, unscaled and not yet
    clipped (under manual optimization every hook comes after the user's own clipping). Nothing waits for the device
    between two flushes. An optimizer that is stepped without Lightning is measured by its own step hook. On few steps
    the forward pass is listened to (activations, loss functions, inputs), unless modules are compiled.

    What is logged, to every logger of the Trainer unless it says TensorBoard:

    ================================== ==================== ===========================================================
    tag                                unit                 meaning
    ================================== ==================== ===========================================================
    ``health/grad_norm_log10``         decades              largest global gradient norm since the last point, before
                                                            clipping; a norm of 0 is drawn at -12
    ``health/grad_depth_slope``        decades per layer    slope of log10 gradient RMS over the weight matrices in
                                                            forward order; 0 is level, positive fades towards the input
    ``health/layers_out_of_band``      number of layers     matrices farther than 2 decades from the median matrix
    ``health/non_finite_parameters``   number               parameters whose gradient holds NaN or Inf
    ``health/clipped_norm_log10``      decades              largest global gradient norm since the last point, after
                                                            clipping (where something clips)
    ``health/clipped_share``           share, 0 to 1        steps since the last point whose gradients were clipped
    ``health/update_ratio_log10``      decades              median over the weight matrices of the norm of the last
                                                            measured update over the norm of the weight
    ``health/overhead_share``          share, 0 to 1        of the time of this fit, spent by this callback
    ``health.grad_log10/<nn name>``    decades              largest gradient norm since the last point (TensorBoard)
    ``health/0 report``                picture              verdict, loss, every layer at every step (TensorBoard)
    ``health/findings``                text                 what was found, where, since when, what to try (TensorBoard)
    ``health/statistics``              text                 full statistics of every gradient, weight and update
    ================================== ==================== ===========================================================

    Findings are also printed (warnings and worse) and appended to ``<log_dir>/weightwatch/findings.jsonl`` as they
    happen, so that a crash loses none.

    Args:
        every_n_steps: Read what was measured, judge and log every so many optimizer steps, but no more seldom than
            twice in a ``window``. Every step is measured.
        include: Watch parameters whose name matches one of these shell-style patterns.
        exclude: Of those, leave out the ones that match one of these.
        rules: The rules to judge by; all of ``lightning_weightwatch.rules`` if not given.
        action: What a critical finding does: ``"warn"`` tells only, ``"stop"`` ends the fit in good order,
            ``"raise"`` raises ``UnhealthyRunError``; on all ranks alike. Or a dict of these by severity.
        on_finding: Called with each new finding, on every process that has it.
        ignore: For each rule, patterns of parameters that it does not speak of; ``["*"]`` silences the rule.
        limits: For each rule, limits that replace its own; they stand on the rule's page.
        replay: When gradients or the loss are not finite, run that batch again with every module checked, before the
            weights have moved, and say where it begins and whether it can be reproduced. Waits for the device once in
            every step.
        window: Steps that rules look back on.
        statistics_every_n_steps: Take full statistics (``snapshot``) so often, at the flush that follows; ``None``
            takes the first three flushes and then the Trainer's ``log_every_n_steps``, but at most 200 in a run.
        max_overhead: The largest share of the training time that watching may take. Above it, once the excess has
            come to 5 seconds, only every second, fourth... step is measured, on all ranks alike, and it says so.
            ``None`` keeps the cadence fixed, and the log reproducible.
        prefix: The first part of every tag.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> monitor = GradientHealthMonitor(every_n_steps=20, action="stop")
        >>> monitor.findings
        ()
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 10,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        rules: Sequence[Rule] | None = None,
        action: Action | Mapping[Severity, Action] = "warn",
        on_finding: Callable[[Finding], object] | None = None,
        ignore: Mapping[str, Sequence[str]] | None = None,
        limits: Mapping[str, Mapping[str, float]] | None = None,
        replay: bool = False,
        window: int = 200,
        statistics_every_n_steps: int | None = None,
        max_overhead: float | None = 0.01,
        prefix: str = "health",
    ) -> None:
        super().__init__()
        self.every_n_steps = _arguments.whole_number(
            _ME, "every_n_steps", every_n_steps, least=1, remedy="Use 1 to judge after every step."
        )
        self.include = _arguments.patterns(_ME, "include", include)
        self.exclude = _arguments.patterns(_ME, "exclude", exclude)
        self.rules = with_limits(_ME, checked(_ME, rules), limits)
        self.ignore = ignored(_ME, self.rules, ignore)
        self.actions = checked_action(_ME, action)
        self.on_finding = _arguments.function(_ME, "on_finding", on_finding, "Use print to see each finding.")
        self.replay = _arguments.flag(_ME, "replay", replay, "Use True to trace NaN and Inf to a module.")
        self.window = _arguments.whole_number(
            _ME, "window", window, least=50, remedy="Use 200; rules need 50 to tell a trend from a batch."
        )
        often, remedy = statistics_every_n_steps, "Use None to follow the Trainer."
        self.statistics_every_n_steps = _arguments.whole_number(
            _ME, "statistics_every_n_steps", often, least=1, nothing=True, remedy=remedy
        )
        self.max_overhead = _arguments.share(
            _ME, "max_overhead", max_overhead, "Use 0.01 for 1 % of the time, None for a fixed cadence."
        )
        self.prefix = _arguments.tag_prefix(_ME, "prefix", prefix)
        self.broken = False
        self.failure: Exception | None = None
        self._judgement = Judgement(self.rules, self.ignore)
        self._unwritten: set[str] = set()
        self._remembered: dict[str, Any] = {}
        self._snapshot: Snapshot | None = None
        self._fit = GradientFit()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running fit, for libraries that copy or pickle callbacks in the middle of it."""
        return self.__dict__ | {"_fit": GradientFit()}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found in this fit so far, in order of time."""
        return tuple(self._judgement.findings)

    @property
    def first_cause(self) -> Finding | None:
        """The finding that began first, a cause before its symptom; ``None`` while all is well."""
        return first_cause(self._judgement.findings)

    @property
    def snapshot(self) -> Snapshot | None:
        """The last full statistics of every gradient, weight and update of this fit."""
        return self._snapshot

    @property
    def state_key(self) -> str:
        """Two monitors of one Trainer must not log under one prefix, so the prefix tells their states apart."""
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return what was told, so that a resumed run does not tell it again, and the history it is held against."""
        memory = self._fit.memory
        remembered = packed(memory.evidence.state_dict()) if memory else self._remembered
        return self._judgement.state_dict() | {"evidence": remembered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the earlier run told and remembered."""
        self._judgement.load_state_dict(state_dict)
        self._remembered = dict(state_dict.get("evidence", {}))

    @deferred
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew, and note whole shapes before a strategy cuts them."""
        if stage == "fit":
            plan = Plan(self.every_n_steps, self.window, self.statistics_every_n_steps, self.prefix, self.replay)
            self._fit = GradientFit(plan, whole=describe(pl_module), governor=Governor(self.max_overhead))
            self._judgement, self._remembered, self._snapshot = Judgement(self.rules, self.ignore), {}, None

    @guarded
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask where to log, and how gradients lie on the processes."""
        fit = self._fit
        fit.begin(trainer, pl_module)
        if fit.folder is not None and fit.flushed == 0 and trainer.is_global_zero:
            files.set_aside(fit.folder / "findings.jsonl")
        if fit.kind == "hidden":
            _trainer.tell(trainer, _HIDDEN.format(type(trainer.strategy).__name__))
        else:
            before, after = (partial(hook, trainer, pl_module) for hook in (self._before_step, self._after_step))
            fit.hooks = StepHooks(before, after)
            fit.hooks.watch(*trainer.optimizers)
            self._prepare(trainer, pl_module)  # here all processes meet; one may leave out its first step

    @guarded
    @timed
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin full statistics when they are due, on all processes, and listen to the forward pass."""
        due = self._fit.begin_snapshot(_trainer.log_step(trainer))
        self._note(self._fit.begin_batch, trainer, pl_module, batch, batch_idx, due)

    @deferred
    @timed
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the loss; before the first backward pass, begin to listen for the order it reaches parameters in."""
        self._fit.before_backward(trainer, pl_module, loss)

    @guarded
    @timed
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure this optimizer's gradients, and note the weights that it is about to change."""
        self._fit.announced.add(id(optimizer))
        self._fit.replay_if_broken(trainer, optimizer)
        self._measure(trainer, pl_module, optimizer)
        if self._fit.automatic:  # when the step was entered, activations were there beside the copies
            self._note(self._fit.before_step, _trainer.log_step(trainer), optimizer)

    @guarded
    @timed
    def _before_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        if not self._fit.automatic and self._cover(trainer, pl_module, optimizer):
            self._fit.measured[id(optimizer)] = _trainer.log_step(trainer)
            self._note(self._fit.before_step, _trainer.log_step(trainer), optimizer)

    @guarded
    @timed
    def _after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Note what a step has done; measure the gradients of one that Lightning did not announce."""
        if id(optimizer) not in self._fit.announced:
            self._measure(trainer, pl_module, optimizer)
        self._fit.announced.discard(id(optimizer))
        step, fit = _trainer.log_step(trainer), self._fit
        clipped = fit.gradients(optimizer) if fit.clipping and fit.measured.get(id(optimizer)) == step else {}
        self._note(fit.after_step, step, optimizer, clipped)

    @guarded
    @timed
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read, judge and tell, when it is due."""
        self._fit.end_batch()
        self._land(trainer, pl_module)
        if _trainer.ends_window(trainer) and self._fit.is_due(_trainer.log_step(trainer) + 1):
            self._flush(trainer, pl_module)

    @deferred
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop listening, if the epoch ended where a batch was about to begin."""
        self._fit.ear.leave()

    @deferred
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the validation loss."""
        self._fit.note_validation(trainer)

    @guarded
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge what is left, and say what could not be measured."""
        self._fit.ending = True
        self._flush(trainer, pl_module, wait=True)
        if self._fit.memory is not None:
            self._fit.memory.page.show(self.findings, last=True)
        tell_unmeasured(trainer, pl_module, self._fit)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save what this process knows, and let go of the model."""
        if not isinstance(exception, UnhealthyRunError):
            self._save(trainer, pl_module)
        self._let_go()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._let_go()

    @guarded
    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge what waits. Other processes may be gone, so nothing is merged; a shard alone tells nothing."""
        for gathered in self._fit.leftovers():
            self._learn(trainer, pl_module, gathered)

    def _let_go(self) -> None:
        settle(self)
        self._fit.let_go()
        if self._fit.memory is not None:
            self._remembered = packed(self._fit.memory.evidence.state_dict())
        self._fit = GradientFit()

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lay out what is watched: as the training starts, and again when parameters have come; all processes meet."""
        fit, device = self._fit, pl_module.device
        if fit.recorder is not None:
            self._flush(trainer, pl_module, wait=True)
            fit.flushed = _trainer.log_step(trainer)  # the step that is about to be measured
        chosen = meeting(self, lambda: fit.choose(trainer, pl_module, self.include, self.exclude), device)
        planned = reduce.largest(_trainer.planned_steps(trainer) or 0, device) or None
        fit.watch(trainer, pl_module, chosen, planned, self._remembered)

    def _cover(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> bool:
        """See to it that an optimizer's parameters are watched; say whether this step of it is measured."""
        fit, step = self._fit, _trainer.log_step(trainer)
        fit.stop_listening()
        if fit.recorder is not None and not fit.recorder.covers(optimizer):
            chosen = fit.choose(trainer, pl_module, self.include, self.exclude)
            if not fit.recorder.watches(chosen, named_tensors(pl_module)):
                self._prepare(trainer, pl_module)
                fit.begin_snapshot(step)
            fit.recorder.accept(optimizer)
        return fit.measures(step, optimizer)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        hooks = self._fit.hooks
        if hooks is not None and self._cover(trainer, pl_module, optimizer):  # None: gradients are hidden
            hooks.watch(optimizer)
            self._fit.measured[id(optimizer)] = _trainer.log_step(trainer)
            self._record(trainer, optimizer, self._fit.gradients(optimizer))

    @deferred
    def _record(self, trainer: pl.Trainer, optimizer: Optimizer, gradients: Gradients) -> None:
        scale = _trainer.gradient_scale(trainer, optimizer)
        self._fit.record(_trainer.log_step(trainer), optimizer, gradients, scale)

    @deferred
    def _note(self, note: Callable[..., None], *arguments: Any) -> None:
        note(*arguments)

    def _flush(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, wait: bool = False) -> None:
        """Send what waits on the device to the host, the same on all ranks.

        It is read when the next step ends, which is one decision for all ranks; at once where it is there already.
        """
        fit = self._fit
        self._land(trainer, pl_module)
        fit.flushed = _trainer.log_step(trainer) + 1
        if fit.recorder is not None:
            own, whole = fit.governor.take() if trainer.is_global_zero else (0.0, 0.0)  # the rank that also draws
            notes = {"failed": float(self.failure is not None), "own": own, "whole": whole}
            with fit.governor.waiting():  # for other processes, if there are any
                fit.flight = fit.recorder.send(notes, agree=True, listener=fit.ear.take())
            if wait or fit.flight.parcel.at_once:
                self._land(trainer, pl_module)

    def _land(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn from what was sent off last."""
        fit, flight = self._fit, self._fit.flight
        if fit.recorder is None or flight is None:
            return
        fit.flight = None
        with fit.governor.waiting():
            flight.parcel.wait()
        gathered = fit.recorder.receive(flight)
        if gathered.notes["failed"]:
            raise self.failure or reduce.PeerError("gradients could not be measured on another process")
        if fit.governor.learn(gathered.notes["own"], gathered.notes["whole"]) and not fit.ending:
            _trainer.tell(trainer, f"weightwatch: {_ME} {fit.governor.notice(_trainer.log_step(trainer) + 1)}")
        news = self._learn(trainer, pl_module, gathered) or ()
        act(trainer, pl_module, self.actions, news)

    @deferred
    def _learn(self, trainer: pl.Trainer, pl_module: pl.LightningModule, gathered: Gathered) -> Sequence[Finding]:
        """Remember, judge, show, tell; return what is new."""
        fit = self._fit
        if not gathered.steps:
            return ()
        fit.memory = memory = fit.memory or fit.remember(trainer)
        fit.learn(trainer, pl_module, memory, gathered)
        news = self._judgement.news(memory.evidence, fit.replayed)
        if gathered.snapshot is not None:
            self._snapshot = gathered.snapshot
        if self.max_overhead is not None:  # a log without a limit is reproducible
            memory.page.overhead = fit.governor.share
        memory.page.show(self.findings, news=any(f.severity != "info" for f in news))
        tell_findings(trainer, news, fit.folder, self._unwritten, self.on_finding)
        return news
