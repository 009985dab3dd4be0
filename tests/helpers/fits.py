"""A Trainer that is quick and quiet."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch


def trainer(callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
    """Return a CPU Trainer without bars, checkpoints and loggers, unless the options say otherwise."""
    quiet = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 2,
    }
    return pl.Trainer(callbacks=list(callbacks), **quiet | options)


def fit(net: type[pl.LightningModule], callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.LightningModule:
    """Train a freshly seeded network and return it."""
    torch.manual_seed(0)
    model = net()
    torch.manual_seed(1)
    trainer(callbacks, **options).fit(model)
    return model
