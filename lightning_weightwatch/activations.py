"""Torch's activations and their gains, computed from the functions themselves.

What a gain is lies in ``theory.gains``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_weightwatch.theory import Gain, gain

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Softsign,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Tanhshrink,
    nn.Identity,
)
"""Those of torch that work on each element alone and need no argument."""


def gain_of_function(activation: Callable[[Tensor], Any]) -> Gain:
    """Return the gains of a function of torch, or of a module, which is asked in evaluation mode and not changed.

    Raises:
        TypeError: If it does not work on each element alone.

    Example:
        >>> round(gain_of_function(torch.nn.functional.gelu).forward, 4)
        1.5335
    """

    def on_arrays(z: NDArray[np.floating[Any]]) -> Any:
        with torch.no_grad():
            found = _called(activation, torch.from_numpy(z))
        return found.numpy() if isinstance(found, Tensor) else found

    return gain(on_arrays)


@lru_cache
def gain_of(name: str) -> Gain | None:
    """Return the gains of an activation of torch by the name of its class or function, or ``None``.

    Example:
        >>> gain_of("gelu") == gain_of("GELU"), gain_of("Conv2d")
        (True, None)
    """
    wanted = name.replace("_", "").lower()
    found = next((kind for kind in ACTIVATIONS if kind.__name__.lower() == wanted), None)
    return None if found is None else gain_of_function(found())


def _called(activation: Callable[[Tensor], Any], z: Tensor) -> Any:
    if not isinstance(activation, nn.Module):
        return activation(z)
    modes = [(part, part.training) for part in activation.modules()]
    doubles = {name: p.detach().double() for name, p in activation.named_parameters()}
    try:
        return torch.func.functional_call(activation.eval(), doubles, (z,))
    finally:
        for part, was_training in modes:
            part.training = was_training
