"""What one forward pass of the training does: its activation functions, its loss functions, what the batch brought.

A ``TorchFunctionMode`` sees every function of torch that is called while it is entered, also those that are called
without a module, such as ``F.relu`` and ``F.cross_entropy``, which hooks of modules never see. It calls them unchanged,
measures what they gave in place, on the device, and keeps no activation. Nothing is read back: all numbers travel in
one tensor, and ``read`` turns them into readings.

It is not entered where modules are compiled: their guards know which modes are entered, and would recompile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own short name
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

from lightning_weightwatch.evidence import Activation, InputScale, Listened, LossCall
from lightning_weightwatch.meters.activity import largest, option, readable, some, spread, unit_of
from lightning_weightwatch.meters.batch import float_tensors, input_numbers
from lightning_weightwatch.meters.graph import clamped, fed_by, producer, softmax_units
from lightning_weightwatch.meters.layers import LayerMeter
from lightning_weightwatch.meters.targets import Targets

_ONE_SIDED = {"relu", "relu6"}
_TWO_SIDED: dict[str, tuple[float, float]] = {  # the ends of the range where the slope is small
    "tanh": (-0.97, 0.97),
    "sigmoid": (0.03, 0.97),
    "hardsigmoid": (0.0, 1.0),
}
_OTHER = {"hardtanh", "softmax", "log_softmax", "gelu", "silu", "elu", "selu", "leaky_relu", "softplus", "mish"}
_ACTIVATIONS = {*_ONE_SIDED, *_TWO_SIDED, *_OTHER, "hardswish"}
_LOSSES = {
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
}
_NOTHING = torch.zeros(0, device="cpu")
_MOST = 500  # calls of one pass; a loop over time may make any number


def _functions(names: set[str]) -> dict[Any, str]:
    """Return every way in which torch offers a function, with its name."""
    homes = (F, torch, torch.special, Tensor)
    ways = {getattr(home, way, None): name for name in names for home in homes for way in (name, f"{name}_")}
    return {way: name for way, name in ways.items() if callable(way)}


_NAMES = {
    **_functions(_ACTIVATIONS | _LOSSES),
    torch.special.expit: "sigmoid",
    F.dropout: "dropout",
    Tensor.backward: "backward",
}


@dataclass
class _Heard:
    """One call: what is known of it, and its numbers by name."""

    make: Callable[..., Any]
    known: dict[str, Any]
    names: list[str]
    values: list[Tensor]


class Listener(TorchFunctionMode):
    """Listens while it is entered, until the first backward pass or ``close``.

    Only what can be differentiated is heard, and so neither metrics nor other networks. Where somebody else notes or
    replaces operations (selective checkpointing, tracing, ``torch.func``), it keeps quiet.

    Args:
        step: The step.
        names: The parameters' names, by their ``id``.
        batch: What the batch brought; ``close`` lets go of it.
        targets: What is known of the targets of earlier passes.
        layers: Is told of every function that is called, if it is given.

    Example:
        >>> layer = torch.nn.Linear(4, 2)
        >>> listener = Listener(0, {id(layer.weight): "weight"}, None, Targets())
        >>> with listener:
        ...     _ = torch.relu(layer(torch.ones(3, 4)))
        >>> listener.close()
        >>> [(a.function, a.after, a.units) for a in listener.read(listener.numbers.numpy()).activations]
        [('relu', 'weight', 2)]
    """

    def __init__(
        self, step: int, names: Mapping[int, str], batch: Any, targets: Targets, layers: LayerMeter | None = None
    ) -> None:
        super().__init__()
        self.step = step
        self.failure: Exception | None = None
        self.is_closed = False
        self.numbers = _NOTHING
        self._names, self._targets, self._layers = names, targets, layers
        self._batch: list[tuple[str, Tensor]] = self._quietly(float_tensors, batch) or []
        self._heard: list[_Heard] = []
        self._dropout: list[float] = []
        self._observers = 0
        self._is_deaf = False

    def __enter__(self) -> Listener:
        """Begin to listen, from below all modes of the user's: those end in their own order, whenever they like."""
        self._observers = _observers()
        modes = _taken_off()
        if modes and _is_default_device(modes[-1]):
            _put_on(modes.pop())
        _put_on(self, *reversed(modes))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._turn_deaf()
        self.remove()

    def remove(self) -> bool:
        """Take it from among the modes, wherever it is; say whether it was there.

        While a function of another mode runs, that mode and all above it are out of reach.
        """
        modes = _taken_off()
        _put_on(*(mode for mode in reversed(modes) if mode is not self))
        return any(mode is self for mode in modes)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call it unchanged, and measure what it gave."""
        kwargs = kwargs or {}
        hears = not torch.compiler.is_compiling() and self._hears()
        name = _name_of(func) if hears and len(self._heard) < _MOST else ""
        if name == "backward":
            self._turn_deaf()
        subject = args[0] if args else kwargs.get("input")
        std = self._quietly(spread, subject) if name in _ACTIVATIONS else None
        result = func(*args, **kwargs)
        if std is not None:
            self._quietly(self._activation, name, result, std, args, kwargs)
        elif name in _LOSSES:
            self._quietly(self._loss, name, subject, args[1] if len(args) > 1 else kwargs.get("target"), kwargs)
        elif name == "dropout":
            self._quietly(self._drops, args, kwargs)
        if hears and self._layers is not None:
            self._quietly(self._layers.add, func, args, kwargs, result)
        return result

    def close(self) -> None:
        """Measure the batch, let go of it, and keep all ``numbers``, shape ``[n]``, on the device."""
        self.is_closed = True
        self._turn_deaf()
        for name, tensor in self._batch:
            numbers = self._quietly(input_numbers, tensor)
            if numbers is not None:
                known = {"name": name, "features": numbers.features}
                self._heard.append(_Heard(InputScale, known, numbers.names, numbers.values))
        self._batch = []
        self._quietly(self._pack)

    def read(self, numbers: NDArray[np.floating[Any]]) -> Listened:
        """Return what was heard, once its numbers are on the host."""
        made: list[Any] = []
        place = 0
        for heard in self._heard:
            given = {name: float(numbers[place + i]) for i, name in enumerate(heard.names)}
            place += len(heard.names)
            made.append(heard.make(**heard.known, **given))
        losses = tuple(m for m in made if isinstance(m, LossCall))
        activations = _with_feeding([m for m in made if isinstance(m, Activation)], losses)
        inputs = tuple(m for m in made if isinstance(m, InputScale))
        return Listened(self.step, activations, losses, inputs, tuple(self._dropout))

    def _turn_deaf(self) -> None:
        """Hear no more: what follows is the backward pass."""
        self._is_deaf = True
        if self._layers is not None:
            self._layers.close()

    def _hears(self) -> bool:
        """Whether what is called now is to be measured."""
        return not self._is_deaf and torch.is_grad_enabled() and _observers() == self._observers

    def _quietly(self, measure: Callable[..., Any], *arguments: Any) -> Any:
        """Measure, unseen by other modes; an error is kept for whoever asks, and ends the listening."""
        if self.failure is not None:
            return None
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad():  # noqa: SLF001 - the public one spares modes
                return measure(*arguments)
        except Exception as error:  # noqa: BLE001 - the user's forward pass goes on, whatever it is
            self.failure = error
            return None

    def _activation(self, name: str, result: Any, std: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if not readable(result):
            return
        after, shape = producer(result, self._names)
        plain, unit = result.detach(), unit_of(result, shape)
        units = 1 if unit is None else int(plain.shape[unit])
        flat_ends = _TWO_SIDED.get(name)
        if name == "hardtanh":
            low, high = (option(args, kwargs, i, key, end) for i, key, end in ((1, "min_val", -1), (2, "max_val", 1)))
            name, flat_ends = clamped(low, high), (low, high) if low < 0 else None
        numbers = {"std": std}
        if flat_ends is None and name in (*_ONE_SIDED, "hardtanh"):
            numbers["dead"] = (largest(plain, unit) == 0).float().mean()
        elif flat_ends is not None:
            exact = some(plain).float()  # in eight bits 0.97 is another number
            numbers["saturated"] = ((exact <= flat_ends[0]) | (exact >= flat_ends[1])).float().mean()
        known = {"function": name, "after": after, "units": units}
        self._heard.append(_Heard(Activation, known, list(numbers), list(numbers.values())))

    def _loss(self, name: str, output: Any, target: Any, options: Mapping[str, Any]) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        self._batch = [(place, x) for place, x in self._batch if not _is_same(x, target)]
        if not output.requires_grad:  # a metric
            return
        (feeding, node), (after, _) = fed_by(output), producer(output, self._names)
        is_single = feeding == "softmax" and softmax_units(node) == 1
        known = {"function": name, "after": after, "fed_by": feeding, "one_unit": is_single}
        facts, numbers = self._targets.of(name, output, target, options, after)
        self._heard.append(_Heard(LossCall, known | facts, list(numbers), list(numbers.values())))

    def _drops(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if option(args, kwargs, 2, "training", True):
            self._dropout.append(float(option(args, kwargs, 1, "p", 0.5)))

    def _pack(self) -> None:
        values = [value for heard in self._heard for value in heard.values]
        for heard in self._heard:
            heard.values = []
        if values:
            device = next((v.device for v in values if v.device.type != "cpu"), values[0].device)
            self.numbers = torch.stack([v.to(device, torch.float32) for v in values])


def _name_of(func: Callable[..., Any]) -> str:
    """Return what a function is to us; nothing where it is not to be measured."""
    try:
        return _NAMES.get(func, "")
    except Exception:  # noqa: BLE001 - somebody else's function, which may be no key
        return ""


def _observers() -> int:
    """Return how many note or replace the operations of torch now."""
    torch_c = torch._C  # noqa: SLF001 - there is no public way to ask
    others = (torch_c._functorch.peek_interpreter_stack(), torch_c._get_tracing_state())  # noqa: SLF001
    return torch_c._len_torch_dispatch_stack() + sum(other is not None for other in others)  # noqa: SLF001


def _taken_off() -> list[Any]:
    """Take all function modes away and return them, the innermost first."""
    return [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]  # noqa: SLF001


def _put_on(*modes: Any) -> None:
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)  # noqa: SLF001 - as all modes do


def _is_default_device(mode: Any) -> bool:
    """Whether it is the default device: torch looks for it at the very bottom, unlike for that of a ``with``."""
    return isinstance(mode, DeviceContext) and hasattr(mode, "old_device")


def _is_same(one: Tensor, other: Any) -> bool:
    """Whether two tensors hold the same elements, whatever their shapes."""
    return readable(other) and one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _with_feeding(activations: Sequence[Activation], losses: Sequence[LossCall]) -> tuple[Activation, ...]:
    """Mark the last activation of each function whose output a loss takes."""
    out = list(activations)
    for loss in losses:
        same = [i for i, a in enumerate(out) if a.function == loss.fed_by and a.after == loss.after]
        if same:
            out[same[-1]] = replace(out[same[-1]], feeds_loss=True)
    return tuple(out)
