"""Copies that arrive later than they were sent off, as on CUDA: one step later all is known, and nothing is lost.

A CPU has its copies at once. Here they are said not to be there before somebody waits for them.
"""

import contextlib
import datetime
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lightning_weightwatch import GradientHealthMonitor, WeightHistogramLogger, reduce
from lightning_weightwatch.callbacks import _governor
from lightning_weightwatch.callbacks._governor import Governor
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.parcel import Parcel
from lightning_weightwatch.rules import Rule
from tests.helpers import events, fits, nets, truth
from tests.helpers.strategies import FORKING_IS_FINE, Sharded, ShardedModel, replicated

pytestmark = FORKING_IS_FINE


class Late(Parcel):
    """Is there when somebody has waited for it."""

    at_once = False
    landed = False

    def wait(self) -> None:
        self.landed = True


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every copy of gradient norms arrive late."""
    monkeypatch.setattr("lightning_weightwatch.recorder.Parcel", Late)


class Witness:
    """A monitor that keeps its evidence, and at which step it looked at which steps."""

    def __init__(self, **arguments: Any) -> None:
        self.evidence: Evidence | None = None
        self.looks: list[tuple[int, int]] = []
        self._trainer: pl.Trainer | None = None
        arguments = {"every_n_steps": 3, "statistics_every_n_steps": 1, "max_overhead": None} | arguments
        self.monitor = GradientHealthMonitor(rules=[Rule("witness", self._look)], **arguments)

    def _look(self, evidence: Evidence) -> Iterator[Any]:
        self.evidence = evidence
        self.looks.append((self._trainer.global_step, evidence.steps[-1]))
        return iter(())

    def fit(self, net: Callable[[], pl.LightningModule], **options: Any) -> pl.LightningModule:
        """Train under it."""
        torch.manual_seed(0)
        model = net()
        torch.manual_seed(1)
        self._trainer = fits.trainer([self.monitor], **options)
        self._trainer.fit(model)
        assert not self.monitor.broken
        return model

    @property
    def steps(self) -> list[int]:
        return self.evidence.steps

    def everything(self) -> list[bytes]:
        """Return all that is known, to the bit."""
        found = self.evidence
        taken = [np.array([s.step, *np.concatenate(list(s.values.values()))]) for s in found.snapshots]
        return [np.asarray(a).tobytes() for a in (found.steps, found.norms, found.losses, found.clipped_norm, *taken)]


def test_it_knows_of_a_step_one_step_later(late: None) -> None:
    witness = Witness()
    witness.fit(nets.Net)
    assert witness.looks == [(4, 2), (7, 5), (10, 8), (13, 11), (16, 14), (16, 15)]


def test_a_copy_that_is_there_at_once_is_read_at_once() -> None:
    witness = Witness()
    witness.fit(nets.Net)
    assert witness.looks == [(3, 2), (6, 5), (9, 8), (12, 11), (15, 14), (16, 15)]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation over 3": {"accumulate_grad_batches": 3, "max_epochs": 5},
    "clipping": {"gradient_clip_val": 0.1},
    "one step": {"max_steps": 1, "max_epochs": -1},
    "ended by a flush": {"max_steps": 6, "max_epochs": -1},
    "ended after a flush": {"max_steps": 7, "max_epochs": -1},
}


@pytest.mark.parametrize("net", [nets.Net, nets.TwoOptimizers, nets.TurnsNaN], ids=lambda net: net.__name__)
@pytest.mark.parametrize("often", [1, 3, 100])
@pytest.mark.parametrize("options", ["plain", "ended by a flush", "ended after a flush"])
def test_in_the_end_it_knows_what_it_would_have_known_at_once(
    net: type, often: int, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, late = Witness(every_n_steps=often), Witness(every_n_steps=often)
    first = prompt.fit(net, **OPTIONS[options])
    monkeypatch.setattr("lightning_weightwatch.recorder.Parcel", Late)
    second = late.fit(net, **OPTIONS[options])
    assert late.everything() == prompt.everything()
    same = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in same)


@pytest.mark.parametrize("options", ["accumulation over 3", "clipping", "one step"])
def test_so_it_does_in_windows_under_clipping_and_in_a_run_of_one_step(
    options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, late = Witness(), Witness()
    prompt.fit(nets.Net, **OPTIONS[options])
    monkeypatch.setattr("lightning_weightwatch.recorder.Parcel", Late)
    late.fit(nets.Net, **OPTIONS[options])
    assert late.everything() == prompt.everything()


# --- runs that end badly ----------------------------------------------------------------------------------------------


def ends(exception: BaseException, at: int) -> type[pl.LightningModule]:
    class Ends(nets.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == at:
                raise exception
            return super().training_step(batch, batch_idx)

    return Ends


@pytest.mark.parametrize("at", range(1, 8))
def test_an_exception_loses_no_step_whatever_is_under_way(at: int, late: None) -> None:
    witness = Witness()
    with pytest.raises(ZeroDivisionError):
        witness.fit(ends(ZeroDivisionError(), at))
    assert witness.steps == list(range(at))


def test_ctrl_c_right_after_a_copy_was_sent_loses_no_step(late: None) -> None:
    witness, handler = Witness(), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            witness.fit(ends(KeyboardInterrupt(), 3))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert witness.steps == [0, 1, 2]


# --- parameters that arrive in mid-run --------------------------------------------------------------------------------


class Grows(nets.Net):
    """Gets another layer in mid-run."""

    at = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.at and not hasattr(self, "extra"):
            torch.manual_seed(2)
            self.extra = nn.Linear(3, 3)
            self.optimizers().optimizer.add_param_group({"params": list(self.extra.parameters())})

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return self.extra(out) if hasattr(self, "extra") else out


@pytest.mark.parametrize("at", range(1, 8))
def test_parameters_that_arrive_while_a_copy_is_under_way_lose_no_step(at: int, late: None) -> None:
    witness = Witness()
    witness.fit(type("GrowsThen", (Grows,), {"at": at}))
    names = [p.name for p in witness.evidence.parameters]
    assert witness.steps == list(range(16))
    assert not np.isnan(witness.evidence.losses).any()
    new = witness.evidence.norms[:, names.index("extra.weight")]
    assert np.isfinite(new).tolist() == [step >= at for step in range(16)]
    assert np.isfinite(witness.evidence.norms[:, names.index("head.weight")]).all()


class GrowsLate(Grows):
    at = 14


def test_parameters_that_arrive_shortly_before_the_end_cost_no_curve_its_last_point(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last snapshot is of fewer parameters, and its ratios were looked up at the places of the new ones."""
    monitor = GradientHealthMonitor(every_n_steps=5, statistics_every_n_steps=1, max_overhead=None)
    fits.fit(GrowsLate, [monitor], logger=TensorBoardLogger(tmp_path))
    assert "failed" not in caplog.text
    assert max(events.read(tmp_path).scalars("health/grad_norm_log10")) == 15


# --- acting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "found"), [(nets.TurnsNaN, 4)], ids=["NaN from step 3"])
@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
def test_stop_and_raise_come_one_step_later(
    net: type, found: int, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_late:
        monkeypatch.setattr("lightning_weightwatch.recorder.Parcel", Late)
    for action, end in (("stop", contextlib.nullcontext()), ("raise", pytest.raises(UnhealthyRunError))):
        monitor = GradientHealthMonitor(every_n_steps=2, action=action)
        trainer = fits.trainer([monitor])
        with end:
            trainer.fit(net())
        assert trainer.global_step == found + is_late
        assert [(f.rule, f.since_step, f.step) for f in monitor.findings] == [("non_finite_gradients", 3, 3)]


def test_an_illness_of_the_last_step_is_found_though_no_step_follows(late: None) -> None:
    class Last(nets.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 7 else 1.0)

    monitor = GradientHealthMonitor(every_n_steps=2)
    fits.fit(Last, [monitor], max_epochs=1)
    assert [(f.rule, f.since_step) for f in monitor.findings] == [("non_finite_gradients", 7), ("non_finite_loss", 7)]


def test_an_internal_error_is_told_once_and_switches_it_off(
    late: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(GradientHealthMonitor, "_record", lambda self, *_: setattr(self, "failure", KeyError("ours")))
    monitor = GradientHealthMonitor(every_n_steps=2)
    trainer = fits.trainer([monitor])
    trainer.fit(nets.Net())
    assert monitor.broken
    assert trainer.global_step == 16
    assert sum("ours" in r.getMessage() for r in caplog.records) == 1


# --- two processes ----------------------------------------------------------------------------------------------------


class Scribe(GradientHealthMonitor):
    """Writes down what each process did at which step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.diary: dict[str, Any] = {"acted": None, "strides": [], "broken": [], "steps": []}
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        super().on_train_batch_end(trainer, *arguments)
        self.diary["strides"].append(self._fit.governor.stride)
        self.diary["broken"].append(self.broken)
        self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        evidence = self._fit.memory.evidence
        self.diary["steps"] = evidence.steps
        self.diary["losses"] = [None if np.isnan(loss) else loss for loss in evidence.losses]
        self._write(trainer)

    def _land(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            super()._land(trainer, pl_module)
        finally:
            if self.diary["acted"] is None and any(f.severity == "critical" for f in self.findings):
                self.diary["acted"] = trainer.global_step
                self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}").write_text(json.dumps(self.diary))


class IllCopy(truth.Model):
    """Its loss is NaN from step 5 on."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (float("nan") if self.trainer.global_step >= 5 else 1.0)


class IllShard(ShardedModel, IllCopy):
    """The same in shards."""


ILL = {"DDP": (IllCopy, replicated), "FSDP2": (IllShard, lambda: Sharded(2))}
WELL = {"DDP": (truth.Model, replicated), "FSDP2": (ShardedModel, lambda: Sharded(2))}


def diaries(folder: Path, model: type, make: Callable[[], Any], **arguments: Any) -> list[dict[str, Any]]:
    """Train 24 steps on two processes; return what each wrote down."""
    options = {"devices": 2, "max_epochs": 2, "use_distributed_sampler": False, "default_root_dir": folder}
    arguments = {"every_n_steps": 3, "statistics_every_n_steps": 1} | arguments
    fits.trainer([Scribe(**arguments)], strategy=make(), **options).fit(model())
    return written(folder)


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}").read_text()) for rank in range(2)]


@pytest.mark.parametrize("strategy", WELL)
def test_late_copies_lose_no_step_on_any_process(strategy: str, late: None, tmp_path: Path) -> None:
    for diary in diaries(tmp_path, *WELL[strategy]):
        assert diary["steps"] == list(range(24))
        assert not any(diary["broken"])


@pytest.mark.parametrize("strategy", ILL)
def test_stop_comes_one_step_later_on_both_processes(strategy: str, late: None, tmp_path: Path) -> None:
    for diary in diaries(tmp_path, *ILL[strategy], action="stop"):
        assert (diary["acted"], diary["steps"]) == (7, list(range(7)))


@pytest.mark.parametrize("strategy", ILL)
def test_raise_comes_one_step_later_on_both_processes(strategy: str, late: None, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="non_finite_loss"):
        diaries(tmp_path, *ILL[strategy], action="raise")
    assert [diary["acted"] for diary in written(tmp_path)] == [7, 7]


@pytest.mark.parametrize("strategy", WELL)
@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
def test_the_stride_changes_in_the_same_step_on_both_processes(
    strategy: str, is_late: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Governor, "take", lambda _: (4.0, 100.0))  # the second flush goes beyond what is let pass
    if is_late:
        monkeypatch.setattr("lightning_weightwatch.recorder.Parcel", Late)
    told = diaries(tmp_path, *WELL[strategy])
    assert told[0] == told[1]
    assert told[0]["strides"] == [1] * (5 + is_late) + [4] * (19 - is_late)
    assert told[0]["steps"] == [*range(6 + is_late), 8, 12, 16, 20]


class FailsOnOneRank(Scribe):
    """Has a bug that only the second process meets, at step 4."""

    def _record(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 4:
            self.failure = RuntimeError("a bug of ours")
        else:
            super()._record(trainer, *arguments)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left to be told."""


@pytest.mark.parametrize("strategy", WELL)
def test_a_failure_of_one_process_switches_both_off_in_the_same_step(strategy: str, late: None, tmp_path: Path) -> None:
    options = {"devices": 2, "max_epochs": 2, "use_distributed_sampler": False, "default_root_dir": tmp_path}
    model, make = WELL[strategy]
    fits.trainer([FailsOnOneRank(every_n_steps=3)], strategy=make(), **options).fit(model())
    assert [diary["broken"] for diary in written(tmp_path)] == [[False] * 6 + [True] * 18] * 2


class Lacks(truth.Model):
    """A bias that DDP is told to leave alone has no gradient on the second process."""

    def __init__(self) -> None:
        super().__init__()
        self._ddp_params_and_buffers_to_ignore = ["net.4.bias"]

    def on_after_backward(self) -> None:
        if self.global_rank == 1:
            self.net[4].bias.grad = None


def test_a_gradient_that_one_process_lacks_stops_nobody(late: None, tmp_path: Path) -> None:
    for diary in diaries(tmp_path, Lacks, replicated):
        assert diary["steps"] == list(range(24))
        assert not any(diary["broken"])


@pytest.fixture
def slow_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass but in waiting for the other process, ten seconds each time."""
    now, exchange = [0.0], reduce.exchange

    def slow(*arguments: Any) -> Any:
        now[0] += 10.0
        return exchange(*arguments)

    monkeypatch.setattr(_governor, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(reduce, "exchange", slow)


@pytest.mark.parametrize("strategy", WELL)
def test_waiting_for_the_other_process_is_no_work(strategy: str, slow_peer: None, tmp_path: Path) -> None:
    """Where the other was slower, its slowness was told to be the monitor's, and less was measured for it."""
    for diary in diaries(tmp_path, *WELL[strategy]):
        assert set(diary["strides"]) == {1}


class Counts(WeightHistogramLogger):
    """Writes down how often it logs in the end."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}").write_text(str(self._fit.histograms.stride))
        super().on_train_end(trainer, pl_module)


def test_waiting_for_the_other_process_thins_no_histograms(slow_peer: None, tmp_path: Path) -> None:
    """As above, where shards are counted together."""
    model, make = WELL["FSDP2"]
    options = {"devices": 2, "max_epochs": 1, "use_distributed_sampler": False, "default_root_dir": tmp_path}
    fits.trainer([Counts(every_n_steps=1)], strategy=make(), **options).fit(model())
    assert written(tmp_path) == [1, 1]


class SkipsAStep(truth.Model):
    """Its second process leaves out one step of its optimizer, which DDP does not mind."""

    at = 5

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        if self.global_rank == 0 or batch_idx != self.at:
            optimizer.step()


def impatient() -> DDPStrategy:
    """Return DDP that takes a few seconds of silence for a hang."""
    return DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=datetime.timedelta(seconds=4))


class SkipsTheFirst(SkipsAStep):
    at = 0


@pytest.mark.parametrize("model", [SkipsAStep, SkipsTheFirst])
def test_a_step_that_one_process_leaves_out_leaves_nobody_waiting(model: type, tmp_path: Path) -> None:
    """The other process flushed a batch earlier, or made itself ready alone, and both waited in different calls."""
    own, other = diaries(tmp_path, model, impatient)
    assert own["steps"] == list(range(24))
    assert other["steps"] == [step for step in range(24) if step % 12 != model.at]
    options = {"devices": 2, "max_epochs": 1, "use_distributed_sampler": False, "default_root_dir": tmp_path}
    fits.trainer([WeightHistogramLogger(every_n_steps=1)], strategy=impatient(), **options).fit(model())


def test_losses_after_a_step_that_one_process_leaves_out_are_those_of_their_steps(tmp_path: Path) -> None:
    """Rows were merged by their order, so that the loss of one step was averaged with that of the next."""
    diaries(tmp_path, SkipsAndNotes, impatient, max_overhead=None)
    own = [json.loads((tmp_path / f"own{rank}").read_text()) for rank in range(2)]
    expected = [float("nan") if i % 12 == 5 else float(np.mean(both)) for i, both in enumerate(zip(*own, strict=True))]
    told = [float("nan") if loss is None else loss for loss in written(tmp_path)[0]["losses"]]
    assert told == pytest.approx(expected, rel=1e-6, nan_ok=True)


class SkipsAndNotes(SkipsAStep):
    """Writes down each loss of its own process."""

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.own = [*getattr(self, "own", []), loss.item()]
        super().manual_backward(loss, *args, **kwargs)

    def on_train_end(self) -> None:
        (Path(self.trainer.default_root_dir) / f"own{self.global_rank}").write_text(json.dumps(self.own))


@pytest.mark.parametrize("at", [0, 5])
def test_full_statistics_that_one_process_has_not_begun_leave_nobody_waiting(at: int, tmp_path: Path) -> None:
    """The copies of the weights travelled with them, so that processes merged blocks of different sizes."""
    model = type("SkipsOne", (SkipsAStep,), {"at": at})
    arguments = {"every_n_steps": 1, "statistics_every_n_steps": 5, "max_overhead": None}
    own, other = diaries(tmp_path, model, impatient, **arguments)
    assert own["steps"] == list(range(24))
    assert not any([*own["broken"], *other["broken"]])
