"""Trains cases: under the monitor, to see what it finds, and without it, to see what is true."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_weightwatch import GradientHealthMonitor
from lightning_weightwatch.rules import Finding
from tests.helpers import fits
from tests.helpers.strategies import replicated
from tests.ward.case import Case
from tests.ward.chart import Chart, Charting


@dataclass(frozen=True)
class Admission:
    """What the monitor said of a case.

    Attributes:
        findings: All findings, in the order in which they were told.
        first_cause: The one that began first, if there is one.
        steps: How many optimizer steps were taken.
        complaints: What the package logged as warnings: rules that failed, parts that were left out.
    """

    findings: tuple[Finding, ...]
    first_cause: Finding | None
    steps: int
    complaints: tuple[str, ...] = ()


def admit(case: Case, seed: int = 0, **monitor: Any) -> Admission:
    """Train a case under a monitor, by default as it comes, and return what was found."""
    watcher = GradientHealthMonitor(**monitor)
    with tempfile.TemporaryDirectory() as folder:
        _train(case, seed, [watcher, _Courier(watcher, Path(folder))], folder)
        told = json.loads((Path(folder) / "told.json").read_text())
    findings = tuple(Finding.from_dict(plain) for plain in told["findings"])
    first = None if told["first"] is None else findings[told["first"]]
    return Admission(findings, first, told["steps"], tuple(told["complaints"]))


def plain(case: Case, seed: int = 0) -> Chart:
    """Train a case without any callback of the package and return plain measurements; other ranks' are in them."""
    with tempfile.TemporaryDirectory() as folder:
        _train(case, seed, [Charting(Path(folder))], folder)
        first, *others = [torch.load(path, weights_only=False) for path in sorted(Path(folder).glob("rank*.pt"))]
    first.others = others
    return first


class _Courier(pl.Callback):
    """Brings home what a monitor found, from whichever process it was."""

    def __init__(self, watcher: GradientHealthMonitor, folder: Path) -> None:
        self.watcher, self.folder, self.complaints = watcher, folder, _Complaints()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logging.getLogger("lightning_weightwatch").addHandler(self.complaints)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logging.getLogger("lightning_weightwatch").removeHandler(self.complaints)
        if trainer.is_global_zero:
            findings, first = list(self.watcher.findings), self.watcher.first_cause
            told = {
                "findings": [finding.to_dict() for finding in findings],
                "first": None if first is None else findings.index(first),
                "steps": trainer.global_step,
                "complaints": self.complaints.lines,
            }
            (self.folder / "told.json").write_text(json.dumps(told))


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _train(case: Case, seed: int, callbacks: Sequence[pl.Callback], folder: str) -> None:
    with _quiet(), _one_thread():
        torch.manual_seed(seed)
        model = case.make()
        options = case.options()
        if case.devices > 1:
            options |= {"devices": case.devices, "strategy": replicated()}
        callbacks = [*options.pop("callbacks", []), *callbacks]
        usual = {"max_epochs": -1, "max_steps": case.steps, "log_every_n_steps": 50, "num_sanity_val_steps": 0}
        fits.trainer(callbacks, default_root_dir=folder, **usual | options).fit(model)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let neither Lightning nor the monitor speak; what numpy warns of would be a defect and passes."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
