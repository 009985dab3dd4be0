"""Judge how every parameter was initialised, and how the first batch passes, before the first step.

This file decides when to look and whom to tell. How an initialisation is judged lies in ``audit``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from lightning_weightwatch import _arguments, audit, figures, reduce, stats
from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._first_batch import FirstBatch, why_not
from lightning_weightwatch.callbacks._guard import attempt, deferred, guarded, meeting, settle
from lightning_weightwatch.callbacks._names import select_or_warn
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.parameters import Parameter, as_wholes, declared_ties, describe, named_tensors, values
from lightning_weightwatch.propagation import PASSES
from lightning_weightwatch.report import InitReport, in_words
from lightning_weightwatch.sinks import Sinks, files

_ME = "InitAuditor"
_ROWS = 20  # of a table on the console; all are in the file and in TensorBoard


class InitAuditor(pl.Callback):
    """Name the scheme every parameter was drawn from, and find weights that cannot train.

    A scheme is recognised by spread, centre, shape and largest magnitude, with the sampling error of so many elements;
    PyTorch's own defaults come first. What is not recognised (loaded, trained, of the model's own making) is no
    illness. What is ill: NaN or Inf in a parameter, constant matrices in a row. After a resume nothing is said of
    schemes.

    The first batch that trains is listened to, for that one forward and backward pass: how its spread and its gradients
    change from layer to layer, which units are dead, saturated or copies, what the first loss is. Nothing runs twice,
    and nothing of the training changes. Where it cannot be listened to (compiled modules, weights cut into shards, a
    resumed run) the report says so.

    What is logged, once, after the first step (the second or third, where a matrix that began at zero kept gradients
    from others):

    ======================= ======= ======================================================================
    tag                     unit    meaning
    ======================= ======= ======================================================================
    ``health/init audit``   table   every parameter's scheme, spread and verdict, worst first (TensorBoard)
    ``health/1 init audit`` picture measured over expected spread, worst first (TensorBoard)
    ``health/2 signal``     picture activations and gradients of the first batch against depth (TensorBoard)
    ======================= ======= ======================================================================

    The same is printed, in one line where all is well, and written to ``<log_dir>/weightwatch/init_report.json``: what
    the weights tell as soon as the training begins, the rest with it after the first step.

    Args:
        include: Judge parameters whose name matches one of these shell-style patterns.
        exclude: Of those, leave out the ones that match one of these.
        on_finding: What a finding does: ``"warn"`` prints it, ``"raise"`` also raises ``UnhealthyRunError`` if it is
            critical, on all ranks alike and before any weight has moved, ``"ignore"`` leaves it to the report.
        prefix: The first part of every tag.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> auditor = InitAuditor(exclude=["backbone.*"], on_finding="raise")
        >>> auditor.report is None
        True
    """

    def __init__(
        self,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        on_finding: Literal["warn", "raise", "ignore"] = "warn",
        prefix: str = "health",
    ) -> None:
        super().__init__()
        self.include = _arguments.patterns(_ME, "include", include)
        self.exclude = _arguments.patterns(_ME, "exclude", exclude)
        self.on_finding = _arguments.choice(
            _ME, "on_finding", on_finding, ("warn", "raise", "ignore"), 'Use "warn" to be told and train on.'
        )
        self.prefix = _arguments.tag_prefix(_ME, "prefix", prefix)
        self.broken = False
        self.failure: Exception | None = None
        self._report: InitReport | None = None
        self._before: tuple[Parameter, ...] = ()
        self._audit = _Audit()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running audit, for libraries that copy or pickle callbacks in the middle of it."""
        return self.__dict__ | {"_audit": _Audit()}

    @property
    def report(self) -> InitReport | None:
        """The last verdict; ``None`` before a training has begun."""
        return self._report

    @property
    def state_key(self) -> str:
        """Two auditors of one Trainer must not log under one prefix, so the prefix tells their states apart."""
        return self._generate_state_key(prefix=self.prefix)

    @deferred
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note whole shapes before a strategy cuts them."""
        if stage == "fit":
            self._before = describe(pl_module)

    @guarded
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the weights, let ranks agree, judge. This is the first hook where everything is restored."""
        self._audit = now = _Audit(_trainer.evidence_folder(trainer), _trainer.log_step(trainer), is_open=True)
        described, chosen, held, partials = meeting(self, lambda: self._measure(trainer, pl_module), pl_module.device)
        self._before = ()
        kind, resumed = _trainer.strategy_kind(trainer), bool(trainer.ckpt_path) or trainer.global_step > 0
        if kind == "sharded" and held:
            weights = reduce.replication_weights(held, [p.numel for p in audit.measurable(chosen)])
            partials = reduce.merge(partials, stats.merges(audit.STATISTICS), weights)
        now.judge = partial(
            audit.judge,
            chosen,
            audit.readouts(chosen, partials),
            among=described,
            resumed=resumed,
            step=now.step,
            declared=declared_ties(pl_module),
        )
        now.batch = FirstBatch(chosen, why_not(kind, trainer, pl_module, resumed=resumed))
        now.raises_still = 0 if now.batch.is_done else PASSES
        judge = partial(now.judge, signal=now.batch.signal(()) if now.batch.is_done else None)
        self._report = meeting(self, judge, pl_module.device)  # all must get to where raising is agreed on
        self._write(trainer, self._report)
        if now.batch.is_done:
            self._finish(trainer)
        self._raise_if_asked(trainer, pl_module)

    @deferred
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the first forward pass."""
        if self._audit.is_open:
            self._audit.batch.begin(trainer, pl_module, batch)

    @deferred
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Stop listening, and note the first loss."""
        if self._audit.is_open:
            self._audit.batch.before_backward(trainer, loss)

    @guarded
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the first gradients, before any weight has moved."""
        if self._audit.is_open:
            self._listen(trainer, optimizer)
        if self.on_finding == "raise" and self._audit.raises_still:
            self._audit.raises_still -= 1
            if self._audit.is_open:
                self._judge(trainer)
            self._raise_if_asked(trainer, pl_module)

    @deferred
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge and tell, once all is known."""
        if self._audit.is_open:
            self._audit.batch.end_batch(trainer)
            if self._audit.batch.is_done:
                self._judge(trainer)
                self._finish(trainer)

    @deferred
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop listening, if the epoch ended where a batch was about to begin."""
        if self._audit.is_open:
            self._audit.batch.end_epoch()

    @deferred
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell what is known, if the training ended before all was."""
        self._finish_early(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell what is known, and let go of the forward pass."""
        self._finish_early(trainer)
        self._audit.let_go()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the forward pass; a failure that nobody heard of is told."""
        settle(self)
        self._audit.let_go()
        self._audit = _Audit()

    @deferred
    def _listen(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        self._audit.batch.before_step(trainer, optimizer)

    @deferred
    def _judge(self, trainer: pl.Trainer) -> None:
        self._report = self._audit.judge(signal=self._audit.batch.signal(trainer.optimizers))

    @deferred
    def _finish_early(self, trainer: pl.Trainer) -> None:
        if self._audit.is_open:
            self._audit.batch.leave()
            self._judge(trainer)
            self._finish(trainer)

    def _finish(self, trainer: pl.Trainer) -> None:
        """Tell the report, once."""
        report, self._audit.is_open = self._report, False
        if report is not None:
            self._write(trainer, report)
            attempt(f"{_ME}: showing the report", lambda: self._show(trainer, report), set())

    def _write(self, trainer: pl.Trainer, report: InitReport) -> None:
        """Write the report beside the logs, as soon as something is known: a crash must not lose it."""
        folder = self._audit.folder
        if folder is not None and trainer.is_global_zero:
            path = folder / "init_report.json"
            attempt(f"{_ME}: writing {path}", lambda: files.write_json(path, report.to_dict()), set())

    def _measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[Sequence[Parameter], list[Parameter], list[Tensor], dict[str, Tensor]]:
        """Return all parameters, the chosen ones, what is held here of the measurable ones, and its partials."""
        described: Sequence[Parameter] = describe(pl_module)
        tensors: dict[str, Tensor] = {**named_tensors(pl_module)}
        if _trainer.strategy_kind(trainer) in ("sharded", "hidden"):
            described = as_wholes(described, self._before, tensors, flat=_trainer.makes_flat_shards(trainer))
        known = {p.name: p for p in described}
        chosen = [known[name] for name in select_or_warn(_ME, known, self.include, self.exclude)]
        held = [values(tensors[p.name]) for p in audit.measurable(chosen)]
        return described, chosen, held, audit.measure(chosen, tensors)

    def _show(self, trainer: pl.Trainer, report: InitReport) -> None:
        if not trainer.is_global_zero:
            return
        self._publish(_trainer.sinks_of(trainer), report, self._audit.step)
        is_quiet = report.is_well or self.on_finding == "ignore"
        _trainer.tell(trainer, f"weightwatch: {report.brief if is_quiet else report.drawn(_ROWS)}")

    def _publish(self, sinks: Sinks, report: InitReport, step: int) -> None:
        if not sinks:
            return
        sinks.text(f"{self.prefix}/init audit", report.to_markdown(), step)
        measured = [p for p in report.parameters if p.std is not None and p.expected_std]
        picture = figures.init_audit(
            names=[p.name for p in measured],
            measured_std=[p.std or 0.0 for p in measured],
            expected_std=[p.expected_std or 0.0 for p in measured],
            verdicts=[p.verdict for p in measured],
            sizes=[math.prod(p.shape) for p in measured],
        )
        sinks.image(f"{self.prefix}/1 init audit", figures.encode(picture), step)
        if report.signal is not None and report.signal.layers:
            told = in_words(report.signal)
            picture = figures.signal_profile(
                names=[layer.name for layer in report.signal.layers],
                spread=[layer.spread for layer in report.signal.layers],
                gradient=[layer.gradient for layer in report.signal.layers],
                title=told[:1].upper() + told[1:] or "One batch",
                healthy=report.is_well,
            )
            sinks.image(f"{self.prefix}/2 signal", figures.encode(picture), step)
        sinks.flush()

    def _raise_if_asked(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise on all ranks if one has a critical finding: each judged its own copy, and its own batch."""
        if self.on_finding != "raise":
            return
        critical = [f for f in self._report.findings if f.severity == "critical"] if self._report else []
        if reduce.anyone(bool(critical), pl_module.device):
            self._audit.raises_still = 0
            if self._audit.is_open:
                self._finish(trainer)
            raise UnhealthyRunError(str(critical[0]) if critical else "A critical finding on another process.")


def _nothing(**_: Any) -> InitReport:
    """Judge nothing: there is no training."""
    return InitReport(())


@dataclass
class _Audit:
    """The audit of one fit; dropped after it.

    Attributes:
        is_open: Whether something is still to be measured and told.
        raises_still: At how many further steps processes ask each other whether to raise, also once it is closed: one
            that heard all would leave the others waiting.
    """

    folder: Path | None = None
    step: int = 0
    judge: Callable[..., InitReport] = _nothing
    batch: FirstBatch = field(default_factory=lambda: FirstBatch((), "there is no training"))
    is_open: bool = False
    raises_still: int = 0

    def let_go(self) -> None:
        """Leave the forward pass."""
        self.batch.leave()
