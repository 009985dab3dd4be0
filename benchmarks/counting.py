"""How often we and others wait for the device.

A CPU is never waited for, so there the reads that would wait are counted: single numbers (``.item()``, ``float()``,
``if``) and tensors taken to the host (``.cpu()``). Our statistics look at some of their sums on a CPU, where looking is
free and saves work; on CUDA they do not. With CUDA the waiting itself is counted, and our path of every step runs under
``set_sync_debug_mode("error")``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ours
import peers
import torch
from ours import Act
from shapes import resnet50, with_gradients
from tables import Settings, Table, say
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_ON_CPU = (
    "One step each. On a CPU nothing waits; these are the reads that would. Full statistics look at their own sums "
    "there, because looking is free and saves work; on CUDA they do not."
)


def measure(settings: Settings) -> Table:
    """Count on the shapes of ResNet-50."""
    module = with_gradients(resnet50(), settings.device)
    cuda = settings.device.type == "cuda"
    columns = ["numbers read", "tensors read", *(["waits for the device"] if cuda else [])]
    rows = {}
    for what, prepare in ({"ours: a flush of ten steps": ours.flush} | ours.EVERY | peers.EVERY).items():
        say(f"host syncs: {what}")
        try:
            with prepare(module) as act:
                act()  # caches are filled by now
                rows[what] = [*_reads(act), *([_waits(act)] if cuda else [])]
        except ModuleNotFoundError:
            rows[what] = None
    if cuda:
        _never_waits(module)
    note = 'Our path of every step also ran under set_sync_debug_mode("error").' if cuda else _ON_CPU
    return Table(f"Host syncs, {len(list(module.parameters()))} gradients of ResNet-50's shapes", columns, rows, note)


class _Numbers(TorchDispatchMode):
    """Counts single numbers that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class _Tensors(TorchFunctionMode):
    """Counts tensors that are taken to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is Tensor.cpu
        return func(*args, **(kwargs or {}))


def _reads(act: Act) -> tuple[int, int]:
    with _Tensors() as tensors, _Numbers() as numbers:
        act()
    return numbers.count, tensors.count


def _waits(act: Act) -> int:
    with _debugging("warn"), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        act()
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in told)


def _never_waits(module: nn.Module) -> None:
    """Raise if our path of every step waits."""
    with ours.always_on(module) as act:
        act()
        with _debugging("error"):
            act()


@contextmanager
def _debugging(mode: str) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
