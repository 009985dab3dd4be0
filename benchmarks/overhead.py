"""What watching costs, as ratios measured side by side in one process and one run.

``python benchmarks/overhead.py`` prints the table that the README quotes and writes it as JSON beside this file. Two
parts: the measurements alone on gradients of ResNet-50's and GPT-2's shapes, against the ``clip_grad_norm_`` that most
trainings run anyway; and whole training steps of a small network inside a Trainer, with and without ``watch()``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from shapes import gpt2_small, resnet50
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_weightwatch import watch
from lightning_weightwatch.parameters import values
from lightning_weightwatch.stats import histogram, moments, norm

Ratio = tuple[float, float, float]


def paired(measure: Callable[[], Any], against: Callable[[], Any], *, rounds: int) -> Ratio:
    """Run both in turn and return the least, the median and the largest of the ratios of their times."""
    ratios = []
    for _ in range(rounds + 1):  # the first round warms up
        seconds = []
        for act in (measure, against):
            _wait()
            begin = time.perf_counter()
            act()
            _wait()
            seconds.append(time.perf_counter() - begin)
        ratios.append(seconds[0] / seconds[1])
    return min(ratios[1:]), statistics.median(ratios[1:]), max(ratios[1:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measurements(shapes: list[tuple[int, ...]], device: torch.device, rounds: int) -> dict[str, Ratio]:
    """Compare the measurements with one ``clip_grad_norm_`` on the same gradients."""
    generator = torch.Generator(device).manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, device=device, generator=generator)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, device=device, generator=generator)
    gradients: list[Tensor] = [values(p.grad) for p in parameters if p.grad is not None]

    def clip() -> None:
        nn.utils.clip_grad_norm_(parameters, 1e9)

    out = {
        "norm of every gradient, every step": paired(lambda: norm.measure(gradients), clip, rounds=rounds),
        "moments of every gradient": paired(lambda: moments.measure(gradients), clip, rounds=rounds),
        "histogram of every gradient": paired(lambda: histogram.measure(gradients), clip, rounds=rounds),
    }
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)

        def add_histograms() -> None:
            for i, gradient in enumerate(gradients):
                writer.add_histogram(str(i), gradient)

        out["add_histogram of every gradient"] = paired(add_histograms, clip, rounds=1)
        writer.close()
    return out


class SmallNet(pl.LightningModule):
    """A convolutional network whose step takes some 20 ms on one CPU core."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def training(steps: int, *, watched: bool) -> None:
    """Train from the Trainer's making to its end, everything that is logged included."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(256, 3, 32, 32), torch.randint(0, 10, (256,)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps,
            callbacks=watch(seed=0) if watched else [],
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.fit(SmallNet(), DataLoader(data, batch_size=32))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="pairs measured (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of a run (default: %(default)s)")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, 1 thread"

    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "lightning": pl.__version__, "ratios": {}}
    for network, shapes in (("ResNet-50", resnet50()), ("GPT-2 small", gpt2_small())):
        for what, ratio in measurements(shapes, device, options.rounds).items():
            results["ratios"][f"{what}, {network}, over clip_grad_norm_"] = ratio
    ratio = paired(
        lambda: training(options.steps, watched=True), lambda: training(options.steps, watched=False), rounds=3
    )
    results["ratios"][f"{options.steps} training steps, watched over plain"] = ratio

    rows = [[what, *(f"{value:.3g}" for value in ratio)] for what, ratio in results["ratios"].items()]
    print(f"{name}, torch {torch.__version__}\n")
    print(tabulate(rows, ["ratio", "least", "median", "largest"], tablefmt="github", disable_numparse=True))
    path = Path(__file__).parent / "results" / f"overhead-{device.type}.json"
    path.write_text(json.dumps(results, indent=1) + os.linesep, encoding="utf-8")


if __name__ == "__main__":
    main()
