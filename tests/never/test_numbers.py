"""Wrong numbers that users of other monitors were shown; each test is named after what must never happen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch import callbacks as theirs
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_weightwatch import GradientHealthMonitor, InitAuditor, WeightHistogramLogger
from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.parcel import Parcel
from tests.helpers import events, fits, nets
from tests.never.listening import none_is_broken, remembered

pytestmark = [pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")]
SIZE = 8  # batches of an epoch


class Still(nets.Net):
    """A network without dropout, so that a plain loop needs no random numbers to follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def plain(net: Callable[[], Still], *, steps: int = 2 * SIZE, clip: float | None = None) -> np.ndarray:
    """Train in plain torch; return gradient norms ``[steps, P]``, NaN where there is no gradient."""
    torch.manual_seed(0)
    model, norms = net(), []
    optimizer, data = model.configure_optimizers(), list(nets.batches())
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, data[step % SIZE]).backward()
        norms.append([np.nan if p.grad is None else p.grad.double().norm().item() for p in model.parameters()])
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return np.array(norms)


def same(evidence: Evidence, norms: np.ndarray) -> None:
    np.testing.assert_allclose(evidence.norms, norms, rtol=1e-5, atol=1e-12)


# --- scaled gradients -------------------------------------------------------------------------------------------------


class Fused(Still):
    """Its optimizer takes the scale out within its own step."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, fused=True)


def test_a_fused_optimizer_under_a_scaler_does_not_show_gradients_65536_times_too_large(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    precision = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    monitor, seen = remembered()
    watchers = [monitor, WeightHistogramLogger(every_n_steps=1, figures=0)]
    fits.fit(Fused, watchers, plugins=[precision], logger=TensorBoardLogger(tmp_path), max_epochs=1)
    assert scaler.get_scale() == 2.0**16
    norms = plain(Fused, steps=SIZE)
    np.testing.assert_allclose(seen[-1].norms, norms, rtol=0.02)  # float16
    points = events.read(tmp_path).histograms("health.grad_log10_hist/04 head.weight")
    assert all(point.max <= np.log10(norm) + 0.25 for point, norm in zip(points.values(), norms[:, 4], strict=True))


# --- resuming, hidden gradients ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_norms_do_not_jump_after_a_resume(tmp_path: Path) -> None:
    saver = theirs.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=SIZE)
    fits.fit(Still, [remembered()[0], saver], enable_checkpointing=True, max_epochs=1)
    monitor, seen = remembered()
    fits.trainer([monitor]).fit(Still(), ckpt_path=next(tmp_path.glob("*.ckpt")))
    assert seen[-1].steps == list(range(2 * SIZE))
    same(seen[-1], plain(Still))


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Stands in for the one of that name, whose gradients are not where torch keeps them."""


def test_hidden_gradients_are_not_drawn_as_zeros(tmp_path: Path) -> None:
    watchers = [GradientHealthMonitor(every_n_steps=2), WeightHistogramLogger(every_n_steps=2)]
    strategy = DeepSpeedStrategy(torch.device("cpu"))
    fits.fit(Still, watchers, strategy=strategy, logger=TensorBoardLogger(tmp_path))
    assert none_is_broken(watchers)
    assert not [tag for tag in events.read(tmp_path).all_tags() if "grad" in tag]


# --- steps ------------------------------------------------------------------------------------------------------------


class Logs(Still):
    """Logs a number of its own in every batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("mine", 1.0)
        return super().training_step(batch, batch_idx)

    def val_dataloader(self) -> DataLoader:
        return nets.batches(8)


class LogsWithTwo(nets.TwoOptimizers):
    """The same with two optimizers; ``global_step`` runs twice as fast."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.log("mine", 1.0)
        super().training_step(batch, batch_idx)

    val_dataloader = Logs.val_dataloader


STEPS: dict[str, tuple[type, dict[str, Any]]] = {
    "every batch": (Logs, {}),
    "accumulation": (Logs, {"accumulate_grad_batches": 3}),
    "two optimizers": (LogsWithTwo, {}),
    "validation in between": (Logs, {"val_check_interval": 0.25, "accumulate_grad_batches": 2}),
}
every_way_to_step = pytest.mark.parametrize("way", STEPS)


@every_way_to_step
def test_curves_do_not_stand_at_other_steps_than_the_users_own(way: str, tmp_path: Path) -> None:
    net, options = STEPS[way]
    watchers = [GradientHealthMonitor(every_n_steps=1), WeightHistogramLogger(every_n_steps=1, figures=1)]
    fits.fit(net, watchers, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1, **options)
    seen = events.read(tmp_path)
    mine = set(seen.scalars("mine"))
    assert set(seen.scalars("health/grad_norm_log10")) == mine
    assert set(seen.histograms("health.grad_log10_hist/00 body.0.weight")) == mine
    last = max(mine) + 1  # the weights as they are left
    assert set(seen.histograms("health.weight_hist/00 body.0.weight")) == {*mine, last}
    assert set(seen.images("health/0 report")) <= mine
    assert set(seen.images("health.fig_weight/00 body.0.weight")) <= {*mine, last}


class Strict(CSVLogger):
    """Remembers the steps that it is given; others of its kind drop what comes with a smaller one than the last."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.steps: list[int] = []
        self.ours = 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(step)
        self.ours += any(name.startswith("health/") for name in metrics)
        super().log_metrics(metrics, step)


@every_way_to_step
@pytest.mark.parametrize("at_once", [True, False], ids=["lands at once", "lands a step later"])
def test_no_logger_is_given_a_smaller_step_than_before(
    way: str, at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA what was sent is read when the next step ends, and must not be logged behind what came meanwhile."""
    monkeypatch.setattr(Parcel, "at_once", at_once)
    net, options = STEPS[way]
    logger, watchers = Strict(tmp_path), [GradientHealthMonitor(every_n_steps=1), WeightHistogramLogger()]
    fits.fit(net, watchers, logger=logger, log_every_n_steps=1, **options)
    assert logger.ours > 2
    assert logger.steps == sorted(logger.steps)


# --- trials -----------------------------------------------------------------------------------------------------------


class Tunable(Logs):
    """A network whose batch size and learning rate can be looked for."""

    batch_size = 4

    def train_dataloader(self) -> DataLoader:
        return nets.batches(batch_size=self.batch_size)


def trial_of_callback(finder: Callable[[], pl.Callback]) -> Callable[[pl.Callback, Tunable], None]:
    return lambda monitor, model: fits.trainer([monitor, finder()]).fit(model)


def trial_of_tuner(look: Callable[[Tuner, Tunable], Any]) -> Callable[[pl.Callback, Tunable], None]:
    def run(monitor: pl.Callback, model: Tunable) -> None:
        trainer = fits.trainer([monitor])
        look(Tuner(trainer), model)
        trainer.fit(model)

    return run


TRIALS = {
    "LearningRateFinder": trial_of_callback(lambda: theirs.LearningRateFinder(num_training_steps=5)),
    "BatchSizeFinder": trial_of_callback(lambda: theirs.BatchSizeFinder(max_trials=1, steps_per_trial=2)),
    "Tuner.lr_find": trial_of_tuner(lambda tuner, model: tuner.lr_find(model, num_training=5)),
    "Tuner.scale_batch_size": trial_of_tuner(
        lambda tuner, model: tuner.scale_batch_size(model, max_trials=1, steps_per_trial=2)
    ),
}


@pytest.mark.parametrize("way", TRIALS)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
def test_steps_of_a_trial_are_not_taken_for_training(way: str) -> None:
    """Learning rates and batch sizes are looked for in steps that are taken back."""
    torch.manual_seed(0)
    model = Tunable()
    monitor, seen = remembered()
    TRIALS[way](monitor, model)
    last = seen[-1]
    assert not monitor.broken
    assert last.steps == list(range(2 * 32 // model.batch_size))
    torch.manual_seed(0)
    fresh = Tunable()
    loss_of(fresh, next(iter(nets.batches(batch_size=model.batch_size)))).backward()
    np.testing.assert_allclose(last.norms[0], [p.grad.double().norm().item() for p in fresh.parameters()], rtol=1e-5)


class FindsInMidRun(theirs.LearningRateFinder):
    """Looks for a learning rate again when the second epoch begins, as Lightning's documentation shows it."""

    def on_fit_start(self, *_: Any) -> None:
        """Look for none yet."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


class Notes(pl.Callback):
    """Notes the gradient norm of each step that is not a trial."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.norms.append(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).double().norm().item())


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
def test_steps_of_a_trial_in_mid_run_are_not_taken_for_training() -> None:
    """Hooks hang on the optimizers by then."""
    (monitor, seen), notes = remembered(), Notes()
    fits.fit(Tunable, [monitor, notes, FindsInMidRun(num_training_steps=5)], max_epochs=3)
    assert seen[-1].steps == list(range(3 * SIZE))
    np.testing.assert_allclose(seen[-1].global_norm, notes.norms, rtol=1e-5)


def test_the_sanity_check_is_not_taken_for_training() -> None:
    monitor, seen = remembered()
    fits.fit(Logs, [monitor], num_sanity_val_steps=2)
    same(seen[-1], plain(Still))


# --- validation between two batches of a window -----------------------------------------------------------------------


class Keeps(pl.Callback):
    """Keeps the gradients that validation finds, and those that it leaves."""

    def __init__(self) -> None:
        self.kept: list[list[Tensor]] = []

    def keep(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.kept.append([p.grad.clone() for p in pl_module.parameters() if p.grad is not None])

    on_validation_start = on_validation_end = keep


def test_gradients_of_a_window_are_not_lost_to_a_validation_in_its_middle(tmp_path: Path) -> None:
    options = {"val_check_interval": 1, "accumulate_grad_batches": 3, "num_sanity_val_steps": 0, "max_epochs": 1}
    monitor, seen = remembered(every_n_steps=1)
    watchers = [InitAuditor(), WeightHistogramLogger(every_n_steps=1), monitor]
    alone, watched = Keeps(), Keeps()
    fits.fit(Logs, [alone], **options)
    fits.fit(Logs, [*watchers, watched], logger=TensorBoardLogger(tmp_path), **options)
    assert sum(len(gradients) == 6 for gradients in alone.kept) >= 10
    assert len(alone.kept) == len(watched.kept)
    for one, other in zip(alone.kept, watched.kept, strict=True):
        assert len(one) == len(other)
        assert all(torch.equal(g, h) for g, h in zip(one, other, strict=True))
    assert len(seen[-1].steps) == 3


# --- networks that trip hooks -----------------------------------------------------------------------------------------


class Checkpointed(Still):
    """Computes the activations of its body a second time in the backward pass, as each kind of checkpointing does."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_() if self.reentrant else x
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


class Reentrant(Checkpointed):
    reentrant = True


class InPlace(Still):
    """Its activations overwrite what its layers gave."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.ReLU(inplace=True))


class Shared(Still):
    """Sends everything through one layer twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body[2:](self.body(x)))


@pytest.mark.parametrize("net", [Checkpointed, Reentrant, InPlace, Shared])
def test_a_layer_that_runs_twice_or_in_place_is_neither_an_error_nor_counted_twice(net: type, tmp_path: Path) -> None:
    monitor, seen = remembered()
    watchers = [InitAuditor(), WeightHistogramLogger(every_n_steps=1, figures=0), monitor]
    fits.fit(net, watchers, logger=TensorBoardLogger(tmp_path))
    assert none_is_broken(watchers)
    same(seen[-1], plain(net))
    order = [p.place for p in seen[-1].parameters]
    assert order == sorted(order)


class FrozenTable(Still):
    """Looks its input up in a table that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.table((x[:, 0].abs() * 10).long()))


def test_a_frozen_embedding_is_neither_an_error_nor_a_vanished_gradient(capsys: pytest.CaptureFixture) -> None:
    looking, seen = remembered()
    watchers = [InitAuditor(), GradientHealthMonitor(every_n_steps=1, prefix="judge"), looking]
    fits.fit(FrozenTable, watchers, max_epochs=6)
    assert none_is_broken(watchers)
    assert watchers[1].findings == ()
    assert np.isnan(seen[-1].norms[:, [p.name for p in seen[-1].parameters].index("table.weight")]).all()
    assert "not measured" not in capsys.readouterr().out


# --- clipping ---------------------------------------------------------------------------------------------------------


def test_clipping_that_works_does_not_look_broken(tmp_path: Path) -> None:
    """One norm was shown, that before clipping, and it was larger than what it was clipped to."""
    most = float(np.median(np.linalg.norm(plain(Still), axis=1)))
    totals = np.linalg.norm(plain(Still, clip=most), axis=1)
    monitor = GradientHealthMonitor(every_n_steps=1)
    fits.fit(Still, [monitor], gradient_clip_val=most, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1)
    seen = events.read(tmp_path)
    before, after, share = (
        np.array(list(seen.scalars(f"health/{name}").values()))
        for name in ("grad_norm_log10", "clipped_norm_log10", "clipped_share")
    )
    np.testing.assert_allclose(10**before, totals, rtol=1e-4)
    np.testing.assert_allclose(10**after, np.minimum(totals, most), rtol=1e-4)
    assert share.tolist() == (totals > most).tolist()
    assert 0 < share.mean() < 1
