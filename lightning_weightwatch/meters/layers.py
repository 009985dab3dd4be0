"""What each layer gives in one forward pass, and what comes back to it in the backward pass, on the device.

A layer is a call of a function of torch that multiplies by a weight: ``F.linear``, a convolution, ``matmul``, a
recurrent layer, attention as a whole, an embedding. Its output is measured in place. A hook on that tensor measures its
gradient and is gone with the graph. No activation is kept, nothing is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_weightwatch.evidence import Layer
from lightning_weightwatch.meters.activity import readable, unit_of
from lightning_weightwatch.meters.graph import producer
from lightning_weightwatch.structure import equals_neighbour, fingerprints, is_near

_MOST = 1_000  # calls of one pass; a loop over time may make any number
_ELEMENTS = 1 << 18  # of an output, taken as whole samples: their spread changes in its third digit
_ALIKE = 1e-5  # by how much rounding may tell two sums of the same numbers apart, as a share

_MULTIPLY = {
    *("linear", "bilinear", "matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum", "tensordot"),
    *(f"conv{n}d" for n in (1, 2, 3)),
    *(f"conv_transpose{n}d" for n in (1, 2, 3)),
    *("__matmul__", "__rmatmul__", "multi_head_attention_forward", "embedding", "embedding_bag"),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
}
_FORWARD = ("mean", "square", "spread", "came_in", "nonfinite", "copies")


@dataclass
class _Call:
    """One layer at work: its forward numbers, and the sums of squares that come back to it."""

    name: str
    unit: int | None
    units: int
    samples: int
    elements: int
    numbers: list[Tensor]
    back: list[Tensor] = field(default_factory=list)
    returned: int = 0


class LayerMeter:
    """Measures the layers of one pass; a ``Listener`` tells it of every function that is called.

    Args:
        names: The names of the parameters, by their ``id``.

    Example:
        >>> layer = torch.nn.Linear(4, 2, bias=False)
        >>> meter, x = LayerMeter({id(layer.weight): "weight"}), torch.randn(8, 4)
        >>> out = torch.nn.functional.linear(x, layer.weight)
        >>> meter.add(torch.nn.functional.linear, (x, layer.weight), {}, out)
        >>> out.sum().backward()
        >>> layer, = meter.read(meter.pack().numpy(), {"weight": "linear"})
        >>> layer.name, layer.units, layer.samples, layer.gradient
        ('weight', 2, 8, 1.0)
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.failure: Exception | None = None
        self._names = names
        self._calls: list[_Call] = []

    def add(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Take note of a call, if it is a layer's."""
        if getattr(func, "__name__", "") not in _MULTIPLY or len(self._calls) >= _MOST:
            return
        output = result[0] if isinstance(result, tuple) and result else result
        if not readable(output) or not output.is_floating_point() or output.dim() < 2:
            return
        given = list(_tensors([*args, *kwargs.values()]))
        name, shape = self._weight(given, output)
        if name:
            incoming = next((t for t in given if id(t) not in self._names and _has_samples(t)), None)
            call = _measured(name, output.detach(), incoming, shape)
            self._calls.append(call)
            if output.requires_grad:
                output.register_hook(partial(self._came_back, call))

    def pack(self) -> Tensor:
        """Return all numbers as one tensor, shape ``[n]``, on their device; after the backward pass."""
        values = [number for call in self._calls for number in (*call.numbers, _sum(call))]
        return torch.stack([v.to(values[0].device, torch.float32) for v in values]) if values else torch.zeros(0)

    def read(
        self, numbers: NDArray[np.floating[Any]], kinds: Mapping[str, str], *, scale: float = 1.0
    ) -> tuple[Layer, ...]:
        """Return the layers in the order of their first call; several calls of one are taken together.

        Args:
            numbers: What ``pack`` gave, on the host.
            kinds: What each matrix is for.
            scale: The factor that the loss was multiplied by.
        """
        table = numbers.reshape(len(self._calls), len(_FORWARD) + 1).astype(np.float64)
        table[:, -1] /= scale**2
        rows: dict[str, list[int]] = {}
        for i, call in enumerate(self._calls):
            rows.setdefault(call.name, []).append(i)
        return tuple(self._layer(name, own, table, kinds.get(name, "other")) for name, own in rows.items())

    def _layer(self, name: str, rows: list[int], table: NDArray[np.float64], kind: str) -> Layer:
        calls = [self._calls[i] for i in rows]
        sizes = np.array([call.elements for call in calls], dtype=np.float64)
        of = dict(zip((*_FORWARD, "back"), table[rows].T, strict=True))
        returned = sum(call.returned for call in calls)
        mean = np.average(of["mean"], weights=sizes)
        return Layer(
            name=name,
            kind=kind,
            units=calls[0].units,
            samples=sum(call.samples for call in calls),
            mean=float(mean),
            rms=float(np.sqrt(np.average(of["square"], weights=sizes))),
            spread=float(np.sqrt(np.average(of["spread"] ** 2, weights=sizes))),
            came_in=float(np.sqrt(np.average(of["came_in"] ** 2, weights=sizes))),
            nonfinite=float(of["nonfinite"].sum()),
            copies=float(of["copies"].min()),
            gradient=float(np.sqrt(of["back"].sum() / returned)) if returned else float("nan"),
        )

    def _weight(self, given: Sequence[Tensor], output: Tensor) -> tuple[str, tuple[int, ...]]:
        """Return the matrix that was multiplied by: the last that was given; else the one behind a parametrisation."""
        own = [t for t in given if id(t) in self._names and t.dim() > 1]
        if own:
            return self._names[id(own[-1])], tuple(own[-1].shape)
        weights = [t for t in given[1:] if t.requires_grad and t.grad_fn is not None and t.dim() > 1]
        return producer(weights[0], self._names) if weights else ("", ())

    def _came_back(self, call: _Call, gradient: Tensor) -> None:
        """Measure a gradient; the training goes on, whatever happens here."""
        if self.failure is not None:
            return
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():  # noqa: SLF001 - the public one spares modes
                if readable(gradient):
                    felt = _of_samples(gradient.detach(), call.unit)
                    call.back.append(torch.linalg.vector_norm(felt).square())
                    call.returned += felt.numel()
        except Exception as error:  # noqa: BLE001 - it is the user's backward pass
            self.failure = error


def _tensors(given: Sequence[Any]) -> Iterator[Tensor]:
    for one in given:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (list, tuple)):
            yield from (part for part in one if isinstance(part, Tensor))


def _has_samples(tensor: Tensor) -> bool:
    return readable(tensor) and tensor.is_floating_point() and tensor.dim() > 1


def _measured(name: str, output: Tensor, incoming: Tensor | None, shape: tuple[int, ...]) -> _Call:
    units = unit_of(output, shape)
    rows = _samples(output, units)
    norm = torch.linalg.vector_norm(output, dtype=_wide(output))
    nan = norm.new_full((), torch.nan)
    numbers = [
        output.mean(dtype=_wide(output)),
        norm.square() / output.numel(),
        _spread(rows) if len(rows) > 1 else nan,
        nan if incoming is None else _spread_of(incoming, shape),
        output.isfinite().logical_not_().sum(),
        _copies(rows) if len(rows) > 1 and rows.shape[1] > 1 else nan,
    ]
    many = rows.shape[1]
    return _Call(name, units, many, output.numel() // many, output.numel(), numbers)


def _samples(tensor: Tensor, unit: int | None) -> Tensor:
    """Return some samples as rows, shape ``[samples, units]``, taken evenly."""
    if unit is None:
        return tensor.reshape(-1, 1)[:_ELEMENTS].float()
    step = max(1, min(tensor.numel() // (4 * _ELEMENTS), len(tensor) // 2)) if unit != 0 else 1
    last = tensor[::step].movedim(unit, -1)
    flat = last.reshape(-1, last.shape[-1])
    return flat[:: -(-flat.numel() // max(_ELEMENTS, 2 * flat.shape[1]))].float()


def _spread(rows: Tensor) -> Tensor:
    """Return the root mean square, over units, of a unit's standard deviation over the samples."""
    return rows.var(dim=0, correction=0).mean().sqrt()


def _spread_of(incoming: Tensor, shape: tuple[int, ...]) -> Tensor:
    plain = incoming.detach()
    is_image = len(shape) > 2 and plain.dim() == len(shape)
    rows = _samples(plain, 1 if is_image else plain.dim() - 1)
    return _spread(rows) if len(rows) > 1 else rows.new_full((), torch.nan)


def _copies(rows: Tensor) -> Tensor:
    """Return the share of units (columns) that equal another one; units that are zero throughout are none."""
    prints = fingerprints(rows.T).sort().values
    return equals_neighbour(is_near(prints[1:], prints[:-1], _ALIKE) & (prints[1:] != 0)).float().mean()


def _of_samples(gradient: Tensor, unit: int | None) -> Tensor:
    """Add up over the places of each sample, as for the gradient of a bias.

    A mean over places, as before a classifier, gives each of them its share: of more places, smaller ones.
    """
    places = [d for d in range(1, gradient.dim()) if d != unit]
    wide = gradient.to(_wide(gradient))
    return wide.sum(dim=places) if places and unit not in (0, None) else wide


def _sum(call: _Call) -> Tensor:
    return torch.stack(call.back).sum() if call.back else call.numbers[0].new_zeros(())


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
