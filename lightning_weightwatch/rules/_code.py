"""The line of code that draws a parameter for what follows it, and the gain that it is drawn with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch.evidence import Initial, Layer, Signal
from lightning_weightwatch.rules._initials import as_code
from lightning_weightwatch.theory import gain

_Array = NDArray[np.floating[Any]]
_RECTIFIERS = {"relu", "relu6", "leaky_relu"}
_NO_ACTIVATIONS = {"", "softmax", "log_softmax"}
# What makes up for the slope at 0, where the second moment would tell more of the mean than of differences.
_GAINS = {"tanh": 5 / 3, "hardtanh": 1.0, "sigmoid": 4.0, "hardsigmoid": 6.0}
_GAINS_IN_WORDS = {"tanh": "5 / 3", "sigmoid": "4", "hardsigmoid": "6"}
_erf = np.vectorize(math.erf, otypes=[float])
_FUNCTIONS: dict[str, Callable[[_Array], Any]] = {
    "gelu": lambda z: z * (1 + _erf(z / math.sqrt(2))) / 2,
    "silu": lambda z: z / (1 + np.exp(-z)),
    "mish": lambda z: z * np.tanh(np.log1p(np.exp(z))),
    "elu": lambda z: np.where(z > 0, z, np.expm1(z)),
    "selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(z)),
    "softplus": lambda z: np.log1p(np.exp(z)),
    "hardswish": lambda z: z * np.clip(z + 3, 0, 6) / 6,
}


@lru_cache
def gain_for(activation: str) -> float:
    """Return the gain of a layer's weights that keeps the size of the signal, if this activation follows.

    Example:
        >>> round(gain_for("relu"), 4), round(gain_for("gelu"), 4), gain_for("")
        (1.4142, 1.5335, 1.0)
    """
    if activation in _RECTIFIERS:
        return math.sqrt(2)
    if activation in _FUNCTIONS:
        return gain(_FUNCTIONS[activation]).forward
    return _GAINS.get(activation, 1.0)


def line(name: str, kind: str, shape: Sequence[int], activation: str) -> str:
    """Return the line of code that initialises a parameter.

    Args:
        name: Its dotted name in the model.
        kind: What it is for.
        shape: Its whole shape.
        activation: The activation function that takes the output of its layer, by torch's name; ``""`` for none.

    Example:
        >>> line("net.0.weight", "linear", (8, 4), "relu")
        'nn.init.kaiming_normal_(model.net[0].weight, nonlinearity="relu")'
        >>> line("conv.weight", "convolution", (8, 4, 3, 3), "silu")
        'nn.init.normal_(model.conv.weight, std=0.28)'
    """
    tensor = as_code(name)
    by_kind = {"bias": "zeros_", "norm": "ones_", "recurrent": "orthogonal_"}
    if kind in by_kind or len(shape) < 2:
        return f"nn.init.{by_kind.get(kind, 'zeros_')}({tensor})"
    if kind == "embedding":
        return f"nn.init.normal_({tensor}, std={shape[1] ** -0.5:.2g})"
    if activation == "leaky_relu":
        return f'nn.init.kaiming_normal_({tensor}, a=0.01, nonlinearity="leaky_relu")'
    if activation in _RECTIFIERS:
        return f'nn.init.kaiming_normal_({tensor}, nonlinearity="relu")'
    if activation in _FUNCTIONS:
        return f"nn.init.normal_({tensor}, std={gain_for(activation) / math.sqrt(math.prod(shape[1:])):.2g})"
    told = f", gain={_GAINS_IN_WORDS[activation]}" if activation in _GAINS_IN_WORDS else ""
    return f"nn.init.xavier_normal_({tensor}{told})"


def line_for(initial: Initial, layer: Layer) -> str:
    """Return the line of code that initialises a layer's matrix for what takes the layer's output."""
    shape = next((v.shape for v in initial if v.name == layer.name), (layer.units, 1))
    return line(layer.name, layer.kind, shape, followed_by(initial.signal or Signal(), layer))


def followed_by(signal: Signal, layer: Layer) -> str:
    """Return the activation function that a layer is to be drawn for.

    Where none was seen behind it, it is the one that follows most layers; there is none where a loss takes the output.

    Example:
        >>> hidden, skipped = Layer("0.weight", activation="gelu"), Layer("1.weight")
        >>> followed_by(Signal((hidden, skipped)), skipped)
        'gelu'
    """
    if layer.feeds_loss:
        return ""
    if layer.activation not in _NO_ACTIVATIONS:
        return layer.activation
    known = [one.activation for one in signal.layers if one.activation not in _NO_ACTIVATIONS]
    return max(known, key=known.count, default="")
