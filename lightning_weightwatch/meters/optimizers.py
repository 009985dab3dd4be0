"""What is asked of an optimizer: what it changes, how fast, and what its step does to gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer


def owned(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters an optimizer changes."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def is_lbfgs(optimizer: Optimizer) -> bool:
    """Whether one step of the optimizer asks for the gradients many times."""
    return any(c.__name__ == "LBFGS" for c in type(optimizer).__mro__)


def leaves_gradients_alone(optimizer: Optimizer) -> bool:
    """Whether the gradients after a step are those that clipping left.

    Torch's own steps do not touch them. Others may: SAM takes them anew beside the weights, centralisation moves them.
    LBFGS takes them at many points.
    """
    step_is_from = getattr(getattr(type(optimizer), "step", None), "__module__", "")
    return step_is_from.startswith("torch.optim") and not is_lbfgs(optimizer)


def learning_rate(optimizers: Iterable[Optimizer]) -> float:
    """Return the largest learning rate of all parameter groups; NaN where none is known without waiting for a device.

    Example:
        >>> import torch
        >>> learning_rate([torch.optim.SGD([torch.zeros(1)], lr=0.1)])
        0.1
    """
    rates = [group.get("lr") for optimizer in optimizers for group in optimizer.param_groups]
    known = [float(rate) for rate in rates if rate is not None and _is_on_host(rate)]
    return max(known, default=math.nan)


def _is_on_host(number: object) -> bool:
    device = getattr(number, "device", None)
    return device is None or device.type == "cpu"
