"""Which logger gets what, and what happens when one fails."""

import csv
import logging

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_weightwatch.sinks import Histogram, Sinks, open_sinks
from tests.helpers.events import read


class Notes:
    """A sink, and a logger, that writes down what it is given and fails where it is told to."""

    def __init__(self, fails=()):
        self.fails, self.heard = fails, []

    def __getattr__(self, name):
        if name.startswith("_") or name == "experiment":
            raise AttributeError(name)

        def note(*arguments, **options):
            if name in self.fails:
                raise ConnectionError("server gone")
            self.heard.append((name, *arguments, *options.values()))

        return note


class Locked(Notes):
    @property
    def experiment(self):
        raise PermissionError("no key")


HISTOGRAM = Histogram("h", np.array([0.0, 1.0]), np.array([1.0]))


def show_everything(sinks):
    sinks.scalars({"a": 1.0}, 0)
    sinks.scalars({"b": 2.0}, 0, detail=True)
    sinks.histograms([HISTOGRAM], 0)
    sinks.image("i", b"", 0)
    sinks.text("t", "words", 0)
    sinks.flush()


EVERYTHING = ["scalars", "scalars", "histograms", "image", "text", "flush"]


def test_every_sink_gets_everything():
    sinks = [Notes(), Notes()]
    show_everything(Sinks(sinks))
    assert [[act for act, *_ in sink.heard] for sink in sinks] == [EVERYTHING] * 2


@pytest.mark.parametrize("method", ["scalars", "histograms", "image", "text", "flush"])
def test_a_sink_that_fails_is_reported_once_and_dropped_and_the_others_go_on(caplog, method):
    bad, good = Notes([method]), Notes()
    sinks = Sinks([bad, good])
    for _ in range(3):
        show_everything(sinks)
    assert [act for act, *_ in good.heard] == EVERYTHING * 3
    assert [act for act, *_ in bad.heard] == EVERYTHING[: EVERYTHING.index(method)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "failed and is no longer written to: ConnectionError: server gone" in record.message


def test_nobody_to_show_to_is_false_so_that_nothing_is_drawn():
    assert not Sinks()
    assert Sinks([Notes()])
    last = Sinks([Notes(["flush"])])
    last.flush()
    assert not last
    show_everything(last)


def test_the_dummy_of_fast_dev_run_gets_nothing():
    assert not open_sinks([DummyLogger()])
    assert not open_sinks([type("Mine", (DummyLogger,), {})()])
    assert not open_sinks([])


@pytest.mark.parametrize("logger", [Notes(), type("None", (Notes,), {"experiment": None})()], ids=["without", "None"])
def test_a_logger_without_an_experiment_gets_summary_scalars_only(logger):
    show_everything(open_sinks([logger]))
    assert logger.heard == [("log_metrics", {"a": 1.0}, 0), ("save",)]


def test_a_logger_that_cannot_be_opened_is_named_and_the_others_go_on(caplog):
    good = Notes()
    show_everything(open_sinks([Locked(), good]))
    assert good.heard[0] == ("log_metrics", {"a": 1.0}, 0)
    assert [record.message for record in caplog.records] == ["Locked could not be opened: PermissionError: no key"]


def test_a_csv_file_gets_only_summary_scalars(tmp_path):
    logger = CSVLogger(tmp_path)
    show_everything(open_sinks([logger]))
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:  # noqa: PTH123
        assert list(csv.DictReader(file)) == [{"a": "1.0", "step": "0"}]


def test_a_tensorboard_logger_gets_everything(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    sinks = open_sinks([logger])
    sinks.scalars({"a": 1.0}, 0)
    sinks.scalars({"b": 2.0}, 0, detail=True)
    sinks.histograms([HISTOGRAM], 0)
    sinks.text("t", "words", 0)
    sinks.flush()
    assert read(tmp_path).all_tags() >= {"a", "b", "h", "t"}
    logger.experiment.close()


def test_two_loggers_of_different_make_each_get_theirs(tmp_path):
    notes, board = Notes(), TensorBoardLogger(tmp_path)
    sinks = open_sinks([notes, board])
    sinks.scalars({"a": 1.0}, 4)
    sinks.flush()
    assert notes.heard[0] == ("log_metrics", {"a": 1.0}, 4)
    assert read(tmp_path).scalars("a") == {4: 1.0}
    board.experiment.close()
