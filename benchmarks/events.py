"""How many bytes the histograms of one step take in TensorBoard's event file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from shapes import NETWORKS, with_gradients
from tables import Settings, Table, say
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_weightwatch.callbacks._weight_pages import WeightPages
from lightning_weightwatch.counter import count
from lightning_weightwatch.parameters import describe, named_tensors
from lightning_weightwatch.sinks import Sinks
from lightning_weightwatch.sinks.tensorboard import TensorBoardSink

_COLUMNS = ("ours", "SummaryWriter.add_histogram", "theirs over ours")


def measure(settings: Settings) -> Table:
    """Write the histograms of all weights and gradients both ways and compare the files."""
    rows = {}
    for network, shapes in NETWORKS.items():
        say(f"event bytes, {network}")
        module = with_gradients(shapes(), settings.device)
        mine, theirs = _written(_ours, module), _written(_theirs, module)
        rows[network] = [mine, theirs, theirs / mine]
    return Table("Bytes of one step's histograms of all weights and gradients", _COLUMNS, rows)


def _written(write: Callable[[SummaryWriter, nn.Module], None], module: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            write(writer, module)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def _ours(writer: SummaryWriter, module: nn.Module) -> None:
    tensors = named_tensors(module)
    names, held = list(tensors), list(tensors.values())
    pages = WeightPages(Sinks([TensorBoardSink(writer)]), "health", describe(module), {})
    pages.weights(count(names, held, held, None), 0)
    pages.gradients(count(names, held, [p.grad for p in held], None), 0)


def _theirs(writer: SummaryWriter, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        writer.add_histogram(f"weight/{name}", parameter, 0)
        writer.add_histogram(f"gradient/{name}", parameter.grad, 0)
