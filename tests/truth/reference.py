"""The truth that every measurement is held against: a training loop in plain torch, statistics in plain NumPy.

Nothing here imports the package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray
Arrays = dict[str, Array | None]


@dataclass
class Step:
    """What happened in one step, in float64; ``None`` where there was no gradient or no update."""

    loss: float = np.nan
    gradients: Arrays = field(default_factory=dict)
    clipped: Arrays | None = None
    before: Arrays = field(default_factory=dict)
    after: Arrays = field(default_factory=dict)
    owned: set[str] | None = None  # whose optimizer stepped; all, if not given


def array(tensor: Tensor | None, scale: float = 1.0) -> Array | None:
    """Return every element as float64, zeros of sparse tensors included, complex ones as two."""
    if tensor is None:
        return None
    tensor = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.double().numpy().copy().reshape(-1) / scale


def gradients(model: nn.Module, scale: float = 1.0) -> Arrays:
    """Return every parameter's gradient."""
    return {name: array(p.grad, scale) for name, p in model.named_parameters()}


def weights(model: nn.Module) -> Arrays:
    """Return every parameter."""
    return {name: array(p) for name, p in model.named_parameters()}


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    loss_of: Callable[[nn.Module, Any], Tensor | None],
    *,
    window: int = 1,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    clip: Callable[[list[nn.Parameter]], Any] | None = None,
) -> list[Step]:
    """Train, and say what happened in each step.

    Args:
        model: What to train.
        optimizer: Its optimizer.
        batches: What to train on; their number need not be a multiple of the window.
        loss_of: Returns the loss of a batch, or ``None`` to leave it out.
        window: Batches to accumulate; each loss counts by ``1 / window``, as Lightning divides it.
        autocast: The type of the forward pass.
        scaler: Scales the loss, and skips steps that overflow.
        clip: Changes the gradients in place before the step.
    """
    steps, losses = [], []
    batches = list(batches)
    for i, batch in enumerate(batches):
        cast = torch.autocast("cpu", autocast, cache_enabled=False) if autocast else contextlib.nullcontext()
        with cast:
            loss = loss_of(model, batch)
        if i % window == 0:
            optimizer.zero_grad()
            losses = []
        if loss is not None:
            losses.append(loss.item())
            (scaler.scale(loss / window) if scaler else loss / window).backward()
        if (i + 1) % window == 0 or i + 1 == len(batches):
            steps.append(_step(model, optimizer, scaler, clip))
            steps[-1].loss = finite_or_inf(float(np.mean(losses))) if losses else np.nan
    return steps


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    clip: Callable[[list[nn.Parameter]], Any] | None,
) -> Step:
    seen = Step(gradients=gradients(model, scaler.get_scale() if scaler else 1.0), before=weights(model))
    if clip is not None:
        if scaler:
            scaler.unscale_(optimizer)
        clip([p for p in model.parameters() if p.grad is not None])
        seen.clipped = gradients(model)
    scale = scaler.get_scale() if scaler else 1.0
    (scaler.step(optimizer) if scaler else optimizer.step())
    if scaler:
        scaler.update()
    # Where a step overflows, the scaler does not call the optimizer; a fused one is called and leaves weights alone.
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    if scaler and scaler.get_scale() < scale and not fused:
        seen.after, seen.clipped = dict.fromkeys(seen.before), None
    else:
        seen.after = weights(model)
    return seen


def statistics(gradient: Array | None, before: Array | None, after: Array | None) -> dict[str, float]:
    """Return the full statistics of one parameter in one step; NaN where there is nothing to measure."""
    out = dict.fromkeys(
        ["grad_norm", "grad_mean", "grad_std", "grad_abs_max", "grad_min", "grad_max", "grad_zero_share"], np.nan
    ) | {"grad_nonfinite": np.nan, "weight_norm": np.nan, "update_norm": np.nan, "update_ratio": np.nan}
    out |= {"update_zero_share": np.nan, "twin_rows": np.nan}
    if gradient is not None and gradient.size:
        finite = gradient[np.isfinite(gradient)]
        out["grad_norm"] = norm(gradient)
        out["grad_zero_share"] = np.mean(gradient == 0)
        out["grad_nonfinite"] = gradient.size - finite.size
        if finite.size:
            out |= {"grad_mean": finite.mean(), "grad_std": finite.std()}
            out |= {"grad_min": finite.min(), "grad_max": finite.max(), "grad_abs_max": np.abs(finite).max()}
    if before is not None:
        out["weight_norm"] = norm(before)
        if after is not None:
            out["update_norm"] = norm(after - before)
            out["update_zero_share"] = np.mean(after - before == 0) if after.size else np.nan
            finite = np.isfinite(out["update_norm"])
            ratio = out["update_norm"] / out["weight_norm"] if out["weight_norm"] else np.nan
            out["update_ratio"] = ratio if finite else np.inf
    return {name: float(value) for name, value in out.items()}


def bit_counts(values: Array) -> Array:
    """Count float32 values by sign, exponent and three bits of mantissa, shape ``[4096]``."""
    bits = values.astype(np.float32).view(np.uint32)
    return np.bincount(bits >> 20, minlength=4096)


def total(arrays: Mapping[str, Array | None]) -> float:
    """Return the norm over all parameters that have one, Inf if it is not finite; NaN if none has."""
    known = [a for a in arrays.values() if a is not None]
    return norm(np.concatenate(known)) if known else np.nan


def finite_or_inf(value: float) -> float:
    """Return Inf for what is known not to be finite; NaN stands for what is not known."""
    return value if np.isfinite(value) else np.inf


def norm(values: Array) -> float:
    """Return the norm, Inf if an element is not finite."""
    return finite_or_inf(float(np.linalg.norm(values)))
