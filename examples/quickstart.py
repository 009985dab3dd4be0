"""A healthy and a sick network on the same real data, both watched.

Run it with ``make demo``, or ``python examples/quickstart.py`` where the package and scikit-learn are installed. It
takes well under a minute on two CPU cores and downloads nothing: the 1,797 handwritten digits come with scikit-learn.
"""

from __future__ import annotations

import argparse
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from lightning_weightwatch import GradientHealthMonitor, InitAuditor, InitReport, watch
from lightning_weightwatch.advice import what_to_try

# A thousand pictures of 8 x 8 dots need no worker processes.
warnings.filterwarnings("ignore", message=".*does not have many workers.*")


class Digits(pl.LightningDataModule):
    """The digits of scikit-learn as pictures of shape ``[1, 8, 8]`` in 0 to 1, one fifth kept for validation."""

    def setup(self, stage: str) -> None:
        pictures, labels = load_digits(return_X_y=True)
        x = torch.tensor(pictures / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
        y = torch.tensor(labels)
        train, val = train_test_split(range(len(y)), test_size=0.2, stratify=labels, random_state=0)
        self.train_set = TensorDataset(x[train], y[train])
        self.val_set = TensorDataset(x[val], y[val])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=256)


class Classifier(pl.LightningModule):
    """Trains any network with cross entropy and SGD; it knows nothing of being watched."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.accuracy = Accuracy(task="multiclass", num_classes=10)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.accuracy(self(x), y)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class SimpleCNN(Classifier):
    """The tutorial network: convolution, ReLU, max-pooling, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        return self.fc1(x.flatten(1))


class DeepSigmoid(Classifier):
    """Ill on purpose: each of its sigmoids passes on at most a quarter of the gradient."""

    def __init__(self, depth: int = 8, width: int = 64) -> None:
        super().__init__()
        sizes = [64] + [width] * depth
        hidden = [layer for i in range(depth) for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.Sigmoid())]
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def train(network: type[Classifier], name: str, *, epochs: int, log_dir: str) -> pl.Trainer:
    """Train one network, watched, and return the Trainer."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=watch(seed=42),  # the one line that adds everything
        logger=TensorBoardLogger(log_dir, name=f"quickstart/{name}"),
        log_every_n_steps=5,
        accelerator="cpu",
        enable_model_summary=False,
    )
    trainer.fit(network(), Digits())
    return trainer


def summarise(title: str, trainer: pl.Trainer) -> None:
    """Print how it went."""
    monitor = next(c for c in trainer.callbacks if isinstance(c, GradientHealthMonitor))
    serious = [f for f in monitor.findings if f.severity != "info"]
    print(f"\n{title}")
    print(f"  validation accuracy  {100 * trainer.callback_metrics['val_accuracy'].item():.1f} %")
    print(f"  findings             {len(serious)}")
    if monitor.first_cause is not None:
        cause = monitor.first_cause
        print(f"  first cause          {cause.rule}, since step {cause.since_step}")
        print(f"  where                {', '.join(cause.parameters)}")
        for place, (topic, action) in enumerate(what_to_try(f.rule for f in serious), start=1):
            print(f"  {'what to try' if place == 1 else '':<20} {place}. {topic}: {action}")
    print(f"  logs                 {trainer.log_dir}")


def how_it_began(trainer: pl.Trainer) -> None:
    """Print the initial weights beside what PyTorch's own scheme gives, and the first loss."""
    report = next(c for c in trainer.callbacks if isinstance(c, InitAuditor)).report or InitReport(())
    for place, p in enumerate(report.parameters):
        title = "how it began" if place == 0 else ""
        print(f"  {title:<20} {p.name}: std {p.std:.4f}, expected {p.expected_std:.4f} by {p.scheme}")
    if report.signal is not None:
        print(f"  {'':<20} first loss {report.signal.loss:.3f}, expected {report.signal.expected_loss:.3f}")


def main() -> None:
    """Train both networks and sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log-dir", default="logs", help="where the logs go (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of the healthy run (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose more time in handing work over than they gain

    print("=== A healthy network: SimpleCNN ===")
    healthy = train(SimpleCNN, "healthy", epochs=args.epochs, log_dir=args.log_dir)
    print("\n=== A sick network: eight sigmoid layers in a row ===")
    sick = train(DeepSigmoid, "sick", epochs=3, log_dir=args.log_dir)

    summarise("Healthy: SimpleCNN", healthy)
    how_it_began(healthy)
    summarise("Sick: DeepSigmoid", sick)
    print(f"\nLook at both:\n  tensorboard --logdir {args.log_dir}/quickstart")


if __name__ == "__main__":
    main()
