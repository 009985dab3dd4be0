"""Judge how every parameter was initialised, once, before the first step.

This file decides when to look and whom to tell. How an initialisation is judged lies in ``audit``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
from torch import Tensor

from lightning_weightwatch import _arguments, audit, figures, reduce, stats
from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._guard import attempt, deferred, guarded, meeting
from lightning_weightwatch.callbacks._names import select_or_warn
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.parameters import Parameter, as_wholes, describe, named_tensors, values
from lightning_weightwatch.sinks import Sinks, files

_ME = "InitAuditor"
_QUIET_ABOVE = 40  # a table of more rows than fit a screen is drawn only where there is something to see


class InitAuditor(pl.Callback):
    """Name the scheme every parameter was drawn from, and find weights that cannot train.

    A scheme is recognised by spread, centre, shape and largest magnitude, with the sampling error of so many elements;
    PyTorch's own defaults come first. What is not recognised (loaded, trained, of the model's own making) is no
    illness. What is ill: NaN or Inf in a parameter, constant matrices in a row. After a resume nothing is said of
    schemes.

    What is logged, once, when the training begins:

    ===================== ======= ======================================================================
    tag                   unit    meaning
    ===================== ======= ======================================================================
    ``health/init audit`` table   every parameter's scheme, spread and verdict, worst first (TensorBoard)
    ``health/1 init audit`` picture measured over expected spread, worst first (TensorBoard)
    ===================== ======= ======================================================================

    The same is printed, in one line where all is well and the model has more than 40 parameters, and written to
    ``<log_dir>/weightwatch/init_report.json``.

    Args:
        include: Judge parameters whose name matches one of these shell-style patterns.
        exclude: Of those, leave out the ones that match one of these.
        on_finding: What a finding does: ``"warn"`` prints it, ``"raise"`` also raises ``UnhealthyRunError`` if it is
            critical, on all ranks alike, ``"ignore"`` leaves it to the report.
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
        self._report: audit.InitReport | None = None
        self._before: tuple[Parameter, ...] = ()

    @property
    def report(self) -> audit.InitReport | None:
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
        """Measure, let ranks agree, judge, show, tell. This is the first hook where everything is restored."""
        folder = _trainer.evidence_folder(trainer)
        self._report = report = self._audit(trainer, pl_module)
        self._before = ()
        attempt(f"{_ME}: showing the report", lambda: self._show(trainer, report, folder), set())
        if self.on_finding == "raise":
            self._raise(report, pl_module)

    def _audit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> audit.InitReport:
        described, chosen, held, partials = meeting(self, lambda: self._measure(trainer, pl_module), pl_module.device)
        if _trainer.strategy_kind(trainer) == "sharded" and held:
            weights = reduce.replication_weights(held, [p.numel for p in audit.measurable(chosen)])
            partials = reduce.merge(partials, stats.merges(audit.STATISTICS), weights)
        judge = partial(
            audit.judge,
            chosen,
            audit.readouts(chosen, partials),
            among=described,
            resumed=bool(trainer.ckpt_path) or trainer.global_step > 0,
            step=_trainer.log_step(trainer),
        )
        return meeting(self, judge, pl_module.device)  # raising is agreed on afterwards, so all must get there

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

    def _show(self, trainer: pl.Trainer, report: audit.InitReport, folder: Path | None) -> None:
        if not trainer.is_global_zero:
            return
        if folder is not None:
            files.write_json(folder / "init_report.json", report.to_dict())
        self._publish(_trainer.sinks_of(trainer), report, _trainer.log_step(trainer))
        is_long = len(report.parameters) > _QUIET_ABOVE
        _trainer.tell(trainer, f"weightwatch: {report.headline}" if is_long and not report.findings else str(report))
        for finding in report.findings:
            if finding.severity != "info" and self.on_finding != "ignore":
                _trainer.tell(trainer, f"weightwatch: {finding}")

    def _publish(self, sinks: Sinks, report: audit.InitReport, step: int) -> None:
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
        sinks.flush()

    def _raise(self, report: audit.InitReport, pl_module: pl.LightningModule) -> None:
        """Raise on all ranks if one has a critical finding: each judged its own copy where weights are replicated."""
        critical = [finding for finding in report.findings if finding.severity == "critical"]
        if reduce.anyone(bool(critical), pl_module.device):
            raise UnhealthyRunError(str(critical[0]) if critical else "A critical finding on another process.")
