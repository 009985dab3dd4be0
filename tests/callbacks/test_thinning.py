"""Watching that has become too expensive: less is measured, it is said, and what is measured stays true.

The seconds are made up: nothing here is timed.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_weightwatch import GradientHealthMonitor, WeightHistogramLogger
from lightning_weightwatch.callbacks._governor import Governor
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules import Rule
from tests.helpers import events, fits, nets

CHEAP, FOUR_TIMES = (0.0, 1000.0), (400.0, 10000.0)


class Seconds:
    """Makes up what governors measure: so often as given something expensive, then nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left: list[tuple[float, float]] = []
        monkeypatch.setattr(Governor, "take", lambda _: self._left.pop(0) if self._left else CHEAP)

    def are(self, *stretches: tuple[float, float]) -> None:
        """Say what the next stretches cost; the first is asked for before the training."""
        self._left = [CHEAP, *stretches]


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    return Seconds(monkeypatch)


class Witness:
    """A monitor that keeps its evidence, and the steps at which it looked."""

    def __init__(self, **arguments: Any) -> None:
        self.evidence: Evidence | None = None
        self.looks: list[int] = []
        arguments = {"every_n_steps": 2, "statistics_every_n_steps": 1} | arguments
        self.monitor = GradientHealthMonitor(rules=[Rule("witness", self._look)], **arguments)

    def _look(self, evidence: Evidence) -> Iterator[Any]:
        self.evidence = evidence
        self.looks.append(evidence.steps[-1])
        return iter(())

    @property
    def steps(self) -> list[int]:
        assert self.evidence is not None
        return self.evidence.steps

    def table(self) -> dict[int, tuple[bytes, ...]]:
        """Return everything that is known of each step, to the bit."""
        found, rows = self.evidence, range(len(self.steps))
        assert found is not None
        columns = (found.norms, found.losses, found.clipped_norm)
        return {self.steps[i]: tuple(column[i].tobytes() for column in columns) for i in rows}


def witnessed(net: type, *, witness: Witness | None = None, **options: Any) -> Witness:
    witness = witness or Witness()
    fits.fit(net, [witness.monitor], **{"max_epochs": 6} | options)
    assert not witness.monitor.broken
    return witness


# --- the monitor ------------------------------------------------------------------------------------------------------


def test_every_fourth_step_is_measured_and_read_a_quarter_as_often(seconds: Seconds) -> None:
    seconds.are(FOUR_TIMES)
    seen = witnessed(nets.Net)
    assert seen.steps == [0, 1, *range(4, 48, 4)]
    assert seen.looks == [1, 8, 16, 24, 32, 40, 44]


def test_it_says_so_once_for_every_change(seconds: Seconds, capsys: pytest.CaptureFixture) -> None:
    seconds.are(FOUR_TIMES, CHEAP, FOUR_TIMES)
    seen = witnessed(nets.Net, max_epochs=12)
    said = [line for line in capsys.readouterr().out.splitlines() if "max_overhead" in line]
    words = (
        "weightwatch: GradientHealthMonitor took {} of the time, more than max_overhead=1.0%. From step {} on one step"
    )
    assert said == [
        f"{words.format('4.0%', 2)} in 4 is measured.",
        f"{words.format('3.6%', 18)} in 16 is measured.",
    ]
    assert seen.steps == [0, 1, 4, 8, 12, 16, *range(32, 96, 16)]


def test_a_cheap_monitor_says_nothing_and_measures_every_step(seconds: Seconds, capsys: pytest.CaptureFixture) -> None:
    seconds.are()
    assert witnessed(nets.Net).steps == list(range(48))
    assert capsys.readouterr().out == ""


class Window(nets.Net):
    """A network whose losses differ, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh())


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation over 3": {"accumulate_grad_batches": 3, "max_epochs": 16},
    "clipping": {"gradient_clip_val": 0.1},
    "accumulation and clipping": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_epochs": 12},
    "bfloat16": {"precision": "bf16-mixed"},
}


AUTOMATIC = [(net, options) for net in (nets.Net, Window, nets.TurnsNaN) for options in OPTIONS]


@pytest.mark.parametrize(("net", "options"), [*AUTOMATIC, (nets.TwoOptimizers, "plain")])
def test_what_is_measured_is_what_is_measured_of_these_steps_without_thinning(
    net: type, options: str, seconds: Seconds
) -> None:
    """Norms, losses and clipping, to the bit, each at its own step."""
    every = witnessed(net, **OPTIONS[options]).table()
    seconds.are(FOUR_TIMES)
    some = witnessed(net, **OPTIONS[options]).table()
    assert len(some) < len(every) / 2
    assert some == {step: every[step] for step in some}
    assert list(some) == [step for step in every if step < 2 or step % 4 == 0]


def test_training_is_bit_identical_while_it_thins(seconds: Seconds, tmp_path: Path) -> None:
    plain = fits.fit(nets.Net, max_epochs=6)
    seconds.are(FOUR_TIMES, FOUR_TIMES, CHEAP, FOUR_TIMES)
    watchers = [GradientHealthMonitor(every_n_steps=1), WeightHistogramLogger(every_n_steps=1)]
    watched = fits.fit(nets.Net, watchers, max_epochs=6, logger=TensorBoardLogger(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_snapshots_still_come_each_of_a_measured_step_and_in_full(seconds: Seconds) -> None:
    seconds.are(FOUR_TIMES)
    seen = witnessed(nets.Net)
    found = seen.evidence.snapshots
    assert len(found) >= 6
    assert {s.step for s in found} <= set(seen.steps)
    assert all(np.isfinite(s.values[key]).all() for s in found for key in ("grad_norm", "weight_norm", "update_norm"))


def test_an_illness_is_still_found_and_dated_by_a_measured_step(seconds: Seconds) -> None:
    seconds.are(FOUR_TIMES)
    monitor = GradientHealthMonitor(every_n_steps=2)
    fits.fit(nets.TurnsNaN, [monitor], max_epochs=6)
    assert [(f.rule, f.since_step) for f in monitor.findings] == [("non_finite_gradients", 4), ("non_finite_loss", 4)]


def test_an_illness_of_the_first_step_is_found_however_small_the_share(seconds: Seconds) -> None:
    class Ill(nets.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * float("nan")

    seconds.are(*[FOUR_TIMES] * 100)
    monitor = GradientHealthMonitor(every_n_steps=1, max_overhead=1e-9)
    fits.fit(Ill, [monitor], max_epochs=2)
    assert [(f.rule, f.since_step, f.step) for f in monitor.findings] == [
        ("non_finite_gradients", 0, 0),
        ("non_finite_loss", 0, 0),
    ]


class IllLate(nets.Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (float("nan") if self.trainer.global_step >= 20 else 1.0)


@pytest.mark.parametrize(
    ("action", "end"), [("stop", contextlib.nullcontext()), ("raise", pytest.raises(UnhealthyRunError))]
)
def test_a_thinned_monitor_still_acts_at_the_flush_that_finds_it(action: Any, end: Any, seconds: Seconds) -> None:
    seconds.are(FOUR_TIMES)
    trainer = fits.trainer([GradientHealthMonitor(every_n_steps=2, action=action)], max_epochs=6)
    with end:
        trainer.fit(IllLate())
    assert trainer.global_step == 26


def test_without_a_limit_two_runs_leave_the_same_evidence_to_the_byte(seconds: Seconds) -> None:
    tables = []
    for stretches in ([FOUR_TIMES] * 40, []):
        seconds.are(*stretches)
        tables.append(witnessed(nets.Net, witness=Witness(max_overhead=None)).table())
    assert tables[0] == tables[1]
    assert list(tables[0]) == list(range(48))


def logged(folder: Path) -> dict[str, dict[int, float]]:
    found = events.read(folder)
    return {tag: found.scalars(tag) for tag in found.tags("scalars")}


def test_without_a_limit_two_runs_leave_the_same_log(seconds: Seconds, tmp_path: Path) -> None:
    """``max_overhead=None`` promises a reproducible log, in which the share of the time was drawn all the same."""
    for name, stretches in (("a", [FOUR_TIMES] * 40), ("b", [])):
        seconds.are(*stretches)
        options = {"logger": TensorBoardLogger(tmp_path / name), "max_epochs": 6}
        fits.fit(nets.Net, [GradientHealthMonitor(max_overhead=None)], **options)
    assert logged(tmp_path / "a") == logged(tmp_path / "b")


def test_the_share_of_the_time_is_logged(seconds: Seconds, tmp_path: Path) -> None:
    seconds.are(*[(5.0, 1000.0)] * 10)
    fits.fit(nets.Net, [GradientHealthMonitor()], logger=TensorBoardLogger(tmp_path), max_epochs=6)
    curve = events.read(tmp_path).scalars("health/overhead_share")
    assert set(np.round(list(curve.values()), 6)) == {0.005}


class Grows(nets.Net):
    """Gets another layer before its fifth step."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 5:
            self.extra = nn.Linear(3, 3)
            self.optimizers().optimizer.add_param_group({"params": list(self.extra.parameters())})

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return self.extra(out) if hasattr(self, "extra") else out


def test_parameters_that_arrive_where_no_measured_step_follows_cost_no_curve_its_last_point(
    seconds: Seconds, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The page made for them was shown at the end, and had nothing to show."""
    seconds.are((1000.0, 1000.0))  # asked for when they arrive
    fits.fit(Grows, [GradientHealthMonitor()], logger=TensorBoardLogger(tmp_path), max_epochs=1)
    assert "failed" not in caplog.text
    assert max(events.read(tmp_path).scalars("health/grad_norm_log10"), default=0) == 4


# --- optimizers that do not step on every batch -----------------------------------------------------------------------


class ByHand(nets.Net):
    """Accumulates over two batches by hand, as Lightning's documentation shows it; its loss is NaN from batch 24 on."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, self.seen = self.optimizers(), self.seen + 1
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1]) / 2
        self.manual_backward(loss * (float("nan") if self.seen > 24 else 1.0))
        if (batch_idx + 1) % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()


def test_an_optimizer_that_steps_on_every_second_batch_is_still_measured(seconds: Seconds) -> None:
    """It stepped on odd steps, of which no multiple of the stride is one: nothing was measured, or said, ever again."""
    seconds.are(FOUR_TIMES)
    seen = witnessed(ByHand, max_epochs=8)
    assert len(seen.steps) > 2 + 4
    assert seen.steps[-1] > 40


def test_an_illness_of_an_optimizer_that_steps_on_every_second_batch_is_still_found(seconds: Seconds) -> None:
    """As above; a run that was all NaN was told to be healthy."""
    seconds.are(FOUR_TIMES)
    monitor = GradientHealthMonitor(every_n_steps=2)
    fits.fit(ByHand, [monitor], max_epochs=8)
    assert [f.rule for f in monitor.findings] == ["non_finite_gradients", "non_finite_loss"]


class Rarely(nets.TwoOptimizers):
    """Its second optimizer steps on batches that leave a rest."""

    every, rest = 2, 1

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for i, optimizer in enumerate(self.optimizers()):
            if i == 0 or batch_idx % self.every == self.rest:
                optimizer.zero_grad()
                self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
                optimizer.step()


def test_the_rarer_of_two_optimizers_is_still_measured(seconds: Seconds, capsys: pytest.CaptureFixture) -> None:
    """A generator that steps on odd batches was not measured any more, and nobody said so."""
    seconds.are(FOUR_TIMES)
    seen = witnessed(Rarely, max_epochs=8)
    head = [p.name for p in seen.evidence.parameters].index("head.weight")
    last = np.flatnonzero(np.isfinite(seen.evidence.norms[:, head]))[-1]
    assert seen.steps[last] > 40 or "head.weight" in capsys.readouterr().out


class Fourth(Rarely):
    every, rest = 4, 0


def test_an_optimizer_that_never_steps_before_a_flush_has_statistics_too() -> None:
    """Statistics were taken of the last step before a flush alone, and the other optimizer steps on other steps."""
    seen = witnessed(Fourth, witness=Witness(every_n_steps=4))
    head = [p.name for p in seen.evidence.parameters].index("head.weight")
    assert np.isfinite([s.values["grad_norm"][head] for s in seen.evidence.snapshots]).any()


# --- histograms and pictures ------------------------------------------------------------------------------------------

WEIGHT, GRADIENT = "health.weight_hist/00 body.0.weight", "health.grad_log10_hist/00 body.0.weight"
PICTURE = "health.fig_weight/00 body.0.weight"


def shown(folder: Path, *, net: type = nets.Net, **arguments: Any) -> tuple[list[int], list[int], list[int]]:
    """Train for 48 steps; return the steps of the weights' and the gradients' histograms, and of the pictures."""
    logger = WeightHistogramLogger(**{"every_n_steps": 1, "figures": 1} | arguments)
    fits.fit(net, [logger], logger=TensorBoardLogger(folder), max_epochs=6)
    assert not logger.broken
    found = events.read(folder)
    return sorted(found.histograms(WEIGHT)), sorted(found.histograms(GRADIENT)), sorted(found.images(PICTURE))


def test_histograms_of_all_steps_and_all_pictures_where_they_cost_nothing(seconds: Seconds, tmp_path: Path) -> None:
    seconds.are()
    weights, gradients, pictures = shown(tmp_path)
    assert (weights, gradients) == (list(range(49)), list(range(48)))
    assert pictures == [0, 10, 20, 30, 40, 48]


def test_histograms_are_thinned_gradients_with_their_weights(seconds: Seconds, tmp_path: Path) -> None:
    seconds.are(FOUR_TIMES)
    weights, gradients, _ = shown(tmp_path)
    assert weights == [*gradients, 48]
    assert gradients == [0, *range(1, 48, 4)]


def test_pictures_that_are_not_paid_for_are_not_drawn_but_the_first_and_the_last_are(
    seconds: Seconds, tmp_path: Path
) -> None:
    seconds.are(*[(10.0, 1000.0 - 1e-3)] * 200)  # never enough for a change, never paid
    _, _, pictures = shown(tmp_path)
    assert pictures == [0, 48]


def test_pictures_come_back_once_they_are_paid_for(seconds: Seconds, tmp_path: Path) -> None:
    seconds.are(*[(3.0, 10.0)] + [(0.0, 10.0)] * 28)  # paid for around step 14
    _, _, pictures = shown(tmp_path)
    assert pictures == [0, 20, 30, 40, 48]


def test_without_a_limit_histograms_and_pictures_keep_their_steps(seconds: Seconds, tmp_path: Path) -> None:
    seconds.are(*[FOUR_TIMES] * 200)
    weights, gradients, pictures = shown(tmp_path, max_overhead=None)
    assert (weights, gradients) == (list(range(49)), list(range(48)))
    assert pictures == [0, 10, 20, 30, 40, 48]


def test_the_logger_says_once_how_often_it_still_logs(
    seconds: Seconds, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It logs every second step, and said that one step in four is measured where it is one in eight."""
    seconds.are(FOUR_TIMES)
    weights, _, _ = shown(tmp_path, every_n_steps=2)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "max_overhead" in line]
    assert np.unique(np.diff(weights[2:-1])).tolist() == [8]
    assert "one step in 8" in said


LAST = {
    "GradientHealthMonitor": (GradientHealthMonitor, [FOUR_TIMES]),
    "WeightHistogramLogger": (WeightHistogramLogger, [CHEAP, CHEAP, FOUR_TIMES]),  # weights, gradients, weights
}


@pytest.mark.parametrize("who", LAST)
def test_nothing_is_said_of_steps_that_will_not_come(
    who: str, seconds: Seconds, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """At the end of a fit it was announced how the following steps would be measured."""
    make, stretches = LAST[who]
    seconds.are(*stretches)
    fits.fit(nets.Net, [make()], max_steps=1, max_epochs=-1, logger=TensorBoardLogger(tmp_path))
    assert "max_overhead" not in capsys.readouterr().out
