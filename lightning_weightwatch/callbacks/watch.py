"""The four callbacks at once."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_weightwatch.callbacks.gradient_health_monitor import GradientHealthMonitor
from lightning_weightwatch.callbacks.init_auditor import InitAuditor
from lightning_weightwatch.callbacks.seed_everything import SeedEverything
from lightning_weightwatch.callbacks.weight_histogram_logger import WeightHistogramLogger


def watch(*, seed: int | None = None) -> list[pl.Callback]:
    """Return the four callbacks with their defaults, for ``Trainer(callbacks=watch(seed=42))``.

    Args:
        seed: What to seed with, at once and again when the fit begins. ``None`` takes ``PL_GLOBAL_SEED`` or picks one.
            Build the model after this call, so that its weights are seeded too.

    Returns:
        ``[SeedEverything, InitAuditor, WeightHistogramLogger, GradientHealthMonitor]``; a plain list that can be
        extended.

    Raises:
        TypeError: If the seed is no whole number.
        ValueError: If it is negative or above 4294967295.

    Example:
        >>> [type(callback).__name__ for callback in watch(seed=42)]
        ['SeedEverything', 'InitAuditor', 'WeightHistogramLogger', 'GradientHealthMonitor']
    """
    return [SeedEverything(seed), InitAuditor(), WeightHistogramLogger(), GradientHealthMonitor()]
