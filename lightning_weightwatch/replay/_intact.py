"""How a model that computes something on the side is left as it was: weights, buffers, gradients, random streams.

A step changes more than weights: batch norm its statistics, a metric its sums, a list of outputs its length. All that
is reachable from the modules is remembered, on the host so that the device does not run out of memory, and put back.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

_MANY = 1000  # a container of more items is put back, but not looked into: it is data rather than state
_THEIRS = {"torch", "lightning", "pytorch_lightning", "builtins"}


@dataclass(frozen=True)
class RandomStates:
    """Where the global random streams stand: ``random``, NumPy, torch on the CPU and on other devices.

    Example:
        >>> then = RandomStates.now()
        >>> first = torch.rand(1)
        >>> then.restore()
        >>> bool(torch.rand(1) == first)
        True
    """

    python: Any
    array: Any
    cpu: Tensor
    others: tuple[tuple[torch.device, Tensor], ...] = ()

    @classmethod
    def now(cls, devices: frozenset[torch.device] = frozenset()) -> RandomStates:
        """Note the states; no device is waited for."""
        others = tuple((d, torch.get_device_module(d).get_rng_state(*_which(d))) for d in devices)
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), others)

    def restore(self) -> None:
        """Put all streams back to where they stood."""
        random.setstate(self.python)
        np.random.set_state(self.array)
        torch.set_rng_state(self.cpu)
        for device, state in self.others:
            torch.get_device_module(device).set_rng_state(state, *_which(device))


def accelerators(module: nn.Module) -> frozenset[torch.device]:
    """Return the devices, apart from the CPU, that a module has numbers on."""
    held = [*module.parameters(), *module.buffers()]
    return frozenset(t.device for t in held if t.device.type not in ("cpu", "meta"))


@contextmanager
def random_streams_kept(module: nn.Module) -> Iterator[None]:
    """Put every random stream that a forward pass may draw from back to where it was."""
    states = RandomStates.now(accelerators(module))
    try:
        yield
    finally:
        states.restore()


@contextmanager
def swapped(owner: Any, **wanted: Any) -> Iterator[None]:
    """Give an object other attributes for a while.

    Example:
        >>> import math
        >>> with swapped(math, tau=6):
        ...     math.tau
        6
        >>> round(math.tau, 2)
        6.28
    """
    before = {name: vars(owner)[name] for name in wanted if name in vars(owner)}
    try:
        for name, value in wanted.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in wanted:
            if name in before:
                setattr(owner, name, before[name])
            elif name in vars(owner):
                delattr(owner, name)


def remember(module: nn.Module, undo: ExitStack) -> None:
    """Arrange that everything a step can change in a module is put back when ``undo`` closes.

    Gradients are taken off, so that the step finds none and cannot write into them. Objects of the user's own that a
    module has as attributes, such as running averages, are put back as well, but not what they hold deeper down.
    """
    _Memory(undo, _own(module)).visit(module)


def remember_the_rest(module: nn.Module, undo: ExitStack) -> None:
    """Arrange the same for whatever else than parameters and buffers a module holds."""
    _Memory(undo, _own(module), without=[*module.parameters(), *module.buffers()]).visit(module)


def _own(module: nn.Module) -> frozenset[str]:
    """Return the packages whose objects are looked into."""
    return frozenset(_home(m) for m in module.modules()) - _THEIRS


class _Memory:
    def __init__(self, undo: ExitStack, own: frozenset[str], *, without: Sequence[Tensor] = ()) -> None:
        self._undo = undo
        self._own = own
        self._seen: dict[int, Any] = {id(t): t for t in without}  # held, so that no other thing gets the id

    def visit(self, value: Any, *, objects: bool = True) -> None:
        """Remember a value and what it holds."""
        if id(value) in self._seen or isinstance(value, (str, int, float, type(None))):
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self._container(vars(value), objects=True)
            for part in (*value.parameters(recurse=False), *value.buffers(recurse=False), *value.children()):
                self.visit(part)
        elif isinstance(value, (dict, list, tuple, set, deque)):
            self._container(value, objects=objects)
        elif isinstance(value, (np.ndarray, torch.Generator, np.random.Generator, random.Random)):
            self._undo.callback(_put_back, value, _state(value))
        elif objects and hasattr(value, "__dict__") and _home(value) in self._own:
            self._container(vars(value), objects=False)

    def _container(self, held: Any, *, objects: bool) -> None:
        if not isinstance(held, tuple):
            self._undo.callback(_refill, held, dict(held) if isinstance(held, dict) else list(held))
        if len(held) <= _MANY:
            for item in list(held.values() if isinstance(held, dict) else held):
                self.visit(item, objects=objects)

    def _tensor(self, tensor: Tensor) -> None:
        if nn.parameter.is_lazy(tensor) or tensor.is_inference():
            return
        if tensor.is_leaf:
            self._undo.callback(_restore_leaf, tensor, tensor.grad, tensor.requires_grad)
            tensor.grad = None
        if tensor.is_meta or _repeats_itself(tensor):
            return
        # Autograd counts writes, to know of changes to what it saved; a graph of the step itself may still be needed.
        self._undo.enter_context(_unsafe_preserve_version_counter(tensor))
        alias = tensor.data
        self._undo.callback(_restore_numbers, tensor, alias, alias.to("cpu", copy=True))


def _restore_leaf(tensor: Tensor, grad: Tensor | None, asks: bool) -> None:
    if tensor.requires_grad != asks:
        tensor.requires_grad_(asks)
    tensor.grad = grad


def _restore_numbers(tensor: Tensor, alias: Tensor, numbers: Tensor) -> None:
    if tensor.layout is torch.strided and tensor.data_ptr() != alias.data_ptr():
        tensor.data = alias  # it was given other storage
    alias.copy_(numbers)


def _repeats_itself(tensor: Tensor) -> bool:
    """Whether several elements lie at one place, as ``expand`` makes them; nobody can write into that."""
    strided = tensor.layout is torch.strided
    return strided and any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _refill(held: Any, before: Any) -> None:
    if _is_the_same(held, before):
        return
    if isinstance(held, list):
        held[:] = before
        return
    held.clear()
    held.extend(before) if isinstance(held, deque) else held.update(before)


def _is_the_same(held: Any, before: Any) -> bool:
    """Whether a container holds the very things it held, in the same order; some refuse to be written to."""
    if len(held) != len(before):
        return False
    if isinstance(held, dict):
        pairs = zip(held.items(), before.items(), strict=True)
        return all(key is old_key and value is old for (key, value), (old_key, old) in pairs)
    return all(item is old for item, old in zip(held, before, strict=True))


def _state(source: Any) -> Any:
    if isinstance(source, np.ndarray):
        return source.copy()
    if isinstance(source, np.random.Generator):
        return source.bit_generator.state
    return source.get_state() if isinstance(source, torch.Generator) else source.getstate()


def _put_back(source: Any, state: Any) -> None:
    if isinstance(source, np.ndarray):
        source[...] = state
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = state
    elif isinstance(source, torch.Generator):
        source.set_state(state)
    else:
        source.setstate(state)


def _home(value: Any) -> str:
    """Return the package that an object's class is from."""
    return type(value).__module__.partition(".")[0]


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)
