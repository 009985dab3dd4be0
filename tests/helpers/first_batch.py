"""First batches: made up layer by layer, and sent through plain networks of torch."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weightwatch.audit import audit_init
from lightning_weightwatch.evidence import Initial, Layer, Signal
from lightning_weightwatch.rules import Finding

NAN = float("nan")


def passed(
    spreads: Sequence[float],
    gradients: Sequence[float] | None = None,
    came_in: Sequence[float] | None = None,
    *,
    activation: str = "",
    optimizers: tuple[str, ...] = (),
    **known: Any,
) -> Initial:
    """Return what a batch showed of layers ``0.weight``, ``1.weight``...

    Args:
        spreads: What tells samples apart in each.
        gradients: What came back to each; not measured unless given.
        came_in: What tells samples apart in what each got: what the one before gave, unless told.
        activation: The function behind each but the last.
        optimizers: Their names.
        known: Whatever else is known of the initialisation.
    """
    back = gradients or [NAN] * len(spreads)
    came = came_in or [1.0, *spreads[:-1]]
    last = len(spreads) - 1
    layers = tuple(
        Layer(f"{i}.weight", "linear", 64, 128, spread=s, gradient=g, came_in=c, activation=activation * (i < last))
        for i, (s, g, c) in enumerate(zip(spreads, back, came, strict=True))
    )
    return Initial(known.pop("parameters", []), Signal(layers, optimizers=optimizers), **known)


def plain(
    depth: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    gain: float | None = None,
    *,
    bias: float = 0.0,
    width: int = 64,
    seed: int = 0,
) -> nn.Sequential:
    """Return a network of so many layers; with torch's own weights, unless a gain is given."""
    torch.manual_seed(seed)
    sizes = [width] * depth + [10]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    if gain is not None:
        for layer in layers:
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.constant_(layer.bias, bias)
    return nn.Sequential(*[part for layer in layers for part in (layer, activation())][:-1])


def told(rule: str, model: nn.Module, batch: Tensor | None = None) -> list[Finding]:
    """Return what an audit says of one illness, with a classification of random samples."""
    torch.manual_seed(1)
    x = torch.randn(128, 64) if batch is None else batch
    report = audit_init(model, (x, torch.randint(10, (len(x),))), nn.functional.cross_entropy)
    return [finding for finding in report.findings if finding.rule == rule]
