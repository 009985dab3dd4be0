"""A LightningModule put together from parts: a network, its data, its loss and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

Loss = Callable[[Tensor, Tensor], Tensor]


class Learner(pl.LightningModule):
    """A supervised training like any other.

    Args:
        net: The network.
        data: Inputs and targets.
        loss: Of its output and the targets.
        optimizer: Its class; further keyword arguments go to it.
        lr: Its learning rate.
        batch: The batch size.
        shuffle: Whether each epoch has an order of its own.
        schedule: The factor of the learning rate at a step.
        good_rate: For a case with a wrong learning rate: one at which it trains.
    """

    def __init__(
        self,
        net: nn.Module,
        data: TensorDataset,
        *,
        loss: Loss = nn.functional.cross_entropy,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        lr: float = 3e-3,
        batch: int = 32,
        shuffle: bool = True,
        schedule: Callable[[int], float] | None = None,
        good_rate: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.good_rate = good_rate
        self.net, self.data, self.loss = net, data, loss
        self.optimizer, self.schedule, self.options = optimizer, schedule, {"lr": lr} | options
        self.batch, self.shuffle = batch, shuffle

    def cure_rate(self) -> None:
        """Take the good learning rate."""
        assert self.good_rate is not None
        self.options["lr"], self.schedule = self.good_rate, None

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters(), **self.options)
        if self.schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        return batches(self.data, self.batch, shuffle=self.shuffle)


def batches(data: TensorDataset, size: int, *, shuffle: bool = True) -> DataLoader:
    """Return a loader that takes each batch at once, which is faster than sample by sample."""
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    return DataLoader(data, sampler=BatchSampler(order, size, drop_last=len(data) > size), batch_size=None)


class Validated(Learner):
    """A training whose loss on other data is measured after each epoch."""

    def __init__(self, net: nn.Module, data: TensorDataset, others: TensorDataset, **options: Any) -> None:
        super().__init__(net, data, **options)
        self.others = others

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", self.loss(self(x), y), batch_size=len(x))

    def val_dataloader(self) -> DataLoader:
        return batches(self.others, 512, shuffle=False)
