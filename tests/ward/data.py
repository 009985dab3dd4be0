"""Small real data sets, which scikit-learn brings along, and a few sequences made up on the spot."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor
from torch.utils.data import TensorDataset

CLASSES = 10


@cache
def _pixels() -> tuple[Tensor, Tensor]:
    bunch = datasets.load_digits()
    return torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target, dtype=torch.long)


def raw_digits() -> tuple[Tensor, Tensor]:
    """Return 1797 images of 64 pixels from 0 to 16, and what they show."""
    x, y = _pixels()
    return x.clone(), y.clone()


def digits(n: int | None = None) -> TensorDataset:
    """Return (the first ``n``) images with one mean and deviation for all pixels, as is done for images."""
    x, y = raw_digits()
    return TensorDataset(((x - x.mean()) / x.std())[:n], y[:n])


def images(n: int | None = None) -> TensorDataset:
    """Return the same as 8 x 8 images of one channel."""
    x, y = digits(n).tensors
    return TensorDataset(x.view(-1, 1, 8, 8), y)


def rows_of_digits(n: int | None = None) -> TensorDataset:
    """Return the same as sequences of 8 rows of 8 pixels."""
    x, y = digits(n).tensors
    return TensorDataset(x.view(-1, 8, 8), y)


def pictures(n: int | None = None) -> TensorDataset:
    """Return pixels from 0 to 1, as input and as target of an autoencoder."""
    x, _ = raw_digits()
    return TensorDataset(x[:n] / 16, x[:n] / 16)


@cache
def _table(name: str) -> tuple[Tensor, Tensor]:
    bunch = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(0).permutation(len(bunch.target))  # the files are sorted by class
    kind = torch.float32 if name == "diabetes" else torch.long
    return torch.tensor(bunch.data[order], dtype=torch.float32), torch.tensor(bunch.target[order], dtype=kind)


def raw_table(name: str) -> tuple[Tensor, Tensor]:
    """Return features in their own units, and classes; a column of floats for ``diabetes``."""
    x, y = (tensor.clone() for tensor in _table(name))
    return (x * 100, y[:, None]) if name == "diabetes" else (x, y)  # it comes scaled to 0.05


def table(name: str) -> TensorDataset:
    """Return standardised features; a regression's targets are standardised too."""
    x, y = raw_table(name)
    return TensorDataset(standardised(x), standardised(y) if y.is_floating_point() else y)


def standardised(x: Tensor) -> Tensor:
    """Return each column with mean 0 and deviation 1."""
    return (x - x.mean(0)) / x.std(0)


def halves(data: TensorDataset, n: int) -> tuple[TensorDataset, TensorDataset]:
    """Return the first ``n`` and the rest."""
    return TensorDataset(*(t[:n] for t in data.tensors)), TensorDataset(*(t[n:] for t in data.tensors))


def curve(n: int = 512) -> TensorDataset:
    """Return points of a smooth curve with a little noise: one number in, one number out."""
    x = torch.linspace(-3, 3, n)[:, None]
    return TensorDataset(x, torch.sin(2 * x) + 0.3 * x + 0.05 * torch.randn_like(x))


@cache
def _letters() -> Tensor:
    names = ("digits", "iris", "wine", "diabetes", "breast_cancer", "linnerud")
    text = "".join(getattr(datasets, f"load_{name}")().DESCR for name in names).lower()
    kept = "abcdefghijklmnopqrstuvwxyz .,-\n"
    return torch.tensor([kept.index(c) if c in kept else kept.index(" ") for c in text])


LETTERS = 31


def text(length: int = 16, n: int = 1024) -> TensorDataset:
    """Return ``n`` stretches of English, and the same one letter later."""
    letters = _letters()
    starts = torch.randint(len(letters) - length - 1, (n,))
    windows = letters[starts[:, None] + torch.arange(length + 1)]
    return TensorDataset(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())


def running_sums(length: int = 12, n: int = 512) -> TensorDataset:
    """Return sequences of noise, and their sums."""
    x = torch.randn(n, length, 1)
    return TensorDataset(x, x.sum(1) / length**0.5)
