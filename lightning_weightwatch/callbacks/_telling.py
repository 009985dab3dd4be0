"""What is told of findings, on the console and in files, and of what was never seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import lightning.pytorch as pl

from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._gradient_fit import GradientFit
from lightning_weightwatch.callbacks._guard import attempt
from lightning_weightwatch.callbacks._names import unmeasured
from lightning_weightwatch.parameters import named_tensors
from lightning_weightwatch.rules import Finding, listed
from lightning_weightwatch.sinks import files


def tell_findings(
    trainer: pl.Trainer,
    news: Sequence[Finding],
    folder: Path | None,
    unwritten: set[str],
    on_finding: Callable[[Finding], object] | None,
) -> None:
    """Write findings to their file, and print those that are warnings or worse.

    Args:
        trainer: The Trainer.
        news: What was found.
        folder: Where files lie, if anywhere.
        unwritten: Remembers what could not be written, so that it is said once.
        on_finding: The user's own function, called with each.
    """
    for finding in news:
        # One process does this, so a failure must not switch it off: the others would wait at the next meeting.
        attempt("Writing a finding", partial(_write, trainer, finding, folder), unwritten)
        if on_finding is not None:
            attempt("Calling on_finding", partial(on_finding, finding), unwritten)
        if finding.severity != "info":
            _trainer.tell(trainer, f"weightwatch: {finding}")


def tell_unmeasured(trainer: pl.Trainer, pl_module: pl.LightningModule, fit: GradientFit) -> None:
    """Say at the end of a fit what could not be measured: silence would pass for health."""
    if fit.recorder is None or fit.memory is None:
        if fit.kind != "hidden" and _trainer.log_step(trainer):
            _trainer.tell(trainer, "weightwatch: gradients not measured: no optimizer step was seen.")
        return
    for line in unmeasured("gradients", fit.unmeasured | fit.recorder.unmeasured):
        _trainer.tell(trainer, line)
    if fit.recorder.unclipped:
        who = ", ".join(sorted(fit.recorder.unclipped))
        _trainer.tell(
            trainer, f"weightwatch: norms after clipping not measured: the step of {who} may change gradients."
        )
    for reason in sorted(fit.ear.unheard):
        _trainer.tell(trainer, f"weightwatch: activations, loss functions and inputs not listened to: {reason}.")
    if fit.kind == "sharded":
        _trainer.tell(trainer, "weightwatch: equal rows of weights not looked for: a process holds parts of them.")
    waiting = {name for name, tensor in named_tensors(pl_module).items() if tensor.requires_grad}
    waiting -= fit.seen | fit.recorder.unmeasured.keys()
    unseen = [p.name for p in fit.recorder.parameters if p.name in waiting]
    if unseen:
        who = f"{listed(unseen)} (unused, or stepped by an optimizer that the Trainer does not know)"
        _trainer.tell(trainer, f"weightwatch: gradients not measured: none was seen of {who}.")


def _write(trainer: pl.Trainer, finding: Finding, folder: Path | None) -> None:
    if trainer.is_global_zero and folder is not None:
        files.append_line(folder / "findings.jsonl", finding.to_dict())
