"""A case's chart: what plain torch measures while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NAN = float("nan")
BOUNDED = (nn.Tanh, nn.Sigmoid)
RECTIFIED = (nn.ReLU, nn.ReLU6)


@dataclass
class Chart:
    """Plain measurements of one training.

    Attributes:
        losses: Of each batch.
        rates: The learning rate of each optimizer step.
        gradients: The norm of each parameter's gradient at each optimizer step; NaN where it has none.
        weights: The norm of each parameter after each batch.
        before: The parameters as the training began.
        after: The parameters as it ended.
        last_gradients: The gradients of the last optimizer step.
        outside: Trainable parameters that no optimizer holds.
        stale: Whether gradients were there already as a step's first backward pass began, for each step.
        outputs: The outputs of activation modules in the first forward pass and in the last one, unit by unit.
        batch: The first batch.
        validations: The validation losses.
        dropout: The probabilities of its dropout modules.
        floor: The loss below which the model says that it cannot get.
        scores: ``score()`` of the model as the training began and as it ended, if it has one.
        others: The charts of other processes.
    """

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    gradients: dict[str, list[float]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    last_gradients: dict[str, Tensor] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    stale: list[bool] = field(default_factory=list)
    outputs: dict[str, tuple[str, Tensor, Tensor]] = field(default_factory=dict)
    batch: Any = None
    validations: list[float] = field(default_factory=list)
    dropout: list[float] = field(default_factory=list)
    floor: float = NAN
    scores: list[float] = field(default_factory=list)
    others: list[Chart] = field(default_factory=list)

    def named(self, patterns: Sequence[str]) -> list[str]:
        """Return the parameters that match one of the patterns."""
        return [name for name in self.before if any(fnmatch(name, pattern) for pattern in patterns)]

    def rms(self, name: str) -> Tensor:
        """Return the root mean square gradient of a parameter at each optimizer step."""
        return torch.tensor(self.gradients[name]) / self.before[name].numel() ** 0.5

    def global_norms(self) -> Tensor:
        """Return the norm of all gradients at each optimizer step."""
        norms = torch.tensor([self.gradients[name] for name in self.gradients if self.gradients[name]])
        return norms.square().nansum(0).sqrt() + 0 * norms.where(norms.isinf(), 0).sum(0)

    def matrices(self) -> list[str]:
        """Return the parameters of two dimensions or more."""
        return [name for name, tensor in self.before.items() if tensor.ndim > 1]


class Charting(pl.Callback):
    """Keeps a chart, and leaves it in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.chart = folder, Chart()
        self.handles: list[Any] = []
        self.in_window = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        held = {id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        named = dict(pl_module.named_parameters())
        self.chart.outside = [name for name, p in named.items() if p.requires_grad and id(p) not in held]
        self.chart.before = _copies(named)
        self.chart.gradients, self.chart.weights = {name: [] for name in named}, {name: [] for name in named}
        self._score(pl_module)
        self.chart.dropout = [m.p for m in pl_module.modules() if isinstance(m, nn.Dropout)]
        self.chart.floor = getattr(pl_module, "floor", NAN)
        for name, module in pl_module.named_modules():
            if isinstance(module, BOUNDED + RECTIFIED):
                self.handles.append(module.register_forward_hook(self._listener(name)))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        if self.chart.batch is None:
            self.chart.batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if not self.in_window:
            grads = [p.grad for o in trainer.optimizers for g in o.param_groups for p in g["params"]]
            self.chart.stale.append(any(g is not None and bool((_dense(g) != 0).any()) for g in grads))
        self.in_window = True

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self.in_window = False
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.chart.rates.append(max(float(group["lr"]) for group in optimizer.param_groups))
        for name, p in pl_module.named_parameters():
            if id(p) in mine or len(trainer.optimizers) == 1:
                self.chart.gradients[name].append(NAN if p.grad is None else float(_dense(p.grad).float().norm()))
        self.chart.last_gradients |= {
            name: _dense(p.grad).clone() for name, p in pl_module.named_parameters() if p.grad is not None
        }

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self.chart.losses.append(NAN if loss is None else float(loss))
        for name, p in pl_module.named_parameters():
            if name in self.chart.weights:
                self.chart.weights[name].append(float(p.detach().float().norm()))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.chart.validations.append(float(trainer.callback_metrics["val_loss"]))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for handle in self.handles:
            handle.remove()
        self.chart.after = _copies(dict(pl_module.named_parameters()))
        self._score(pl_module)
        torch.save(self.chart, self.folder / f"rank{trainer.global_rank}.pt")

    def _score(self, pl_module: pl.LightningModule) -> None:
        if hasattr(pl_module, "score"):
            with torch.no_grad():
                self.chart.scores.append(float(pl_module.score()))

    def _listener(self, name: str) -> Any:
        def listen(module: nn.Module, _: Any, output: Tensor) -> None:
            units = (
                output.detach().transpose(1, -1).flatten(0, -2) if output.ndim > 3 else output.detach().flatten(0, -2)
            )
            first = self.chart.outputs[name][1] if name in self.chart.outputs else units
            self.chart.outputs[name] = (type(module).__name__, first, units)

        return listen


def _copies(named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in named.items()}


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient.detach()
