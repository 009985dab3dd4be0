"""Small networks to hang callbacks on."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def batches(n: int = 32, batch_size: int = 4, seed: int = 0) -> DataLoader:
    """Return ``n / batch_size`` fixed batches of 8 features and one of 3 labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch_size)


class Net(pl.LightningModule):
    """A healthy classifier with dropout, so that a stolen random number shows in the weights."""

    def __init__(self, width: int = 16, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.body = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def train_dataloader(self) -> DataLoader:
        return batches()


class TwoOptimizers(Net):
    """Manual optimization: body and head have an optimizer each, and a loss each."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        for optimizer, factor in zip(self.optimizers(), (1.0, 3.0), strict=True):
            optimizer.zero_grad()
            self.manual_backward(factor * nn.functional.cross_entropy(self(x), y))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.body, self.head)]


class Breaks(Net):
    """Raises in the middle of an epoch."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == 5:
            raise ZeroDivisionError("the user's own error")
        return super().training_step(batch, batch_idx)


class TurnsNaN(Net):
    """Its gradients are NaN from step 3 on."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return broken_backwards(loss, self.head.weight) if self.trainer.global_step >= 3 else loss


def broken_backwards(loss: Tensor, weight: Tensor) -> Tensor:
    """Return the same loss, whose gradient is NaN: that of a square root at zero, times zero."""
    return loss + (0.0 * (weight.sum() + loss)).sqrt()


class DeepSigmoid(Net):
    """Vanishing gradients from the first step."""

    def __init__(self, depth: int = 8) -> None:
        super().__init__()
        layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), *layers)


class Strange(Net):
    """Everything that trips a naive monitor: frozen, tied, empty, unused, oddly named, constant, lazy, complex."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))
        self.lazy = nn.LazyLinear(16)
        self.unused = nn.Linear(4, 4)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.empty = nn.Parameter(torch.empty(0))
        self.scalar = nn.Parameter(torch.tensor(0.0))
        self.wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.add_module("name with spaces", nn.Linear(16, 16))
        self.tied = self.frozen

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.lazy(self.body(x)))
        x = getattr(self, "name with spaces")(x) * (1 + self.scalar)
        return self.head(x) * self.wave.real.mean() + self.wave.imag.sum()
