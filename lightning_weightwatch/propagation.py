"""How one batch passes an untrained network, forwards and backwards: listened to, measured, put together.

Whoever lets a batch pass enters ``listener`` for the forward pass, and hands in the gradients of each backward pass.
A matrix of zeros passes no gradient back, but is no fault if it moves in the first step: so where some matrix gets
none, the passes after one step and after two are asked for as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_weightwatch import stats
from lightning_weightwatch.evidence import Activation, Layer, Listened, Signal
from lightning_weightwatch.listening import Listener
from lightning_weightwatch.meters.layers import LayerMeter
from lightning_weightwatch.meters.targets import Targets
from lightning_weightwatch.parameters import Parameter, is_plain, values
from lightning_weightwatch.structure import fingerprints, twins

PASSES = 3  # backward passes after which no matrix that began at zero keeps a gradient from anything
_NO_GRADIENTS = "gradients: there was no backward pass"
_NO_STEP = "gradients of parameters: no step of an optimizer was seen"
_LAYERS = {"linear", "convolution", "recurrent", "attention"}  # kinds that multiply, and so are heard


class Propagation:
    """One batch on its way.

    Args:
        parameters: What is known of the parameters.
        tensors: The tensors by name, as the forward pass uses them.
        batch: What it brings.
        step: The step.

    Example:
        >>> from lightning_weightwatch.parameters import describe
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> passing = Propagation(describe(net), dict(net.named_parameters()), None)
        >>> with passing.listener:
        ...     loss = net(torch.randn(8, 4)).square().mean()
        >>> loss.backward()
        >>> passing.add({name: p.grad for name, p in net.named_parameters()})
        >>> [layer.name for layer in passing.read().layers]
        ['0.weight', '2.weight']
    """

    def __init__(
        self, parameters: Sequence[Parameter], tensors: Mapping[str, Tensor], batch: Any, *, step: int = 0
    ) -> None:
        self._parameters = {p.name: p for p in parameters}
        self._tensors = {name: tensor for name, tensor in tensors.items() if name in self._parameters}
        names = {id(tensor): name for name, tensor in self._tensors.items()}
        self._layers = LayerMeter(names)
        self.listener = Listener(step, names, batch, Targets(), self._layers)
        self._gradients: list[dict[str, float]] = []
        self._twins: dict[str, float] = {}
        self.loss = math.nan
        self.not_measured: set[str] = set()

    @property
    def failure(self) -> Exception | None:
        """What went wrong in listening, if anything did."""
        return self.listener.failure or self._layers.failure

    @property
    def wants_more(self) -> bool:
        """Whether some trained matrix got no gradient in any pass so far, and it is too early to say so."""
        passes = self._gradients
        return 0 < len(passes) < PASSES and any(
            all(one.get(name, 0.0) == 0 for one in passes)
            for name, p in self._parameters.items()
            if p.is_matrix and p.trainable and any(name in one for one in passes)
        )

    @property
    def has_overflowed(self) -> bool:
        """Whether a gradient of the last pass is not finite."""
        return bool(self._gradients) and not all(map(math.isfinite, self._gradients[-1].values()))

    def add(self, gradients: Mapping[str, Tensor | None], *, scale: float = 1.0, anew: bool = True) -> None:
        """Take note of a backward pass; this waits for the device.

        Args:
            gradients: By parameter; those that got none may be left out.
            scale: The factor still in them.
            anew: It is another pass than the last one, not further gradients of that; of each parameter the first
                counts, as a search along a line differentiates again and again within one step.
        """
        known = {n: g for n, g in gradients.items() if g is not None and n in self._parameters and _can_be_read(g)}
        plain = {name: values(g) for name, g in known.items()}
        squares = stats.measure(["norm"], list(plain.values()))["norm/sum_sq"].tolist()
        sizes = [g.numel() for g in known.values()]  # of a sparse one more than it stores
        found = [math.sqrt(square / size) / scale for square, size in zip(squares, sizes, strict=True)]
        if anew or not self._gradients:
            self._gradients.append({})
        if len(self._gradients) == 1:
            self._twins = self._counted(plain) | self._twins
        self._gradients[-1] = dict(zip(plain, found, strict=True)) | self._gradients[-1]

    def read(self, *, optimizers: Sequence[str] = (), scale: float = 1.0) -> Signal:
        """Put together what is known; this waits for the device.

        Args:
            optimizers: The names of the optimizers' classes.
            scale: The factor that the loss was multiplied by.
        """
        self.listener.close()
        if self.failure is not None:
            failure = f"{type(self.failure).__name__}: {self.failure}"
            return Signal(not_measured=(f"how a batch passes: listening failed ({failure})",))
        heard = self.listener.read(self.listener.numbers.cpu().numpy())
        kinds = {name: p.kind for name, p in self._parameters.items()}
        layers = self._layers.read(self._layers.pack().cpu().numpy(), kinds, scale=scale)
        names = {name for one in self._gradients for name in one}
        return Signal(
            layers=_with_activations(layers, heard),
            gradients={n: tuple(one.get(n, 0.0) for one in self._gradients) for n in self._parameters if n in names},
            twins=self._twins,
            loss=self.loss,
            losses=heard.losses,
            inputs=heard.inputs,
            optimizers=tuple(optimizers),
            not_measured=tuple(sorted({*self.not_measured, *self._missing(layers)})),
        )

    def _missing(self, layers: Sequence[Layer]) -> Iterator[str]:
        """Say what was not measured, as far as it shows here."""
        if not self._gradients:
            yield _NO_STEP if any(math.isfinite(layer.gradient) for layer in layers) else _NO_GRADIENTS
        felt = {name for one in self._gradients for name, size in one.items() if size != 0}
        multiply = [n for n, p in self._parameters.items() if p.is_matrix and p.kind in _LAYERS]
        unheard = [n for n in multiply if n in felt - self._layers.known]
        if unheard:
            others = f" and {len(unheard) - 3} more" if len(unheard) > 3 else ""
            yield f"what layers give that got a gradient and were not heard: {', '.join(unheard[:3])}{others}"

    def _counted(self, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the share of rows of each matrix that equal another one in weight and in gradient."""
        pairs = {n: (values(self._tensors[n]), g) for n, g in gradients.items() if self._parameters[n].is_matrix}
        both = {n: (w.detach(), g) for n, (w, g) in pairs.items() if w.shape == g.shape and len(w) > 1}
        counts = [twins(fingerprints(w), fingerprints(g)) / len(w) for w, g in both.values()]
        return dict(zip(both, torch.stack(counts).tolist(), strict=True)) if counts else {}


def _can_be_read(gradient: Tensor) -> bool:
    """Whether it is there as a whole; of a distributed one, a number would be a collective."""
    is_other = type(gradient) is Tensor and (gradient.is_sparse or gradient.is_complex())
    return gradient.numel() > 0 and (is_plain(gradient) or is_other)


def _with_activations(layers: Sequence[Layer], heard: Listened) -> tuple[Layer, ...]:
    """Tell each layer the first activation function that took its output, and whether a loss did."""
    first: dict[str, Activation] = {}
    for activation in heard.activations:
        first.setdefault(activation.after, activation)
    feeding = {loss.after for loss in heard.losses}
    return tuple(_with(layer, first.get(layer.name), feeds=layer.name in feeding) for layer in layers)


def _with(layer: Layer, after: Activation | None, *, feeds: bool) -> Layer:
    if after is None:
        return replace(layer, feeds_loss=feeds)
    told = replace(layer, activation=after.function, dead=after.dead, saturated=after.saturated)
    return replace(told, feeds_loss=feeds or after.feeds_loss)
