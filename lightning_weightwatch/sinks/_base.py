"""What a sink takes, and the fan-out that keeps one failing sink from silencing the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("lightning_weightwatch")


@dataclass(frozen=True)
class Histogram:
    """Ready-made counts of finite values.

    Attributes:
        tag: Where it is shown.
        edges: Ascending bin edges, shape ``[n + 1]``.
        counts: Elements per bin, shape ``[n]``.
    """

    tag: str
    edges: NDArray[np.float64]
    counts: NDArray[np.float64]


class Sink(Protocol):
    """Somewhere a reviewer looks. Each method may take what it can show and drop the rest."""

    def scalars(self, values: Mapping[str, float], step: int, *, detail: bool) -> None:
        """Take several scalars of one step; ``detail`` marks per-layer values, which may be many."""

    def histograms(self, histograms: Sequence[Histogram], step: int) -> None:
        """Take several histograms of one step."""

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Take an encoded picture."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Take a page of text."""

    def flush(self) -> None:
        """Bring everything to disk."""


class Sinks:
    """All sinks of a run. One that fails is reported once and dropped; the run goes on."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = list(sinks)

    def __bool__(self) -> bool:
        """Whether anything would be shown; drawing a figure for nobody is a waste."""
        return bool(self._sinks)

    def scalars(self, values: Mapping[str, float], step: int, *, detail: bool = False) -> None:
        """Show scalars in every sink."""
        self._each(lambda sink: sink.scalars(values, step, detail=detail))

    def histograms(self, histograms: Sequence[Histogram], step: int) -> None:
        """Show histograms in every sink that can."""
        self._each(lambda sink: sink.histograms(histograms, step))

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Show a picture in every sink that can."""
        self._each(lambda sink: sink.image(tag, png, step))

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Show a page of text in every sink that can."""
        self._each(lambda sink: sink.text(tag, markdown, step))

    def flush(self) -> None:
        """Bring everything to disk."""
        self._each(lambda sink: sink.flush())

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                act(sink)
            except Exception as error:  # noqa: BLE001 - a logger's failure, of whatever kind, must not end the run
                self._sinks.remove(sink)
                log.warning("%s failed and is no longer written to: %s: %s", sink, type(error).__name__, error)
