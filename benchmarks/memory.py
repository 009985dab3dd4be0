"""How much memory watching takes, over that of the parameters: kept all the time, and at most on a step that is due.

On a CPU the tensors that Python knows are added up, and allocations are followed operation by operation; what an
operation needs within itself is not seen. On CUDA the allocator is asked.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import ours
import torch
from fits import fit
from ours import Act
from shapes import NETWORKS, Shapes, with_gradients
from tables import Settings, Table, say
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_weightwatch import watch

_STEPS = 6  # the last of them is far from the flush after the tenth and from the next histograms
_COLUMNS = ("kept between due steps", "at most on a step with full statistics", "at most on a step with histograms")
_NOTE = "Times the bytes of the parameters. What is kept is that of all four callbacks in a training."


def measure(settings: Settings) -> Table:
    """Measure on the shapes of every network."""
    rows = {}
    for network, shapes in NETWORKS.items():
        say(f"memory, {network}")
        module = with_gradients(shapes(), settings.device)
        whole = _bytes(module.parameters())
        peaks = []
        for prepare in (ours.due_statistics, ours.due_histograms):
            with prepare(module) as act:
                act()  # what is made once is kept, and counted there
                peaks.append(_peak(act, module, settings.device))
        del module, act
        rows[network] = [extra / whole for extra in (_kept(shapes(), settings.device), *peaks)]
    return Table("Memory on the device", _COLUMNS, rows, _NOTE)


class _Shaped(pl.LightningModule):
    """Parameters of given shapes, trained towards zero."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.held = nn.ParameterList(torch.randn(shape) for shape in shapes)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return torch.stack([p.square().mean() for p in self.held]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class _Scales(pl.Callback):
    """Weighs what lies on the device when the last step has ended."""

    def __init__(self) -> None:
        self.bytes = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == _STEPS:
            self.bytes = _held(pl_module.device)


def _kept(shapes: Shapes, device: torch.device) -> int:
    """Return the bytes that a watched training holds beyond a plain one."""
    plain, watched = (_in_training(shapes, device, watched=watched) for watched in (False, True))
    return watched - plain


def _in_training(shapes: Shapes, device: torch.device, *, watched: bool) -> int:
    scales = _Scales()
    callbacks = [*watch(seed=0), scales] if watched else [scales]  # they hold the model, so they go before the next
    fit(_Shaped(shapes), [torch.zeros(1)] * _STEPS, callbacks, accelerator=device.type, devices=1)
    return scales.bytes


def _held(device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    tensors = [found for found in gc.get_objects() if issubclass(type(found), Tensor)]
    return _bytes([*tensors, *(t.grad for t in tensors if t.is_leaf and t.grad is not None)])


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


class _Allocations(TorchDispatchMode):
    """Follows the bytes of storages that come into being, until they go."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive = {t.untyped_storage().data_ptr() for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if size and place not in self._alive:
            self._alive.add(place)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self.now -= size


def _peak(act: Act, module: nn.Module, device: torch.device) -> int:
    """Return the largest number of bytes that an act held at one moment beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        return torch.cuda.max_memory_allocated(device) - before
    with _Allocations([*module.parameters(), *ours.gradients(module)]) as allocations:
        act()
    return allocations.most
