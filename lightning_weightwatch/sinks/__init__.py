"""Where it goes: TensorBoard, other loggers, files. The only place that touches a logger's ``experiment``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_weightwatch.sinks._base import Histogram, Sink, Sinks, log
from lightning_weightwatch.sinks.metrics import MetricsSink
from lightning_weightwatch.sinks.tensorboard import TensorBoardSink, is_summary_writer

__all__ = ["Histogram", "Sink", "Sinks", "log", "open_sinks"]


def open_sinks(loggers: Sequence[Any]) -> Sinks:
    """Return one sink for each logger, of whatever make; call it on the process that logs.

    Loggers are told apart by what they hold, not by their class: a ``pytorch_lightning`` logger is not an instance of
    lightning's. The dummy that ``fast_dev_run`` puts in every logger's place gets nothing.
    """
    sinks: list[Sink] = []
    for logger in loggers:
        if any(c.__name__ == "DummyLogger" for c in type(logger).__mro__):
            continue
        try:
            experiment = getattr(logger, "experiment", None)
        except Exception as error:  # noqa: BLE001 - opening an experiment runs somebody else's code
            log.warning("%s could not be opened: %s: %s", type(logger).__name__, type(error).__name__, error)
            continue
        sinks.append(TensorBoardSink(experiment) if is_summary_writer(experiment) else MetricsSink(logger))
    return Sinks(sinks)
