"""By how much an activation shrinks what passes it, forwards and backwards, and the gain that makes up for it.

A layer whose weights have the variance gain² / fan_in keeps the second moment of its input, if an activation with that
forward gain follows: gain = 1 / sqrt(E f(z)²) with z standard normal. On the way back the derivative takes its place.
``torch.nn.init.calculate_gain`` knows few activations and takes 5/3 for tanh; here the expectation is computed for any.
Torch's own are named in ``activations``.

Source: He et al., Delving Deep into Rectifiers, 2015, equations 10 and 14; Klambauer et al., 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_REACH = 12.0  # standard deviations; beyond it the normal density is below 1e-31
_CELLS = 48_000  # of width 0.0005: the kinks of torch's activations (0, 0.5, 1, 3, 6) lie between two of them


@dataclass(frozen=True)
class Gain:
    """What makes up for an activation.

    Attributes:
        forward: Keeps the second moment of the signal; Inf where the activation passes nothing.
        backward: Keeps the second moment of the gradient.
    """

    forward: float
    backward: float


def gain(activation: Callable[[Floats], Any]) -> Gain:
    """Return the variance-preserving gains of an activation, at an input of mean 0 and variance 1.

    Args:
        activation: Takes an array of float64 and gives one of the same shape, element by element.

    Raises:
        TypeError: If it does not give an array of the shape it was given.

    Example:
        >>> found = gain(lambda z: np.maximum(z, 0.0))
        >>> round(found.forward, 4), round(found.backward, 4)
        (1.4142, 1.4142)
    """
    width = 2 * _REACH / _CELLS
    z = (np.arange(_CELLS) + 0.5) * width - _REACH
    weight = np.exp(-(z**2) / 2)
    weight /= weight.sum()
    # Twice within each cell, so that a jump between two of them is no slope.
    left, middle, right = (_values(activation, z + shift * width) for shift in (-0.25, 0.0, 0.25))
    return Gain(_gain(weight, middle), _gain(weight, (right - left) / (0.5 * width)))


def _gain(weight: Floats, values: Floats) -> float:
    moment = float(np.sum(weight * values**2))
    return moment**-0.5 if moment > 0 else float("inf")


def _values(activation: Callable[[Floats], Any], z: Floats) -> Floats:
    found = activation(z)
    if np.shape(found) != z.shape:
        raise TypeError(f"gain(activation={activation!r}): expected a function of each element. It changes the shape.")
    return np.asarray(found, dtype=np.float64)
