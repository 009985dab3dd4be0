"""What is known of a network before it has learnt anything: its parameters, and what one batch showed of its signal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lightning_weightwatch.evidence._readings import InputScale, LossCall

_ADAPTIVE = ("adam", "lion", "adafactor", "rmsprop", "adagrad", "adadelta", "lamb", "shampoo", "soap", "muon", "sophia")
_FEWEST = 4  # layers through which a line is worth drawing


class Verdict(Protocol):
    """What is asked of a ``ParameterVerdict``."""

    @property
    def name(self) -> str:
        """The parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its whole shape."""

    @property
    def kind(self) -> str:
        """What it is for."""

    @property
    def scheme(self) -> str:
        """How it was initialised, by name."""

    @property
    def std(self) -> float | None:
        """Its standard deviation, or ``None`` where it was not measured."""

    @property
    def mean(self) -> float | None:
        """Its mean, or ``None`` where it was not measured."""

    @property
    def trainable(self) -> bool:
        """Whether it asks for a gradient."""

    @property
    def constant(self) -> float | None:
        """The value of all its elements, if they are the same."""

    @property
    def nonfinite(self) -> int:
        """How many of its elements are NaN or Inf."""

    @property
    def tied(self) -> tuple[str, ...]:
        """Its further names."""

    @property
    def content(self) -> str:
        """The same for two tensors of one shape that hold the same elements; ``""`` where it was not taken."""

    @property
    def abs_max(self) -> float | None:
        """Its largest magnitude, or ``None`` where it was not measured."""

    @property
    def unmeasurable(self) -> str:
        """Why its values cannot be read; ``""`` where they can."""


@dataclass(frozen=True)
class Layer:
    """What one layer gave in the first forward pass, and what came back to it, in one process's batch.

    Numbers are NaN where they were not measured. Units are the channels of a convolution, else the last dimension; all
    other dimensions (samples, places, tokens) count as samples.

    Attributes:
        name: Its matrix.
        kind: What the matrix is for, as ``parameters.Kind``.
        units: How many units its output has.
        samples: How many samples each of them was seen at.
        mean: The mean of its output, before any activation.
        rms: The root mean square of its output.
        spread: What tells samples apart in it: the root mean square, over units, of a unit's standard deviation over
            the samples. A bias adds to ``rms`` and not to this.
        came_in: The same ``spread`` of what went in.
        nonfinite: How many elements of the output are NaN or Inf.
        copies: The share of units whose output equals that of another unit for every sample.
        gradient: The root mean square, over samples and units, of the gradient of the loss by its output, which is
            added up over the places of a sample.
        activation: The activation function that takes its output, by torch's name; ``""`` for none.
        dead: The share of units that this gave zero of for every sample (functions that are zero on one side).
        saturated: The share of elements at the flat ends of this function.
        feeds_loss: Whether a loss takes its output, through an activation or not.
    """

    name: str
    kind: str = "linear"
    units: int = 1
    samples: int = 0
    mean: float = float("nan")
    rms: float = float("nan")
    spread: float = float("nan")
    came_in: float = float("nan")
    nonfinite: float = 0.0
    copies: float = float("nan")
    gradient: float = float("nan")
    activation: str = ""
    dead: float = float("nan")
    saturated: float = float("nan")
    feeds_loss: bool = False


@dataclass(frozen=True)
class Signal:
    """How one batch passed an untrained network, forwards and backwards.

    Attributes:
        layers: In the order in which they were executed.
        gradients: For each parameter the root mean square of its gradient, in the first backward pass and, where some
            matrix got none, in those after one step and two.
        twins: For each matrix the share of rows that equal another one in weight and in gradient.
        loss: The loss; NaN without one.
        losses: The loss functions of torch that were called.
        inputs: What the batch brought.
        optimizers: The names of the optimizers' classes; empty where they are unknown.
        not_measured: What was not done, and why.
    """

    layers: tuple[Layer, ...] = ()
    gradients: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    twins: Mapping[str, float] = field(default_factory=dict)
    loss: float = float("nan")
    losses: tuple[LossCall, ...] = ()
    inputs: tuple[InputScale, ...] = ()
    optimizers: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()

    @property
    def forward_decades(self) -> float:
        """By how many powers of ten the spread changes from the first layer to the last, along a straight line.

        NaN with fewer than four layers. Embeddings are left out, and layers that give nothing but zero, or break.

        Example:
            >>> fading = Signal(tuple(Layer(f"{i}.weight", spread=10.0**-i) for i in range(4)))
            >>> round(fading.forward_decades, 6)
            -3.0
        """
        return _decades([layer.spread for layer in self.layers if layer.kind != "embedding"])

    @property
    def backward_decades(self) -> float:
        """By how many powers of ten the gradient changes on its way back from the last layer to the first."""
        return -_decades([layer.gradient for layer in self.layers if layer.kind != "embedding"])

    @property
    def expected_loss(self) -> float:
        """What a network that knows nothing of its input is expected to begin with; NaN where nobody knows.

        The logarithm of the number of classes; for a squared error the variance of the targets, which is the loss of
        their mean.

        Example:
            >>> round(Signal(losses=(LossCall("cross_entropy", classes=10),)).expected_loss, 4)
            2.3026
        """
        call = self.losses[0] if len(self.losses) == 1 else None
        if call is None:
            return float("nan")
        return float(np.log(max(call.classes, 2))) if call.classes else call.chance

    @property
    def is_adaptive(self) -> bool:
        """Whether all optimizers divide a gradient by its own size, so that small ones move weights as large ones do.

        Not where optimizers are unknown.
        """
        return bool(self.optimizers) and all(any(a in o.lower() for a in _ADAPTIVE) for o in self.optimizers)


@dataclass(frozen=True)
class Initial:
    """What an initialisation is judged by.

    Attributes:
        parameters: What was said of each parameter, in order of registration.
        signal: How one batch passed; ``None`` where none was sent.
        resumed: A checkpoint was loaded: nothing is said of schemes and scales.
        pretrained: Most matrices are of no known scheme: they were trained, or drawn in a way of the model's own.
        declared_ties: Pairs of names that the model says are one tensor, and are two.

    Example:
        >>> len(Initial([]))
        0
    """

    parameters: Sequence[Verdict]
    signal: Signal | None = None
    resumed: bool = False
    pretrained: bool = False
    declared_ties: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        """Return how many parameters there are."""
        return len(self.parameters)

    def __iter__(self) -> Iterator[Verdict]:
        """Go through the parameters."""
        return iter(self.parameters)

    @property
    def is_drawn(self) -> bool:
        """Whether the weights may come from an initialisation: no checkpoint was loaded, as far as is known."""
        return not self.resumed


def _decades(sizes: Sequence[float]) -> float:
    known = np.array([size for size in sizes if np.isfinite(size) and size > 0])
    if len(known) < _FEWEST:
        return float("nan")
    return float(np.polyfit(np.linspace(0.0, 1.0, len(known)), np.log10(known), 1)[0])
