"""A training by Lightning that says nothing and leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader


def fit(model: pl.LightningModule, batches: Sequence[Any], callbacks: Sequence[pl.Callback], **options: Any) -> float:
    """Train on every batch once, with a TensorBoard logger, and return the seconds that the fit took."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=list(callbacks),
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        begin = time.perf_counter()
        trainer.fit(model, DataLoader(batches, batch_size=None))
        return time.perf_counter() - begin


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Lightning and our callbacks say."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
