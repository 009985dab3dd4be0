"""What made trainings slow, files large and processes leak under other monitors; what must never happen here."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib as mpl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib._pylab_helpers import Gcf
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lightning_weightwatch import GradientHealthMonitor, WeightHistogramLogger, recorder, watch
from lightning_weightwatch.callbacks import _governor
from lightning_weightwatch.parameters import describe, named_tensors
from lightning_weightwatch.parcel import Parcel
from lightning_weightwatch.stats import norm
from tests.helpers import events, fits, nets
from tests.never.listening import Operations, none_is_broken, remembered, surround

# Operations whose result a CPU must wait for before it can go on.
WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal")


# --- waiting for the device -------------------------------------------------------------------------------------------


def test_a_step_between_two_flushes_reads_no_number_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one number in each step costs as long as the device is busy."""
    monkeypatch.setattr(norm, "_norms_on_cpu", norm._norms)  # on a CPU looking is free; elsewhere nobody looks
    monitor = GradientHealthMonitor(every_n_steps=4, max_overhead=None)
    heard: Counter = Counter()
    reads: list[tuple[int, str]] = []

    @contextmanager
    def around(step: int, hook: str) -> Iterator[None]:
        def note(operation: str, *_: Any) -> None:
            heard[hook] += 1
            if operation.startswith(WAITING):
                reads.append((step, hook))

        with Operations(note):
            yield

    surround(monitor, around)
    fits.fit(nets.Net, [monitor], gradient_clip_val=0.1)
    assert not monitor.broken
    assert min(heard[hook] for hook in ("on_before_backward", "on_before_optimizer_step", "_after_step")) > 0
    assert [read for read in reads if read[0] % 4 != 3] == []


def test_off_the_cpu_a_step_brings_nothing_to_the_host_and_nothing_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors stand in for those of a GPU: whatever asks for one of their numbers fails."""
    monkeypatch.setattr(recorder, "unmeasurable", lambda _: None)
    module, moved = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).to("meta"), []
    optimizer, device = torch.optim.SGD(module.parameters()), torch.device("meta")
    for parameter in module.parameters():
        parameter.grad = torch.empty_like(parameter)
    mine = recorder.GradientRecorder(describe(module), named_tensors(module), rows=4, sharded=False, clipping=True)

    def note(operation: str, arguments: tuple[Any, ...], result: Any) -> None:
        copies = "copy" in operation  # elsewhere a scalar of the host is an argument, not a copy
        tensors = [t for t in (*arguments, result) if isinstance(t, Tensor) and (copies or t.dim())]
        if any(t.device != device for t in tensors):
            moved.append(operation)

    def step(number: int) -> None:
        loss, scale = torch.empty((), device=device), torch.empty((), device=device)
        mine.add(number, optimizer, mine.gradients(optimizer), scale=scale, loss=loss)
        mine.before_step(optimizer)
        mine.after_step(number, optimizer, mine.gradients(optimizer))

    step(0)  # where parameters stand in a row is brought to the device once
    with Operations(note):
        step(1)
        step(2)
    assert moved == []


def test_a_flush_is_one_copy_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    make = Parcel.__init__

    def counted(self: Parcel, tensors: Any, dtype: Any) -> None:
        sent.append(len(tensors))
        make(self, tensors, dtype)

    monkeypatch.setattr(Parcel, "__init__", counted)
    monitor = GradientHealthMonitor(every_n_steps=4, statistics_every_n_steps=8, max_overhead=None)
    fits.fit(nets.Net, [monitor])
    assert len(sent) == 16 // 4 + 1  # and one at the end of the fit


# --- the share of the time --------------------------------------------------------------------------------------------


class Clock:
    """Goes on by a second whenever it is looked at, so that what we do takes seconds and what others do takes none."""

    def __init__(self) -> None:
        self._seconds = count()

    def perf_counter(self) -> float:
        return float(next(self._seconds))


def test_a_watcher_that_costs_too_much_does_not_go_on_so_nor_thins_itself_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(_governor, "time", Clock())
    monitor, seen = remembered(every_n_steps=2, max_overhead=0.05)
    logger = WeightHistogramLogger(every_n_steps=1, figures=0, max_overhead=0.05)
    options = {"logger": TensorBoardLogger(tmp_path), "max_epochs": 6}
    watched = fits.fit(nets.Net, [monitor, logger], **options)
    said = capsys.readouterr().out
    for name in ("GradientHealthMonitor", "WeightHistogramLogger"):
        assert f"weightwatch: {name} took " in said
    assert 2 < len(seen[-1].steps) < 24
    points = events.read(tmp_path).histograms("health.weight_hist/00 body.0.weight")
    assert 2 < len(points) < 24
    plain = fits.fit(nets.Net, max_epochs=6)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), watched.parameters(), strict=True))


# --- histograms -------------------------------------------------------------------------------------------------------


class Pokes(nets.Net):
    """After three steps one element of a weight becomes an odd number."""

    number = float("nan")

    def poke(self, weight: Tensor) -> None:
        weight[0, 0] = self.number

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 3:
            with torch.no_grad():
                self.poke(self.body[3].weight)


class PokesInf(Pokes):
    number = float("-inf")


class PokesOutlier(Pokes):
    number = 1e30


class PokesAll(Pokes):
    def poke(self, weight: Tensor) -> None:
        weight.fill_(self.number)


def histograms_of(net: type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> events.Events:
    """Train, with torch's own histograms out of reach; return what was logged."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch's own histogram raises on NaN and makes as many bins as it likes")

    monkeypatch.setattr(SummaryWriter, "add_histogram", refuse)
    monkeypatch.setattr(SummaryWriter, "add_histogram_raw", refuse)
    watchers = [WeightHistogramLogger(every_n_steps=1, figures=0, max_overhead=None)]
    fits.fit(net, watchers, logger=TensorBoardLogger(folder), max_epochs=1)
    assert none_is_broken(watchers)
    return events.read(folder)


TAG = "02 body.3.weight"


@pytest.mark.parametrize("net", [Pokes, PokesInf])
def test_one_nan_neither_ends_the_run_nor_spoils_the_histogram_nor_hides(
    net: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = histograms_of(net, tmp_path, monkeypatch)
    shown = seen.histograms(f"health.weight_hist/{TAG}")
    assert sorted(shown)[:4] == [0, 1, 2, 3]
    for step in range(4):
        assert np.isfinite([shown[step].min, shown[step].max, shown[step].sum, shown[step].sum_squares]).all()
        assert shown[step].num == pytest.approx(256 - (step == 3))
    assert seen.scalars(f"health.weight_nonfinite/{TAG}")[3] == 1


def test_weights_that_are_all_nan_do_not_end_the_run_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = histograms_of(PokesAll, tmp_path, monkeypatch)
    assert sorted(seen.histograms(f"health.weight_hist/{TAG}")) == [0, 1, 2]
    assert seen.scalars(f"health.weight_nonfinite/{TAG}")[3] == 256


def test_an_outlier_makes_no_more_bins_and_moves_no_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = histograms_of(PokesOutlier, tmp_path, monkeypatch).histograms(f"health.weight_hist/{TAG}")
    for step in range(4):
        assert len(shown[step].bucket) <= 64
        assert shown[step].num == pytest.approx(256)
    assert shown[3].bucket_limit[0] == pytest.approx(shown[0].bucket_limit[0], abs=0.1)
    assert shown[3].max < 1


class Decays(nets.Net):
    """Weights that shrink by half in each step, as weight decay makes them do in the long run."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(0.5)


def test_weights_that_shrink_do_not_make_ever_more_bins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = histograms_of(Decays, tmp_path, monkeypatch).histograms(f"health.weight_hist/{TAG}")
    assert len(shown) == 9
    assert max(len(point.bucket) for point in shown.values()) <= 64


# --- files, writers, figures ------------------------------------------------------------------------------------------


def test_no_second_writer_and_no_figure_of_pyplots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = SummaryWriter.__init__

    def counted(self: SummaryWriter, *arguments: Any, **named: Any) -> None:
        made.append(arguments)
        make(self, *arguments, **named)

    monkeypatch.setattr(SummaryWriter, "__init__", counted)
    figures, backend = set(Gcf.figs), mpl.rcParams._get_backend_or_none()
    watchers = watch(seed=1)
    fits.fit(nets.TurnsNaN, watchers, logger=TensorBoardLogger(tmp_path), max_epochs=4)
    assert none_is_broken(watchers)
    assert len(made) == 1
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1
    assert set(Gcf.figs) == figures
    assert mpl.rcParams._get_backend_or_none() == backend


class Dies(nets.TurnsNaN):
    """Raises after an illness was told."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 12:
            raise ZeroDivisionError
        return super().training_step(batch, batch_idx)


class Looks(pl.Callback):
    """Is asked first when a run fails, and knows what the last flush of the event file had brought to disk."""

    def __init__(self) -> None:
        self.flushed = self.told = ""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.told = self.flushed


def test_the_verdict_that_explains_a_crash_is_not_lost_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, flush = Looks(), SummaryWriter.flush

    def flushed(writer: SummaryWriter) -> None:
        flush(writer)
        looks.flushed = "".join(events.read(tmp_path).text("health/findings").values())

    monkeypatch.setattr(SummaryWriter, "flush", flushed)
    options = {"logger": TensorBoardLogger(tmp_path), "log_every_n_steps": 1000}  # Lightning flushes when it logs
    with pytest.raises(ZeroDivisionError):
        fits.fit(Dies, [looks, *watch(seed=1)], **options)
    assert "gradients" in looks.told
