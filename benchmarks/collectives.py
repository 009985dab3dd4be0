"""How many collectives our gradient monitor asks for, with 10 and with 1,000 parameters, under DDP and under FSDP2.

``measure`` runs this file as two processes that train together over gloo. In each the functions of
``torch.distributed`` are replaced by ones that count the calls which come from our package.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from fits import fit
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from tables import Settings, Table, say
from torch import Tensor, nn

import lightning_weightwatch
from lightning_weightwatch import GradientHealthMonitor

_STEPS, _FLUSH_EVERY, _PATIENCE = 30, 10, 300
_WORDS = ("all_reduce", "all_gather", "all_to_all", "broadcast", "barrier", "gather", "scatter", "reduce", "monitored")
_OURS = str(Path(lightning_weightwatch.__file__).parent)
_COLUMNS = ("once, when it begins", "a step", "a flush", "a flush with full statistics")
_NOTE = "Two processes on gloo. The largest number of any step or flush."


def measure(_: Settings) -> Table:
    """Start the two processes and read what the first one counted."""
    say("collectives")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__], env=os.environ | meeting | {"LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        told = [rank.communicate(timeout=_PATIENCE)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()  # nothing, if it has ended
    if any(rank.returncode for rank in ranks):
        raise RuntimeError("the two processes that count collectives have failed; what they said stands above")
    return Table("Collectives of the gradient monitor", _COLUMNS, json.loads(told[0].splitlines()[-1]), _NOTE)


class _Chain(pl.LightningModule):
    """As many parameters as asked for, cut into shards where the strategy has a mesh for them."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(parameters // 2)))

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class _Bookkeeper(pl.Callback):
    """Knows the step that is being taken; comes first, so that it is told before the monitor."""

    def __init__(self) -> None:
        self.step = -1
        self.calls: Counter[int] = Counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        self.step = index

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = _STEPS

    def count(self) -> None:
        """Count a call, if it comes from our package."""
        frame = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename.startswith(_OURS):
                self.calls[self.step] += 1
                return
            frame = frame.f_back

    def row(self) -> list[int]:
        """Return what was counted at the beginning, in steps, in flushes, in flushes with full statistics."""
        flushes = range(_FLUSH_EVERY - 1, _STEPS, _FLUSH_EVERY)
        in_full = [step for step in flushes if step % (2 * _FLUSH_EVERY) == _FLUSH_EVERY - 1]
        kinds = [set(range(1, _STEPS)) - set(flushes), set(flushes) - set(in_full), in_full]
        return [self.calls[-1] + self.calls[0], *(max(self.calls[step] for step in kind) for kind in kinds)]


def _listen(books: Sequence[_Bookkeeper]) -> None:
    """Have every function of ``torch.distributed`` that is a collective tell the last of ``books`` first."""

    def listened(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            books[-1].count()
            return function(*args, **kwargs)

        return wrapper

    for module in (dist, funcol):
        for name, function in list(vars(module).items()):
            if callable(function) and not isinstance(function, type) and name.startswith(_WORDS):
                setattr(module, name, listened(function))


def _count_in(strategy: Strategy, parameters: int, books: list[_Bookkeeper]) -> list[int]:
    books.append(_Bookkeeper())
    monitor = GradientHealthMonitor(every_n_steps=_FLUSH_EVERY, statistics_every_n_steps=2 * _FLUSH_EVERY)
    batches = [torch.randn(2, 4) for _ in range(_STEPS)]
    options = {"accelerator": "cpu", "devices": 2, "use_distributed_sampler": False}
    fit(_Chain(parameters), batches, [books[-1], monitor], strategy=strategy, **options)
    return books[-1].row()


def _main() -> None:
    torch.set_num_threads(1)
    books = [_Bookkeeper()]
    _listen(books)
    strategies = {
        "DDP": lambda: DDPStrategy(process_group_backend="gloo"),
        "FSDP2": lambda: ModelParallelStrategy(process_group_backend="gloo"),
    }
    rows = {
        f"{name}, {parameters:,} parameters": _count_in(strategy(), parameters, books)
        for name, strategy in strategies.items()
        for parameters in (10, 1_000)
    }
    print(json.dumps(rows))


if __name__ == "__main__":
    _main()
