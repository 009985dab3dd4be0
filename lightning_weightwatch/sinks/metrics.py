"""Any logger at all, through the one method every Lightning logger has: ``log_metrics``.

Such a logger gets the few summary scalars. Per-layer values would fill a CSV file with columns, and pictures have no
common way in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_weightwatch.sinks._base import Histogram


class MetricsSink:
    """Hands summary scalars to a logger's ``log_metrics`` and drops the rest."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __str__(self) -> str:
        """Name the logger."""
        return type(self._logger).__name__

    def scalars(self, values: Mapping[str, float], step: int, *, detail: bool) -> None:
        """Log summary scalars."""
        if not detail:
            self._logger.log_metrics(dict(values), step=step)

    def histograms(self, histograms: Sequence[Histogram], step: int) -> None:
        """Drop them."""

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Drop it."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Drop it; findings also stand in files and on the console."""

    def flush(self) -> None:
        """Save what the logger holds back."""
        self._logger.save()
