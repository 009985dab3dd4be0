"""What others say of the same cases: each watches as its own readme shows, and its findings are read in our words.

The reading is generous. A finding counts for every illness that its message can be taken to name, however many those
are; hints about style, speed or the weight decay of biases are no false alarms; a module without parameters stands for
the one before it. None of them names a first cause, so all that began first counts, and all that it rated highest.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn
from verdicts import LEVELS, Told

# torchmortem: the start of a finding's title, and the illnesses that title and summary can be taken to name.
MORTEM = {
    "Vanishing gradients": ("vanishing_gradients",),
    "Gradient stalling": ("vanishing_gradients", "zero_blocked_signal", "untrained_parameters"),
    "Exploding gradients": ("exploding_gradients", "gradient_spike"),
    "Update ratio too low": ("learning_rate_too_low", "lost_updates"),
    "Update ratio too high": ("learning_rate_too_high",),
    "Stagnant weight norms": ("untrained_parameters", "learning_rate_too_low", "lost_updates"),
    "Inter-layer weight norm imbalance": ("layer_scale_outlier",),
    "Dead units": ("dead_units",),
    "Activation saturation": ("saturated_units",),
    "Rank collapse": ("symmetric_units",),
    "Training divergence": ("diverging_loss", "learning_rate_too_high"),
    "Loss plateau": ("no_learning", "label_signal"),
    "Catapult phase": ("loss_spike",),
    "Edge of stability": ("oscillating_loss",),
}  # of "High gradient noise" and "Weight norm explosion" we know no illness: alarms without a name

# torch-audit: a rule, with what it found it in if that matters.
AUDIT = {
    "TA100 param": ("non_finite_weights",),
    "TA100 grad": ("non_finite_gradients", "non_finite_loss", "overflow_skips"),
    "TA102": ("exploding_gradients", "gradient_spike"),
    "TA103": ("dead_units", "zero_blocked_signal", "vanishing_gradients"),
    "TA104": ("untrained_parameters",),
    "TA105": ("dead_units",),
    "TA301": ("input_scale",),
    "TA405": ("dead_units", "zero_blocked_signal", "constant_weights"),
    "TA500": ("untrained_parameters",),
}  # of TA302 to TA305 and TA501, all about the data or the code, we know no illness: alarms without a name
AUDIT_HINTS = ("TA000", "TA2", "TA400", "TA401", "TA402", "TA403", "TA404")  # speed, style, and its own crashes
AUDIT_LEVELS = {"INFO": "info", "WARN": "warning", "ERROR": "critical", "FATAL": "critical"}


class Watcher(pl.Callback):
    """Watches by another's package, and leaves what it told in a folder, from whichever process it was."""

    def __init__(self, folder: Path, patterns: Sequence[str]) -> None:
        self.folder, self.patterns = folder, patterns

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it down."""
        told = list(self.finish(trainer, pl_module))
        if trainer.is_global_zero:
            (self.folder / "told.json").write_text(json.dumps([asdict(t) for t in told]), encoding="utf-8")

    def finish(self, trainer: pl.Trainer, model: nn.Module) -> Iterable[Told]:
        """Stop watching and return what was found."""
        raise NotImplementedError

    def place(self, model: nn.Module, layers: Iterable[str]) -> tuple[str, ...]:
        """Return one parameter for each layer: one that is right, if the layer has such a one."""
        return tuple(dict.fromkeys(name for layer in layers for name in stand_in(model, layer, self.patterns)))


class Torchmortem(Watcher):
    """Judges once, when the training is over."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach it."""
        torchmortem = importlib.import_module("torchmortem")
        self.autopsy = torchmortem.Autopsy(pl_module, optimizer=trainer.optimizers[0])
        self.autopsy.attach()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell it the loss, if the training says it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self.autopsy.step(**({} if loss is None else {"loss": float(loss)}))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no report of its own behind."""
        self.autopsy.detach(is_complete=False)

    def finish(self, trainer: pl.Trainer, model: nn.Module) -> Iterable[Told]:
        """Read its report."""
        self.autopsy.detach()
        for finding in self.autopsy.get_report().findings:
            rules = next((rules for start, rules in MORTEM.items() if finding.title.startswith(start)), ())
            where, (since, _) = self.place(model, finding.affected_layers), finding.step_range
            words = finding.title.split(" in ")[0]
            yield Told(rules, finding.severity.name.lower(), trainer.global_step - 1, since, where, words)


class TorchAudit(Watcher):
    """Judges every step, as its readme says that it can; by itself it looks at every thousandth."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let it patch the model and the optimizer, which is its way without changes to a training."""
        torch_audit = importlib.import_module("torch_audit")
        self.auditor = torch_audit.autopatch(pl_module, optimizer=trainer.optimizers[0], every_n_steps=1)

    def finish(self, trainer: pl.Trainer, model: nn.Module) -> Iterable[Told]:
        """Read its findings."""
        self.auditor.unpatch()
        told_in: dict[Any, Any] = {}  # what it told before a step is not blurred by what it repeats after that step
        for finding in self.auditor.finish().findings:
            first = told_in.setdefault((_words(finding), finding.step), finding.phase)
            if finding.phase == first and not finding.rule_id.startswith(AUDIT_HINTS):
                yield self._read(finding, model)

    def _read(self, finding: Any, model: nn.Module) -> Told:
        what, _, name = (finding.entity or "").partition(":")
        if what in ("param", "grad"):
            where = (name if finding.module_path == "global" else f"{finding.module_path}.{name}",)
        else:
            where = self.place(model, [finding.module_path] if finding.module_path else [])
        words, level = _words(finding), AUDIT_LEVELS[finding.severity.value]
        return Told(AUDIT.get(words, ()), level, finding.step, finding.step, where, words)


def _words(finding: Any) -> str:
    """Return a rule of torch-audit as ``AUDIT`` has it."""
    return f"TA100 {finding.entity.partition(':')[0]}" if finding.rule_id == "TA100" else finding.rule_id


PEERS: dict[str, tuple[str, Callable[..., Watcher]]] = {
    "torchmortem": ("torchmortem", Torchmortem),
    "torch-audit": ("torch_audit", TorchAudit),
}


def is_installed(peer: str) -> bool:
    """Whether its package can be imported."""
    return importlib.util.find_spec(PEERS[peer][0]) is not None


def admit(peer: str, case: Any, seed: int) -> tuple[tuple[Told, ...], tuple[str, ...]]:
    """Train a case of the ward under another's eyes; return what it told, and what may count as the first cause."""
    from tests.ward import runner

    with tempfile.TemporaryDirectory() as folder:
        runner._train(case, seed, [PEERS[peer][1](Path(folder), case.layers)], folder)
        told = [_told(plain) for plain in json.loads((Path(folder) / "told.json").read_text(encoding="utf-8"))]
    told = merged(told, case.onset)
    return told, foremost(told)


def merged(told: Iterable[Told], onset: int) -> tuple[Told, ...]:
    """Return one finding for those that say the same of several layers, and none for those that repeat it later.

    Before the onset and after it are two: what was a false alarm may be told again when it is true.
    """
    kept: dict[Any, Told] = {}
    for t in told:
        key = (t.rules, t.severity, t.words, t.step >= onset)
        known = kept.setdefault(key, t)
        if t.step == known.step:
            places = tuple(dict.fromkeys((*known.parameters, *t.parameters)))
            kept[key] = replace(known, parameters=places, since_step=min(known.since_step, t.since_step))
    return tuple(kept.values())


def foremost(told: Iterable[Told]) -> tuple[str, ...]:
    """Return the illnesses named by the alarms that began first, and by those of the highest severity."""
    alarms = [t for t in told if t.is_alarm]
    begin = min((t.since_step for t in alarms), default=0)
    highest = max((LEVELS.index(t.severity) for t in alarms), default=0)
    top = [t for t in alarms if t.since_step == begin or LEVELS.index(t.severity) == highest]
    return tuple(dict.fromkeys(rule for t in top for rule in t.rules))


def _told(plain: dict[str, Any]) -> Told:
    return Told(**plain | {"rules": tuple(plain["rules"]), "parameters": tuple(plain["parameters"])})


def stand_in(model: nn.Module, layer: str, patterns: Sequence[str]) -> list[str]:
    """Return the name of a parameter of this module, or of the last one before it that has any."""
    names: list[str] = []
    for path, module in model.named_modules():
        own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=path == layer)]
        names = own or names
        if path == layer:
            break
    right = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return (right or names)[:1]
