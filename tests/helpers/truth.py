"""What two processes must agree with: one process, a plain torch loop, all the data."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules import Rule

STEPS, BATCH, RANKS = 12, 3, 2


def data() -> tuple[Tensor, Tensor]:
    """Return all samples; the first half of each batch of six belongs to rank 0."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(STEPS * BATCH * RANKS, 5, generator=generator)
    return x, (x[:, :1] * 2 + x[:, 1:2]).sin()


def network() -> nn.Sequential:
    """Return a network whose rows do not divide by two: shards are uneven, and one bias leaves a rank empty."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1))


class Model(pl.LightningModule):
    """The same network under Lightning; each rank loads its own samples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        x, y = (part.reshape(STEPS, self.trainer.world_size, -1, part.shape[1]) for part in data())
        mine = [part[:, self.trainer.global_rank].flatten(0, 1) for part in (x, y)]
        return DataLoader(TensorDataset(*mine), batch_size=len(mine[0]) // STEPS)


def gradient_norms() -> tuple[np.ndarray, np.ndarray]:
    """Train in one process and return norms ``[STEPS, P]`` and losses ``[STEPS]`` in float64."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms, losses = [], []
    for x, y in zip(*(part.chunk(STEPS) for part in data()), strict=True):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        norms.append([p.grad.double().norm().item() for p in model.parameters()])
        losses.append(loss.item())
        optimizer.step()
    return np.array(norms), np.array(losses)


def spy(folder: Path) -> Rule:
    """Return a rule that finds nothing and writes down the evidence of its process."""

    def check(evidence: Evidence):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        np.savez(folder / f"rank{rank}.npz", norms=evidence.norms, losses=evidence.losses, steps=evidence.steps)
        return iter(())

    return Rule(name="spy", check=check)
