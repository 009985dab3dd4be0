"""Two processes see what one process sees where gradients are missing, or reduced only now and then."""

from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from lightning_weightwatch import GradientHealthMonitor
from tests.helpers import fits, truth
from tests.helpers.strategies import FORKING_IS_FINE, Sharded, ShardedModel, replicated

pytestmark = FORKING_IS_FINE

WINDOW, BATCHES = 3, 8  # windows of three, three and two batches


class Detours(nn.Module):
    """A network with a detour that only half of the samples take, and one that none takes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = truth.network()
        self.some = nn.Linear(5, 1)
        self.none = nn.Linear(5, 1)

    def forward(self, x: Tensor, *, detour: bool) -> Tensor:
        return self.net(x) + self.some(x) if detour else self.net(x)


class DetoursOnOneRank(truth.Model):
    """The second process takes the detour, the first never does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Detours()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0], detour=self.global_rank == 1), batch[1])


def seen(model: pl.LightningModule, strategy: Strategy, folder: Path, **options: int) -> Iterator[dict]:
    """Train on two processes and yield what the monitor of each has seen."""
    monitor = GradientHealthMonitor(rules=[truth.spy(folder)], every_n_steps=2)
    quick = {"devices": truth.RANKS, "max_epochs": 1, "use_distributed_sampler": False}
    fits.trainer([monitor], strategy=strategy, **quick, **options).fit(model)
    for rank in range(truth.RANKS):
        yield np.load(folder / f"rank{rank}.npz")


def agree(found: dict, norms: np.ndarray, losses: np.ndarray) -> None:
    np.testing.assert_allclose(found["norms"], norms, rtol=1e-5)
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
    assert found["steps"].tolist() == list(range(len(losses)))


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(part.chunk(truth.STEPS) for part in truth.data()), strict=True))


def norms_of(model: nn.Module) -> list[float]:
    return [np.nan if p.grad is None else p.grad.double().norm().item() for p in model.parameters()]


def test_a_static_graph_changes_nothing(tmp_path: Path) -> None:
    for found in seen(truth.Model(), replicated(static_graph=True), tmp_path):
        agree(found, *truth.gradient_norms())


def test_what_one_process_uses_is_seen_on_both_and_what_none_uses_on_neither(tmp_path: Path) -> None:
    model = Detours()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms, losses = [], []
    for x, y in batches():
        ways = zip(x.chunk(2), y.chunk(2), (False, True), strict=True)
        loss = sum(nn.functional.mse_loss(model(x, detour=detour), y) for x, y, detour in ways) / 2
        optimizer.zero_grad()
        loss.backward()
        norms.append(norms_of(model))
        losses.append(loss.item())
        optimizer.step()
    assert np.isnan(norms).any(axis=0).tolist() == [False] * 8 + [True] * 2
    for found in seen(DetoursOnOneRank(), replicated(find_unused_parameters=True), tmp_path):
        agree(found, np.array(norms), np.array(losses))


@pytest.mark.parametrize(
    ("model", "strategy"), [(truth.Model, replicated), (ShardedModel, lambda: Sharded(2))], ids=["DDP", "FSDP2"]
)
def test_windows_of_batches_give_one_row_each_and_the_last_is_short(
    model: type[pl.LightningModule], strategy: Callable[[], Strategy], tmp_path: Path
) -> None:
    """Lightning divides by the whole window's length in the last one too, so that is what the optimizer gets."""
    net = truth.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms, losses = [], []
    for start in range(0, BATCHES, WINDOW):
        window = batches()[start : min(start + WINDOW, BATCHES)]
        each = [nn.functional.mse_loss(net(x), y) for x, y in window]
        optimizer.zero_grad()
        (sum(each) / WINDOW).backward()
        norms.append(norms_of(net))
        losses.append(np.mean([loss.item() for loss in each]))
        optimizer.step()
    options = {"accumulate_grad_batches": WINDOW, "limit_train_batches": BATCHES}
    for found in seen(model(), strategy(), tmp_path, **options):
        agree(found, np.array(norms), np.array(losses))
