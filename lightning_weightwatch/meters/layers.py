"""What each layer gives in one forward pass, and what comes back to it in the backward pass, on the device.

A layer is a call of a function of torch that multiplies by a weight: ``F.linear``, a convolution, ``matmul``, a
recurrent layer, attention as a whole, an embedding. Its output is measured in place. A hook on that tensor measures its
gradient and is gone with the graph. No activation is kept, nothing is read back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import unserializable_hook

from lightning_weightwatch.evidence import Layer
from lightning_weightwatch.meters.activity import option, readable
from lightning_weightwatch.meters.axes import Axes, axes_of
from lightning_weightwatch.meters.graph import parametrised, shown, sources
from lightning_weightwatch.stats import precise
from lightning_weightwatch.structure import equals_neighbour, fingerprints

_MOST = 1_000  # calls of one pass; a loop over time may make any number
_ELEMENTS = 1 << 17  # of an output, taken as whole samples: their spread changes in its third digit
_PIECE = 1 << 22  # elements that are taken to a wider type at once: of the largest outputs a copy has no place
_ALIKE = 1e-5  # by how much rounding may tell two sums of the same numbers apart, as a share

_CONVOLUTIONS = {f"{way}{n}d" for way in ("conv", "conv_transpose") for n in (1, 2, 3)}
_WEIGHT = {  # which argument the weight is, and its name
    **dict.fromkeys(("linear", "embedding", "embedding_bag", *_CONVOLUTIONS), (1, "weight")),
    "bilinear": (2, "weight"),
    "multi_head_attention_forward": (11, "out_proj_weight"),
}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
_PRODUCTS = {"matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum", "tensordot", "__matmul__", "__rmatmul__"}
_LAYERS = {*_WEIGHT, *_RECURRENT, *_PRODUCTS}
_LOOK_UP = {"embedding", "embedding_bag"}
_FORWARD = ("mean", "square", "spread", "came_in", "nonfinite", "copies")


@dataclass
class _Call:
    """One layer at work: its forward numbers, and the sums of squares that come back to it."""

    name: str
    looks_up: bool
    axes: Axes
    units: int
    samples: int
    elements: int
    numbers: list[Tensor]
    back: list[Tensor] = field(default_factory=list)
    returned: int = 0


class LayerMeter:
    """Measures the layers of one pass; a ``Listener`` tells it of every function that is called.

    Gradients are those of the loss: what is differentiated within the forward pass, as for a penalty, is passed over
    until ``close``.

    Args:
        names: The names of the parameters, by their ``id``.

    Attributes:
        failure: What went wrong, if anything did.
        known: The parameters that took part in a call.

    Example:
        >>> layer = torch.nn.Linear(4, 2, bias=False)
        >>> meter, x = LayerMeter({id(layer.weight): "weight"}), torch.randn(8, 4)
        >>> out = torch.nn.functional.linear(x, layer.weight)
        >>> meter.add(torch.nn.functional.linear, (x, layer.weight), {}, out)
        >>> meter.close()
        >>> out.sum().backward()
        >>> layer, = meter.read(meter.pack().numpy(), {"weight": "linear"})
        >>> layer.name, layer.units, layer.samples, layer.gradient
        ('weight', 2, 8, 1.0)
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.failure: Exception | None = None
        self.known: set[str] = set()
        self._names = names
        self._calls: list[_Call] = []
        self._is_forward = True

    def add(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Take note of a call, if it is a layer's."""
        function = getattr(func, "__name__", "")
        if function not in _LAYERS or len(self._calls) >= _MOST:
            return
        output = result[0] if isinstance(result, tuple) and result else result
        if not readable(output) or not output.is_floating_point() or output.dim() < 2:
            return
        given = list(_tensors([*args, *kwargs.values()]))
        weight = self._weight(function, given, args, kwargs)
        name = "" if weight is None else shown(weight, self._names) or parametrised(weight, self._names)
        incoming = self._incoming(function, given, weight)
        if weight is None or not name or (incoming is None and function not in _LOOK_UP):
            return
        self.known |= {name, *(self._names[id(t)] for t in given if id(t) in self._names)}
        self.known |= set(sources(weight, self._names))
        axes = axes_of(function, args, output.dim(), weight=_place(given, weight), other=_place(given, incoming))
        call = _measured(name, axes, output.detach(), incoming, looks_up=function in _LOOK_UP)
        self._calls.append(call)
        if output.requires_grad:
            output.register_hook(
                unserializable_hook(partial(self._came_back, call))
            )  # saving the output warns of others

    def close(self) -> None:
        """Take what is differentiated from now on for the loss."""
        self._is_forward = False

    def pack(self) -> Tensor:
        """Return all numbers as one tensor, shape ``[n]``, on their device; after the backward pass."""
        values = [number for call in self._calls for number in (*call.numbers, _sum(call))]
        return torch.stack([v.to(values[0]) for v in values]) if values else torch.zeros(0, device="cpu")

    def read(
        self, numbers: NDArray[np.floating[Any]], kinds: Mapping[str, str], *, scale: float = 1.0
    ) -> tuple[Layer, ...]:
        """Return the layers in the order of their first call; several calls of one are taken together.

        A table of words that is the last layer as well has a layer for each.

        Args:
            numbers: What ``pack`` gave, on the host.
            kinds: What each matrix is for.
            scale: The factor that the loss was multiplied by.
        """
        table = numbers.reshape(len(self._calls), len(_FORWARD) + 1).astype(np.float64)
        table[:, -1] /= scale**2
        rows: dict[tuple[str, bool], list[int]] = {}
        for i, call in enumerate(self._calls):
            rows.setdefault((call.name, call.looks_up), []).append(i)
        return tuple(self._layer(own, table, kinds) for own in rows.values())

    def _layer(self, rows: list[int], table: NDArray[np.float64], kinds: Mapping[str, str]) -> Layer:
        calls = [self._calls[i] for i in rows]
        kind = "embedding" if calls[0].looks_up else kinds.get(calls[0].name, "other")
        sizes = np.array([call.elements for call in calls], dtype=np.float64)
        of = dict(zip((*_FORWARD, "back"), table[rows].T, strict=True))
        returned = sum(call.returned for call in calls)
        mean = np.average(of["mean"], weights=sizes)
        return Layer(
            name=calls[0].name,
            kind="linear" if kind == "embedding" and not calls[0].looks_up else kind,
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

    def _weight(
        self, function: str, given: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """Return what was multiplied by; of a product, where any factor may be an activation, a parameter alone."""
        if function in _WEIGHT:
            weight = option(args, kwargs, *_WEIGHT[function], None)
            return weight if isinstance(weight, Tensor) else None
        matrices = [t for t in given[1:] if t.dim() > 1] if function in _RECURRENT else given
        if function in _PRODUCTS:
            matrices = [t for t in given if t.dim() > 1 and shown(t, self._names)]
        return matrices[-1] if matrices else None

    def _incoming(self, function: str, given: Sequence[Tensor], weight: Tensor | None) -> Tensor | None:
        """Return what went in; a product of parameters, as within a parametrisation, is no layer."""
        others = [t for t in given if t is not weight and readable(t) and t.is_floating_point() and t.dim() > 1]
        if function in _PRODUCTS:
            others = [t for t in others if not shown(t, self._names)]
        return others[0] if others and function not in _LOOK_UP else None

    def _came_back(self, call: _Call, gradient: Tensor) -> None:
        """Measure a gradient; the training goes on, whatever happens here."""
        if self.failure is not None or self._is_forward:
            return
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():  # noqa: SLF001 - the public one spares modes
                if readable(gradient):
                    felt = _of_samples(gradient.detach(), call.axes)
                    call.back.append(_totals(felt)[1])
                    call.returned += felt.numel()
        except Exception as error:  # noqa: BLE001 - it is the user's backward pass
            self.failure = error


def _tensors(given: Sequence[Any]) -> Iterator[Tensor]:
    for one in given:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (list, tuple)):
            yield from (part for part in one if isinstance(part, Tensor))


def _place(given: Sequence[Tensor], tensor: Tensor | None) -> int:
    return next((i for i, one in enumerate(given) if one is tensor), -1)


def _measured(name: str, axes: Axes, output: Tensor, incoming: Tensor | None, *, looks_up: bool) -> _Call:
    rows = _samples(output, axes.unit)
    many = rows.shape[1]
    total, squares, nonfinite = _totals(output)
    nan = total.new_full((), torch.nan)
    numbers = [
        total / output.numel(),
        squares / output.numel(),
        _spread(rows, output.numel() // many),
        nan if incoming is None else _spread_of(incoming.detach(), axes.incoming),
        nonfinite,
        _copies(rows) if len(rows) > 1 and rows.shape[1] > 1 else nan,
    ]
    return _Call(name, looks_up, axes, many, output.numel() // many, output.numel(), numbers)


def _totals(tensor: Tensor) -> list[Tensor]:
    """Return the sum, the sum of squares, and how many elements are not finite; squares of float32 leave its range."""
    rows = max(1, _PIECE * len(tensor) // tensor.numel())
    found = []
    for piece in tensor.split(rows):
        wide = piece.to(precise(piece))
        squares = torch.linalg.vector_norm(wide).square()
        found.append(torch.stack([wide.sum(), squares, piece.isfinite().logical_not_().sum().to(wide.dtype)]))
    return list(torch.stack(found).sum(0))


def _samples(tensor: Tensor, unit: int) -> Tensor:
    """Return some samples as rows, shape ``[samples, units]``, taken evenly."""
    step = max(1, min(tensor.numel() // (4 * _ELEMENTS), len(tensor) // 2)) if unit != 0 else 1
    last = tensor[::step].movedim(unit, -1)
    flat = last.reshape(-1, last.shape[-1])
    every = -(-flat.numel() // max(_ELEMENTS, 2 * flat.shape[1]))
    while math.gcd(every, len(flat)) > 1:  # or it would keep to some columns of an image, or words of a sentence
        every += 1
    return flat[::every].to(precise(flat))


def _spread(rows: Tensor, many: int) -> Tensor:
    """Return the root mean square, over units, of a unit's standard deviation over the samples.

    Args:
        rows: Some of the samples.
        many: How many there are: the fewer are looked at, the less they spread around their own mean.
    """
    if len(rows) < 2:
        return rows.new_full((), torch.nan)
    return (rows.var(dim=0).mean() * (1 - 1 / many)).sqrt()


def _spread_of(incoming: Tensor, unit: int) -> Tensor:
    rows = _samples(incoming, unit % incoming.dim())
    return _spread(rows, incoming.numel() // rows.shape[1])


def _copies(rows: Tensor) -> Tensor:
    """Return the share of units (columns) that equal another one; units that are zero throughout are none.

    Equal ones are neighbours in the order of their prints, but neighbours need not be equal: of very many, some prints
    meet by chance.
    """
    units = rows.T[fingerprints(rows.T).argsort()]
    largest = units.abs().amax(dim=1)
    apart = (units[1:] - units[:-1]).abs().amax(dim=1)
    return equals_neighbour((apart <= _ALIKE * largest[1:]) & (largest[1:] > 0)).to(rows.dtype).mean()


def _of_samples(gradient: Tensor, axes: Axes) -> Tensor:
    """Add up over the places of each sample, as for the gradient of a bias.

    A mean over places, as before a classifier, gives each of them its share: of more places, smaller ones.
    """
    places = [d for d in range(gradient.dim()) if d not in (axes.unit, axes.sample)]
    return gradient.sum(dim=places, dtype=torch.promote_types(gradient.dtype, torch.float32)) if places else gradient


def _sum(call: _Call) -> Tensor:
    return torch.stack(call.back).sum() if call.back else call.numbers[0].new_zeros(())
