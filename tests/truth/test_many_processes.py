"""Two and four processes on gloo: every strategy, on every rank, against the same training in one plain process.

Most train in double precision: in single precision processes add up gradients in another order than one process does,
and an element that is nearly nothing then differs in its fourth digit, whoever measures it. That gradient norms are
right in single precision too is shown in ``end_to_end``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from tests.end_to_end import test_ddp_variants as variants
from tests.end_to_end import test_four_processes as four
from tests.helpers import fits, truth
from tests.helpers.strategies import FORKING_IS_FINE, Flat, Sharded, ShardedModel, replicated
from tests.truth import reference
from tests.truth.compare import Seen, Witness, agree
from tests.truth.reference import Step

pytestmark = [*FORKING_IS_FINE, pytest.mark.filterwarnings("ignore:.*(FSDP|NO_SHARD).*")]


class Scribe(pl.Callback):
    """Writes what the witness saw on each rank, before the processes are gone."""

    def __init__(self, witness: Witness, folder: Path) -> None:
        self.witness, self.folder = witness, folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (self.folder / f"seen{trainer.global_rank}").write_bytes(pickle.dumps(self.witness.seen))


def in_double(model: type[pl.LightningModule]) -> pl.LightningModule:
    """Return a model that trains in double precision."""

    class Double(model):
        def __init__(self) -> None:
            super().__init__()
            self.double()

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return super().training_step([part.double() for part in batch], batch_idx)

    return Double()


@dataclass(frozen=True)
class Setting:
    """A training on several processes, and the same in one."""

    model: type[pl.LightningModule]
    strategy: Callable[[], Strategy]
    plain: Callable[..., list[Step]]
    ranks: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    double: bool = True


def plain(
    network: Callable[[], nn.Module],
    batches: Callable[[], list[tuple[Tensor, Tensor]]],
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> list[Step]:
    """Train in one process on all the data."""
    net = network().to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return reference.train(net, optimizer, batches(), loss_of, **options)


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    dtype = next(net.parameters()).dtype
    return nn.functional.mse_loss(net(batch[0].to(dtype)), batch[1].to(dtype))


def four_batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(part.chunk(four.STEPS) for part in four.data()), strict=True))


def detours() -> list[Step]:
    """Train where half of each batch takes a detour."""
    net = variants.Detours().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def of_halves(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        halves = zip(batch[0].double().chunk(2), batch[1].double().chunk(2), (False, True), strict=True)
        return sum(nn.functional.mse_loss(net(x, detour=detour), y) for x, y, detour in halves) / 2

    return reference.train(net, optimizer, variants.batches(), of_halves)


def norm_clip(parameters: list[nn.Parameter]) -> None:
    nn.utils.clip_grad_norm_(parameters, 0.1)


two = partial(plain, truth.network, variants.batches)
of_four = partial(plain, four.Network, four_batches)
SHORT = {"accumulate_grad_batches": variants.WINDOW, "limit_train_batches": variants.BATCHES}
short = partial(plain, truth.network, lambda: variants.batches()[: variants.BATCHES], window=variants.WINDOW)
fsdp2 = partial(Sharded, 2)

SETTINGS = {
    "2 x DDP": Setting(truth.Model, replicated, two),
    "2 x DDP, clipping by norm": Setting(
        truth.Model, replicated, partial(two, clip=norm_clip), options={"gradient_clip_val": 0.1}
    ),
    "2 x DDP, static_graph": Setting(truth.Model, partial(replicated, static_graph=True), two),
    "2 x DDP, find_unused_parameters": Setting(
        variants.DetoursOnOneRank, partial(replicated, find_unused_parameters=True), detours
    ),
    "2 x DDP, accumulation without sync, short last window": Setting(truth.Model, replicated, short, options=SHORT),
    "2 x FSDP1": Setting(
        truth.Model, Flat, partial(two, dtype=torch.float32), double=False
    ),  # Lightning casts its modules
    "2 x FSDP2, uneven and empty shards": Setting(ShardedModel, fsdp2, two),
    "2 x FSDP2, accumulation, short last window": Setting(ShardedModel, fsdp2, short, options=SHORT),
    "4 x DDP": Setting(four.Model, replicated, of_four, 4),
    "4 x FSDP2, empty shards": Setting(four.Fsdp, partial(Sharded, 4), of_four, 4),
    "HSDP 2 x 2": Setting(four.Hsdp, partial(Sharded, 2, 2), of_four, 4),
    "tensor parallel 2 x 2, Partial gradients": Setting(four.TensorParallel, partial(Sharded, 2, 2), of_four, 4),
    "FSDP2 x tensor parallel 2 x 2": Setting(four.FsdpOfTensorParallel, partial(Sharded, 2, 2), of_four, 4),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_rank_sees_what_one_process_sees(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Any
) -> None:
    setting, witness = SETTINGS[name], Witness(monkeypatch, tmp_path)
    options = {"devices": setting.ranks, "max_epochs": 1, "use_distributed_sampler": False}
    callbacks = [*witness.callbacks, Scribe(witness, tmp_path)]
    fits.trainer(callbacks, strategy=setting.strategy(), **witness.options, **options, **setting.options).fit(
        in_double(setting.model) if setting.double else setting.model()
    )
    steps = [_prefixed(step) for step in setting.plain()]
    worst: dict[str, float] = {}
    for rank in range(setting.ranks):
        seen: Seen = pickle.loads((tmp_path / f"seen{rank}").read_bytes())
        for column, error in agree(seen, steps).items():
            worst[column] = np.fmax(worst.get(column, np.nan), error)
    record_property("truth", ("several processes", name, worst))


def _prefixed(step: Step) -> Step:
    """Return a step with the names that the network has inside a LightningModule."""
    arrays = (step.gradients, step.clipped, step.before, step.after)
    named = [part and {f"net.{name}": value for name, value in part.items()} for part in arrays]
    return Step(step.loss, *named)
