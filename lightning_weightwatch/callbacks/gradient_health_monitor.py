"""Watch every parameter's gradient while a model trains, and say when it turns unhealthy.

This file decides when to look and whom to tell. What is gathered lies in ``recorder``, what it means in ``rules``, what
is shown in ``_gradient_page``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from lightning_weightwatch import _arguments, reduce
from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._gradient_page import GradientPage
from lightning_weightwatch.callbacks._guard import attempt, deferred, guarded, meeting, settle
from lightning_weightwatch.callbacks._names import select_or_warn, unmeasured
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.evidence import Evidence, Watched
from lightning_weightwatch.parameters import ForwardOrder, Parameter, as_wholes, describe, named_tensors
from lightning_weightwatch.recorder import Gathered, GradientRecorder, LossMeter
from lightning_weightwatch.rules import Finding, Ledger, Rule, all_rules, first_cause, judge, listed
from lightning_weightwatch.sinks import files, log

_ME = "GradientHealthMonitor"


class GradientHealthMonitor(pl.Callback):
    """Measure every parameter's gradient on every step and report illnesses.

    Gradients are read where they are true: over the full accumulation window, reduced over ranks, unscaled and not yet
    clipped (under manual optimization Lightning's hook comes after the user's own clipping). Nothing waits for the
    device between two flushes.

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
    ``health.grad_log10/<nn name>``    decades              largest gradient norm since the last point (TensorBoard)
    ``health/0 report``                picture              verdict, loss, every layer at every step (TensorBoard)
    ``health/findings``                text                 what was found, where, since when, what to try (TensorBoard)
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
            ``"raise"`` raises ``UnhealthyRunError``; on all ranks alike.
        window: Steps that rules look back on.
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
        action: Literal["warn", "stop", "raise"] = "warn",
        window: int = 200,
        prefix: str = "health",
    ) -> None:
        super().__init__()
        self.every_n_steps = _arguments.whole_number(
            _ME, "every_n_steps", every_n_steps, least=1, remedy="Use 1 to judge after every step."
        )
        self.include = _arguments.patterns(_ME, "include", include)
        self.exclude = _arguments.patterns(_ME, "exclude", exclude)
        self.rules = _rules(rules)
        self.action = _arguments.choice(
            _ME, "action", action, ("warn", "stop", "raise"), 'Use "warn" to be told and train on.'
        )
        self.window = _arguments.whole_number(
            _ME, "window", window, least=50, remedy="Use 200; rules need 50 to tell a trend from a batch."
        )
        self.prefix = _arguments.tag_prefix(_ME, "prefix", prefix)
        self.broken = False
        self.failure: Exception | None = None
        self._findings: list[Finding] = []
        self._ledger = Ledger()
        self._unwritten: set[str] = set()
        self._first_losses: list[float] = []
        self._fit = _Fit()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running fit, for libraries that copy or pickle callbacks in the middle of it."""
        return self.__dict__ | {"_fit": _Fit()}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found in this fit so far, in order of time."""
        return tuple(self._findings)

    @property
    def first_cause(self) -> Finding | None:
        """The finding that began first, a cause before its symptom; ``None`` while all is well."""
        return first_cause(self._findings)

    @property
    def _flush_every(self) -> int:
        """Rules look back on ``window`` steps; what came before would never be judged."""
        return int(min(self.every_n_steps, self.window // 2))

    @property
    def state_key(self) -> str:
        """Two monitors of one Trainer must not log under one prefix, so the prefix tells their states apart."""
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return what was told, so that a resumed run does not tell it again, and the losses it is held against."""
        watching = self._fit.watching
        return {
            "findings": [f.to_dict() for f in self._findings],
            "told": self._ledger.state_dict(),
            "first_losses": list(watching.evidence.first_losses if watching else self._first_losses),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the earlier run told."""
        self._findings = [Finding.from_dict(plain) for plain in state_dict.get("findings", [])]
        self._ledger.load_state_dict(state_dict.get("told", {}))
        self._first_losses = list(state_dict.get("first_losses", []))

    @deferred
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew, and note whole shapes before a strategy cuts them."""
        if stage == "fit":
            self._fit = _Fit(whole=describe(pl_module))
            self._findings, self._ledger, self._first_losses = [], Ledger(), []

    @guarded
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask where to log, and how gradients lie on the processes."""
        fit = self._fit
        fit.kind = _trainer.strategy_kind(trainer)
        fit.folder = _trainer.evidence_folder(trainer)
        fit.flushed = _trainer.log_step(trainer)
        if fit.folder is not None and fit.flushed == 0 and trainer.is_global_zero:
            files.set_aside(fit.folder / "findings.jsonl")
        if fit.kind == "hidden":
            _trainer.tell(
                trainer, f"weightwatch: gradients not measured: {type(trainer.strategy).__name__} hides them."
            )

    @deferred
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the loss; before the first backward pass, begin to listen for the order it reaches parameters in."""
        if self._fit.order is None:
            self._fit.order = ForwardOrder(named_tensors(pl_module))
        self._fit.losses.add(
            _trainer.log_step(trainer),
            loss,
            scale=_trainer.loss_scale(trainer),
            divided_by=trainer.accumulate_grad_batches,
        )

    @guarded
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure this optimizer's gradients."""
        self._fit.stop_listening()
        if self._fit.kind == "hidden":
            return
        if self._fit.watching is None or not self._fit.watching.recorder.covers(optimizer):
            self._prepare(trainer, pl_module, optimizer)
        self._record(trainer, optimizer)

    @guarded
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read, judge and tell, when it is due."""
        self._fit.stop_listening()  # where no optimizer steps through Lightning, nothing else would
        if _trainer.log_step(trainer) + 1 - self._fit.flushed >= self._flush_every:
            self._flush(trainer, pl_module)

    @guarded
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge what is left, and say what could not be measured."""
        self._flush(trainer, pl_module)
        watching = self._fit.watching
        if watching is not None:
            watching.page.show(self._findings, last=True)
            for line in unmeasured("gradients", self._fit.unmeasured | watching.recorder.unmeasured):
                _trainer.tell(trainer, line)
            self._tell_unseen(trainer, pl_module, watching)
        elif self._fit.kind != "hidden" and _trainer.log_step(trainer):
            _trainer.tell(trainer, "weightwatch: gradients not measured: no optimizer step was seen through Lightning.")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save what this process knows, and let go of the model."""
        if not isinstance(exception, UnhealthyRunError):
            self._save(trainer)
        self._let_go()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._let_go()

    @guarded
    def _save(self, trainer: pl.Trainer) -> None:
        """Judge what waits. Other processes may be gone, so nothing is merged; a shard alone tells nothing."""
        watching = self._fit.watching
        if watching is not None and self._fit.kind != "sharded":
            self._learn(trainer, watching.recorder.gather(watching.recorder.drain(), agree=False))

    def _let_go(self) -> None:
        settle(self)
        self._fit.stop_listening()
        if self._fit.watching is not None:
            self._first_losses = list(self._fit.watching.evidence.first_losses)
        self._fit = _Fit()

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Lay out what is watched. Lazy parameters are there by now, so this waits for the first step."""
        if self._fit.watching is not None:
            self._flush(trainer, pl_module)
        chosen = meeting(self, lambda: self._choose(trainer, pl_module), pl_module.device)
        recorder = GradientRecorder(
            chosen, named_tensors(pl_module), rows=self._flush_every + 1, sharded=self._fit.kind == "sharded"
        )
        self._lay_out(trainer, recorder, optimizer)

    @deferred
    def _lay_out(self, trainer: pl.Trainer, recorder: GradientRecorder, optimizer: Optimizer) -> None:
        """Make what remembers and what shows; loggers are opened on one process only, so a failure waits."""
        for known in (*trainer.optimizers, optimizer):
            recorder.accept(known)
        names = [p.name for p in recorder.parameters]
        places = self._fit.order.places(names) if self._fit.order else {}
        watched = [Watched(p.name, p.numel, p.is_matrix, places.get(p.name, 0)) for p in recorder.parameters]
        evidence = Evidence(watched, window=self.window, scaled_loss=_trainer.has_grad_scaler(trainer))
        evidence.first_losses = list(self._first_losses)
        if self._fit.watching is not None:
            evidence.take_over(self._fit.watching.evidence)
        page = GradientPage(
            _trainer.sinks_of(trainer),
            self.prefix,
            evidence,
            planned=_trainer.planned_steps(trainer),
            every_n_steps=self.every_n_steps,
        )
        self._fit.watching = _Watching(recorder, evidence, page)

    def _choose(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Parameter]:
        described = describe(pl_module)
        if self._fit.kind == "sharded":
            tensors, flat = named_tensors(pl_module), _trainer.makes_flat_shards(trainer)
            described = as_wholes(described, self._fit.whole, tensors, flat=flat)
        known = {p.name: p for p in described}
        chosen = [known[name] for name in select_or_warn(_ME, known, self.include, self.exclude)]
        self._fit.unmeasured = {p.name: p.unmeasurable for p in chosen if p.unmeasurable}
        return [p for p in chosen if p.unmeasurable is None]

    @deferred
    def _record(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        if self._fit.watching is not None:
            step, scale = _trainer.log_step(trainer), _trainer.gradient_scale(trainer, optimizer)
            self._fit.watching.recorder.add(step, optimizer, scale=scale, loss=self._fit.losses.of(step))

    def _flush(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring what waits on the device to the host, the same on all ranks, and learn from it."""
        self._fit.flushed = _trainer.log_step(trainer) + 1
        if self._fit.watching is not None:
            recorder = self._fit.watching.recorder
            rows = meeting(self, recorder.drain, pl_module.device)
            news = self._learn(trainer, recorder.gather(rows, agree=True)) or ()
            self._act(trainer, pl_module, news)

    @deferred
    def _learn(self, trainer: pl.Trainer, gathered: Gathered) -> Sequence[Finding]:
        """Remember, judge, show, tell; return what is new."""
        watching = self._fit.watching
        if watching is None or not gathered.steps:
            return ()
        watching.remember(gathered)
        watched = enumerate(watching.recorder.parameters)
        self._fit.seen.update(p.name for i, p in watched if gathered.measured[:, i].any())
        news = self._judge(watching.evidence)
        self._findings += news
        watching.page.show(self._findings, news=bool(news))
        self._tell(trainer, news)
        return news

    def _judge(self, evidence: Evidence) -> tuple[Finding, ...]:
        findings, failed = judge(self.rules, evidence)
        for name, error in failed.items():
            log.warning("The rule %s failed (%s: %s). It is left out.", name, type(error).__name__, error)
        self.rules = tuple(rule for rule in self.rules if rule.name not in failed)
        return self._ledger.news(findings)

    def _tell(self, trainer: pl.Trainer, news: Sequence[Finding]) -> None:
        for finding in news:
            # One process does this, so a failure must not switch it off: the others would wait at the next meeting.
            attempt("Writing a finding", partial(self._write, trainer, finding), self._unwritten)
            if finding.severity != "info":
                _trainer.tell(trainer, f"weightwatch: {finding}")

    def _write(self, trainer: pl.Trainer, finding: Finding) -> None:
        if trainer.is_global_zero and self._fit.folder is not None:
            files.append_line(self._fit.folder / "findings.jsonl", finding.to_dict())

    def _tell_unseen(self, trainer: pl.Trainer, pl_module: pl.LightningModule, watching: _Watching) -> None:
        """Say which parameters never had a gradient: unused ones, or ones stepped behind Lightning's back."""
        waiting = {name for name, tensor in named_tensors(pl_module).items() if tensor.requires_grad}
        unseen = [p.name for p in watching.recorder.parameters if p.name in waiting - self._fit.seen]
        if unseen:
            who = f"{listed(unseen)} (unused, or stepped without Lightning)"
            _trainer.tell(trainer, f"weightwatch: gradients not measured: none was seen of {who}.")

    def _act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, news: Sequence[Finding]) -> None:
        """Do what the user asked for on all ranks, if one has a critical finding."""
        critical = next((f for f in news if f.severity == "critical"), None)
        if self.action == "warn" or not reduce.anyone(critical is not None, pl_module.device):
            return
        if self.action == "raise":
            raise UnhealthyRunError(str(critical or "A critical finding on another process."))
        trainer.should_stop = True


@dataclass
class _Watching:
    """What is watched, what is remembered of it, and where it is shown."""

    recorder: GradientRecorder
    evidence: Evidence
    page: GradientPage

    def remember(self, gathered: Gathered) -> None:
        """Take over what a flush brought."""
        rows = zip(gathered.steps, gathered.norms, gathered.measured, gathered.losses, strict=True)
        for step, norms, measured, loss in rows:
            self.evidence.add(step, norms, measured=measured, loss=None if np.isnan(loss) else loss)
        self.page.remember(len(gathered.steps))


@dataclass
class _Fit:
    """All that belongs to one fit and is dropped after it."""

    whole: tuple[Parameter, ...] = ()
    kind: _trainer.StrategyKind = "single"
    folder: Path | None = None
    flushed: int = 0
    losses: LossMeter = field(default_factory=LossMeter)
    seen: set[str] = field(default_factory=set)
    unmeasured: dict[str, str] = field(default_factory=dict)
    order: ForwardOrder | None = None
    watching: _Watching | None = None

    def stop_listening(self) -> None:
        """Take the hooks of the first backward pass away."""
        if self.order is not None:
            self.order.stop()


def _rules(rules: Sequence[Rule] | None) -> tuple[Rule, ...]:
    if rules is None:
        return tuple(all_rules("gradients").values())
    if isinstance(rules, str) or not isinstance(rules, Sequence) or not all(isinstance(r, Rule) for r in rules):
        remedy = "Use [*all_rules('gradients').values(), MY_RULE] from lightning_weightwatch.rules."
        _arguments.refuse(_ME, "rules", rules, "a list of Rule or None", remedy, wrong_type=True)
    return tuple(rules)
