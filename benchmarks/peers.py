"""What others do to the gradients of a module on a step that they look at; each gives an act, as in ``ours``."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from lightning.pytorch.utilities import grad_norm
from ours import Act
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter


@contextmanager
def clip(module: nn.Module) -> Iterator[Act]:
    """Clip the gradients, which most trainings do anyway; so far up that they stay as they are."""
    parameters = list(module.parameters())
    yield lambda: nn.utils.clip_grad_norm_(parameters, 1e9)


@contextmanager
def lightning_grad_norm(module: nn.Module) -> Iterator[Act]:
    """Take Lightning's norms, and read them, as logging them does."""
    yield lambda: {name: float(norm) for name, norm in grad_norm(module, 2).items()}


@contextmanager
def histc(module: nn.Module) -> Iterator[Act]:
    """Count every gradient into 64 bins between its extremes, and read nothing."""
    yield lambda: [torch.histc(p.grad, 64) for p in module.parameters()]


@contextmanager
def add_histogram(module: nn.Module) -> Iterator[Act]:
    """Hand every gradient to TensorBoard, with its default bins."""
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        yield lambda: [writer.add_histogram(name, p.grad, 0) for name, p in module.named_parameters()]


@contextmanager
def wandb_watch(module: nn.Module) -> Iterator[Act]:
    """Call the hooks that ``wandb.watch`` puts on the parameters as backward would, and log what they gathered."""
    wandb = importlib.import_module("wandb")
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, quiet):
        os.environ |= {f"WANDB_{what}_DIR": folder for what in ("CACHE", "CONFIG", "DATA")}
        run = wandb.init(dir=folder, project="benchmark")
        run.watch(module, log="gradients", log_freq=1)
        hooked = [(p.grad, hook) for p in module.parameters() for hook in p._backward_hooks.values()]

        def act() -> None:
            for gradient, hook in hooked:
                hook(gradient)
            run.log({})

        yield act
        run.unwatch(module)
        run.finish()


@contextmanager
def optimizer_monitor(module: nn.Module) -> Iterator[Act]:
    """Do what composer's ``OptimizerMonitor`` is described to do, per parameter; every number is read on its own."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    optimizer.step()

    def act() -> dict[str, float]:
        report = {}
        for name, p in module.named_parameters():
            step = _adam_step(optimizer.state[p])
            gradient, change = p.grad.norm(), step.norm()
            report[f"l2_norm/grad/{name}"] = gradient.item()
            report[f"l2_norm/param/{name}"] = p.detach().norm().item()
            report[f"l2_norm/update/{name}"] = change.item()
            report[f"cosine/{name}"] = (torch.dot(p.grad.flatten(), step.flatten()) / (gradient * change)).item()
        return report

    yield act


def _adam_step(state: dict[str, Tensor], lr: float = 1e-3, eps: float = 1e-8) -> Tensor:
    return state["exp_avg"].div(state["exp_avg_sq"].sqrt().add_(eps)).mul_(-lr)


EVERY = {
    "clip_grad_norm_ itself": clip,
    "Lightning's grad_norm, read": lightning_grad_norm,
    "one torch.histc per gradient, not read": histc,
    "OptimizerMonitor as composer describes it": optimizer_monitor,
    "wandb.watch, gradients": wandb_watch,
    "SummaryWriter.add_histogram of every gradient": add_histogram,
}
