"""Four processes see what one process sees, however parameters and gradients lie on them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from lightning_weightwatch import GradientHealthMonitor, InitAuditor, WeightHistogramLogger
from tests.helpers import events, fits, truth
from tests.helpers.strategies import FORKING_IS_FINE, Sharded, replicated

pytestmark = FORKING_IS_FINE

STEPS, BATCH, RANKS, LENGTH = 6, 8, 4, 4


class Network(nn.Module):
    """A network on sequences. Six rows leave the last of four ranks empty, one row leaves three of them empty."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(self.up(self.norm(x)).tanh())).tanh()


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(STEPS * BATCH, LENGTH, 5, generator=torch.Generator().manual_seed(3))
    return x, (x[..., :1] * 2 + x[..., 1:2]).sin()


class Model(pl.LightningModule):
    """The network under Lightning, alike on all ranks; each loads its own samples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Network()

    def replica(self) -> tuple[int, int]:
        """Return whose samples to load, of how many."""
        return self.global_rank, RANKS

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        index, replicas = self.replica()
        mine = [part.unflatten(0, (STEPS, replicas, -1))[:, index].flatten(0, 1) for part in data()]
        return DataLoader(TensorDataset(*mine), batch_size=BATCH // replicas)


class Fsdp(Model):
    """Cut by rows over all four."""

    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Hsdp(Model):
    """Cut by rows over two, and again over the other two; every rank loads its own samples."""

    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh)  # the second dimension holds the shards, whatever its name


class TensorParallel(Model):
    """Linear layers cut by rows and by columns over two; the norm works on half a sequence and gets half a gradient."""

    def replica(self) -> tuple[int, int]:
        replicas = self.device_mesh["data_parallel"]
        return replicas.get_local_rank(), replicas.size()

    def configure_model(self) -> None:
        plan = {
            "embed": ColwiseParallel(output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            "up": ColwiseParallel(input_layouts=Shard(1)),
            "down": RowwiseParallel(output_layouts=Shard(1)),
            "head": RowwiseParallel(input_layouts=Shard(1)),
        }
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)

    def on_after_backward(self) -> None:
        """Average over replicas by hand, which tensor parallelism leaves to others."""
        replicas = self.device_mesh["data_parallel"]
        for p in self.parameters():
            dist.all_reduce(p.grad.to_local().div_(replicas.size()), group=replicas.get_group())


class FsdpOfTensorParallel(TensorParallel):
    """The same, cut once more over the two replicas."""

    def configure_model(self) -> None:
        super().configure_model()
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def on_after_backward(self) -> None:
        """FSDP averages."""


STRATEGIES: dict[str, tuple[type[Model], Callable[[], Strategy]]] = {
    "DDP": (Model, replicated),
    "FSDP2": (Fsdp, lambda: Sharded(4)),
    "HSDP": (Hsdp, lambda: Sharded(2, 2)),
    "TP": (TensorParallel, lambda: Sharded(2, 2)),
    "FSDP2 of TP": (FsdpOfTensorParallel, lambda: Sharded(2, 2)),
}


@pytest.fixture(scope="module", params=STRATEGIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Train once under each strategy, watched by all; return where everything was written."""
    folder = tmp_path_factory.mktemp("four")
    model, strategy = STRATEGIES[request.param]
    watchers = [
        InitAuditor(),
        WeightHistogramLogger(every_n_steps=1),
        GradientHealthMonitor(rules=[truth.spy(folder)], every_n_steps=4),
    ]
    options = {"devices": RANKS, "max_epochs": 1, "use_distributed_sampler": False, "log_every_n_steps": 1}
    fits.trainer(watchers, strategy=strategy(), logger=TensorBoardLogger(folder), **options).fit(model())
    return folder


@pytest.fixture(scope="module")
def one_process() -> tuple[np.ndarray, np.ndarray]:
    """Train in one process; return norms ``[STEPS, P]`` and losses ``[STEPS]``."""
    net = Network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms, losses = [], []
    for x, y in zip(*(part.chunk(STEPS) for part in data()), strict=True):
        loss = nn.functional.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        norms.append([p.grad.double().norm().item() for p in net.parameters()])
        losses.append(loss.item())
        optimizer.step()
    return np.array(norms), np.array(losses)


def test_every_rank_sees_the_gradient_norms_and_losses_of_one_process(folder, one_process) -> None:
    norms, losses = one_process
    for rank in range(RANKS):
        seen = np.load(folder / f"rank{rank}.npz")
        np.testing.assert_allclose(seen["norms"], norms, rtol=1e-5)
        np.testing.assert_allclose(seen["losses"], losses, rtol=1e-5)
        assert seen["steps"].tolist() == list(range(STEPS))


def test_the_initialisation_is_judged_as_a_whole(folder) -> None:
    report = json.loads(next(folder.rglob("init_report.json")).read_text())
    told = {row["name"]: row for row in report["parameters"]}
    for name, tensor in Network().named_parameters():
        row = told[f"net.{name}"]
        assert tuple(row["shape"]) == tuple(tensor.shape)
        assert row["std"] == pytest.approx(tensor.double().std(correction=0).item(), rel=1e-5, abs=1e-9)


def test_histograms_count_every_element_of_weights_and_gradients_once(folder) -> None:
    seen = events.read(folder)
    for place, (name, tensor) in enumerate(Network().named_parameters()):
        tag = f"{place:02d} net.{name}"
        for kind in ("weight_hist", "grad_log10_hist"):
            counted = [h.num for h in seen.histograms(f"health.{kind}/{tag}").values()]
            assert counted[:STEPS] == pytest.approx([tensor.numel()] * STEPS)


class FailsOnOneRank(GradientHealthMonitor):
    """Has a bug that only the second process meets."""

    def _record(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_rank == 1:
            self.failure = RuntimeError("a bug of ours")
        else:
            super()._record(trainer, *arguments)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        (Path(trainer.default_root_dir) / f"off{trainer.global_rank}").write_text(str(self.broken))


def test_a_failure_on_one_rank_leaves_nobody_waiting_for_its_summand(tmp_path: Path) -> None:
    """Until the next flush the rank that failed must still take part in the sums of every step."""
    options = {"devices": 2, "max_epochs": 1, "use_distributed_sampler": False, "default_root_dir": tmp_path}
    fits.trainer([FailsOnOneRank(every_n_steps=3)], strategy=Sharded(1, 2), **options).fit(TensorParallel())
    assert [(tmp_path / f"off{rank}").read_text() for rank in range(2)] == ["True", "True"]
