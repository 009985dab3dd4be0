"""A step of a Trainer done again: it says what went wrong, and the training goes on as if nothing had happened."""

import gc
import json
import math
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_weightwatch.callbacks._replaying import Replayer
from lightning_weightwatch.replay import Replayed
from tests.helpers import fits, nets, truth
from tests.helpers.strategies import FORKING_IS_FINE, Sharded, ShardedModel, replicated

pytestmark = [
    *FORKING_IS_FINE,
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`.*"),
    pytest.mark.filterwarnings("ignore:.*all_gather is deprecated"),  # Lightning's own way to gather
]
NAN = math.nan


class Replays(pl.Callback):
    """Calls a ``Replayer`` as a callback should, and keeps its answers by step."""

    def __init__(self, **options: Any) -> None:
        self.options, self.answers, self.backwards = options, [], 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.replayer = Replayer(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.replayer.note(batch, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        self.backwards += 1
        self.replayer.note_loss(loss)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        told = self.replayer.check(optimizer, **self.options)
        if told is not None:
            self.answers.append((trainer.fit_loop.epoch_loop._batches_that_stepped, told))

    def on_train_batch_end(self, *_: Any) -> None:
        self.replayer.forget()

    @property
    def first(self) -> Replayed:
        return self.answers[0][1]


def replays(net: type, callback: Replays | None = None, **options: Any) -> Replays:
    callback = callback or Replays()
    fits.fit(net, [callback], **{"max_epochs": 1} | options)
    return callback


class Still(nets.Net):
    """No dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())


# --- what is said ----------------------------------------------------------------------------------------------------


class SickBatch(Still):
    """Batch 3 holds a NaN."""

    def train_dataloader(self) -> DataLoader:
        batches = [tuple(part.clone() for part in batch) for batch in nets.batches()]
        batches[3][0][1, 2] = NAN
        return DataLoader(batches, batch_size=None)


class SickModule(Still):
    """Takes the logarithm of zero in batch 3."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.scale.at = 0.0 if batch_idx == 3 else 1.0
        return super().training_step(batch, batch_idx) + self.scale(batch[0]).mean()


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() * self.at).log()


class SickLoss(Still):
    """Its formula fails in batch 3."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return (loss - 1e3 * (batch_idx == 3)).log()


class SickWay(Still):
    """In batch 3 the gradient of a square root at zero comes back."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + (self.head.bias * (batch_idx != 3)).square().sum().sqrt()


class SickWeight(Still):
    """A weight is spoilt before batch 3."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            self.body[2].weight.data[0, 0] = NAN


class Chance(Still):
    """Fails once, for a reason that lies outside."""

    calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        type(self).calls += 1
        return super().training_step(batch, batch_idx) * (NAN if type(self).calls == 4 else 1.0)


PLACES: dict[type, tuple[bool, str | None, str]] = {
    SickBatch: (True, "inputs", "batch[0]"),
    SickModule: (True, "forward", "scale"),
    SickLoss: (True, "loss", ""),
    SickWay: (True, "backward", ""),
    SickWeight: (True, "weights", "body.2.weight"),
    Chance: (False, None, ""),
}


@pytest.mark.parametrize("net", PLACES)
def test_the_place_is_found_in_the_step_that_went_wrong(net: type) -> None:
    Chance.calls = 0
    seen = replays(net)
    step, found = seen.answers[0]
    reproducible, phase, place = PLACES[net]
    assert (step, found.reproducible, found.phase) == (3, reproducible, phase)
    assert phase == "backward" or found.place == place


def test_a_healthy_training_is_never_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_weightwatch.replay.replay", None)
    assert replays(nets.Net).answers == []


class Lottery(nets.Net):
    """A dropout of which some draws are ill."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = nn.Dropout(0.2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        drawn = self.draw(torch.ones(2)) * random.random() * np.random.rand()
        return loss + 0 * drawn.log().sum().nan_to_num(nan=NAN, neginf=NAN)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        for parameter in self.parameters():
            parameter.grad.nan_to_num_(0.0)


def test_an_ill_draw_of_dropout_is_reproducible() -> None:
    seen = replays(Lottery)
    assert 1 <= len(seen.answers) <= 3
    assert {found.phase for _, found in seen.answers} == {"loss"}


# --- no trace --------------------------------------------------------------------------------------------------------


class Complete(nets.Net):
    """Dropout, batch norm, a metric, logs of all kinds, a schedule; and sick steps that weights survive."""

    survives = True

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16))
        self.accuracy = torchmetrics.MeanMetric()
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x + torch.rand(()) + random.random() + np.random.rand()), y)
        if batch_idx in (2, 5):
            loss = loss * NAN if self.survives else loss + (self.head.bias * 0).square().sum().sqrt()
        self.accuracy(torch.rand(()))
        self.losses.append(loss.item())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"accuracy": self.accuracy, "chance": torch.rand(())})
        self.logger.log_metrics({"direct": float(len(self.losses))}, step=self.global_step)
        return {"loss": loss, "extra": [1]}

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        for parameter in self.parameters() if self.survives else ():
            parameter.grad.nan_to_num_(0.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Doomed(Complete):
    """The same, and weights do not survive."""

    survives = False


def outcome(net: type, folder: Path, callbacks: list[pl.Callback], **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = net()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(1)
    options = {"logger": CSVLogger(folder), "log_every_n_steps": 1, "max_epochs": 2} | options
    trainer = fits.trainer(callbacks, **options)
    trainer.fit(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())
    own = {name: value for name, value in vars(model).items() if isinstance(value, (int, float, list, str))}
    return {
        "weights": [(name, bits(t)) for name, t in model.state_dict().items()],
        "gradients": [None if p.grad is None else bits(p.grad) for p in model.parameters()],
        "optimizer": [bits(t) for o in trainer.optimizers for s in o.state.values() for t in s.values()],
        "schedule": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "streams": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "logged": [path.read_text() for path in sorted(folder.rglob("metrics.csv"))],
        "metrics": {name: bits(t) for name, t in trainer.callback_metrics.items()},
        "progress": (trainer.global_step, trainer.should_stop, json.dumps(trainer.fit_loop.state_dict())),
        "own": repr(own),
        "names": [sorted(vars(m)) for m in model.modules()],
    }


def bits(tensor: Any) -> bytes:
    return torch.as_tensor(tensor).detach().numpy().tobytes()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("net", [Complete, Doomed])
def test_a_training_with_sick_steps_is_the_same_to_the_bit(net: type, accumulate: int, tmp_path: Path) -> None:
    seen = Replays()
    plain = outcome(net, tmp_path / "plain", [], accumulate_grad_batches=accumulate)
    watched = outcome(net, tmp_path / "watched", [seen], accumulate_grad_batches=accumulate)
    assert len(seen.answers) >= 2
    assert all(found.reproducible for _, found in seen.answers)
    for part in plain:
        assert watched[part] == plain[part], part


class Speaks(Still):
    """Tells the world of every step, and asks for an end when it sees a batch twice."""

    seen: ClassVar[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.print("step")
        self.logger.experiment.add_scalar("x", 1.0)
        self.trainer.should_stop = batch_idx in self.seen
        self.seen.append(batch_idx)
        return super().training_step(batch, batch_idx) * (NAN if batch_idx == 3 else 1.0)


class Listens(DummyLogger):
    """Counts what it is told."""

    scalars = 0

    @property
    def experiment(self) -> Any:
        return self

    def add_scalar(self, *_: Any) -> None:
        self.scalars += 1


def test_nothing_is_printed_or_logged_or_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    Speaks.seen, logger = [], Listens()
    seen = replays(Speaks, logger=logger)
    assert [found.phase for _, found in seen.answers] == ["loss", "weights"]
    assert Speaks.seen == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]
    assert logger.scalars == 8
    assert capsys.readouterr().out.count("step") == 8


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sick", [0, 1, 2])
def test_of_an_accumulation_window_the_batch_that_went_wrong_is_named(sick: int) -> None:
    class Window(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (NAN if batch_idx == 3 + sick else 1.0)

    step, found = replays(Window, accumulate_grad_batches=3).answers[0]
    assert (step, found.phase) == (1, "loss")
    note = f" It is batch {sick + 1} of 3 in the accumulation window (batch_idx {3 + sick})."
    assert found.detail.endswith(note) is (sick < 2)


def test_of_an_accumulation_window_a_batch_with_a_sick_gradient_is_found() -> None:
    class Window(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            bias = self.head.bias * (batch_idx != 0)
            return super().training_step(batch, batch_idx) + bias.square().sum().sqrt() * (batch_idx == 0)

    found = replays(Window, accumulate_grad_batches=3).first
    assert found.phase == "backward"
    assert found.detail.endswith("It is batch 1 of 3 in the accumulation window (batch_idx 0).")


class Takes(Still):
    """Takes its labels out of the batch."""

    def training_step(self, batch: Any) -> Tensor:
        y = batch.pop("y")
        return nn.functional.cross_entropy(self(batch["x"]), y) * NAN

    def train_dataloader(self) -> DataLoader:
        return DataLoader([{"x": x, "y": y} for x, y in nets.batches()], batch_size=None)


def test_a_step_that_takes_its_batch_apart_can_be_done_again() -> None:
    assert replays(Takes).first.phase == "loss"


def test_a_step_that_writes_into_its_batch_is_only_looked_at() -> None:
    class Writes(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            batch[0].mul_(1e30).mul_(1e30)
            return super().training_step(batch, batch_idx)

    found = replays(Writes).first
    assert (found.reproducible, found.phase) == (None, "inputs")
    assert found.detail.endswith("the step was not replayed: the step wrote into its batch, which is not what it was.")


def test_batches_are_let_go_of_with_the_end_of_their_step() -> None:
    kept: list[weakref.ref] = []

    class Remembers(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            kept.append(weakref.ref(batch[0]))
            return super().training_step(batch, batch_idx)

        def train_dataloader(self) -> DataLoader:
            return DataLoader(nets.batches().dataset, batch_size=4)

    class Looks(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            gc.collect()
            alive.append(sum(ref() is not None for ref in kept))

        def on_train_batch_end(self, *_: Any) -> None:
            held.append(len(seen.replayer._window))

    for accumulate, expected in ((1, [0, 0, 0, 0, 0]), (3, [1, 2, 0, 1, 0])):
        seen, alive, held = Replays(), [], []
        kept.clear()
        options = {"limit_train_batches": 5, "accumulate_grad_batches": accumulate}
        fits.fit(Remembers, [seen, Looks()], max_epochs=1, **options)
        assert held == expected
        assert alive == [0, *expected[:-1]]


def test_a_step_is_done_again_three_times_at_most() -> None:
    class Always(Complete):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, 2)

    seen = replays(Always, logger=CSVLogger("."))
    assert [step for step, _ in seen.answers] == [0, 1, 2]


def test_once_weights_are_sick_there_is_nothing_more_to_learn() -> None:
    assert [(step, found.phase) for step, found in replays(SickBatch).answers] == [(3, "inputs"), (4, "weights")]


# --- other ways to train ---------------------------------------------------------------------------------------------


class Manual(nets.TwoOptimizers):
    """Two optimizers; the loss of one of them is sick in batch 3."""

    sick = 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        for i, (optimizer, schedule) in enumerate(zip(self.optimizers(), self.lr_schedulers(), strict=True)):
            self.toggle_optimizer(optimizer)
            loss = nn.functional.cross_entropy(self(x), y) * (NAN if batch_idx == 3 and i == self.sick else 1.0)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            self.log("loss", loss)
            if batch_idx:  # torch warns of the first
                schedule.step()
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.Adam(part.parameters(), lr=0.05) for part in (self.body, self.head)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(o, 3) for o in optimizers]


class Second(Manual):
    sick = 1


class Fleeting(Manual):
    """Sick only the first time it sees batch 3, so that it is done again until its optimizer would step."""

    sick = 2
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x) * (NAN if type(self).calls == 7 else 1.0)


class Closures(Manual):
    """Sends back within its optimizer's step."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()[0]

        def closure() -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1]) * (NAN if batch_idx == 3 else 1.0)
            optimizer.zero_grad()
            self.manual_backward(loss)
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("net", [Manual, Second, Fleeting, Closures])
def test_manual_optimization_is_the_same_to_the_bit(net: type, tmp_path: Path) -> None:
    seen, net.calls = Replays(), 0
    plain, net.calls = outcome(net, tmp_path / "plain", []), 0
    watched = outcome(net, tmp_path / "watched", [seen])
    assert seen.answers
    assert seen.backwards == 16 * (1 if net is Closures else 2)  # callbacks are not told of those of a replay
    for part in plain:
        assert watched[part] == plain[part], part


@pytest.mark.parametrize("net", [Manual, Closures])
def test_under_manual_optimization_a_step_is_done_again_up_to_its_optimizer(net: type) -> None:
    step, found = replays(net).answers[0]
    assert (step, found.reproducible, found.phase) == (3, True, "loss"), found


def test_what_follows_another_optimizers_step_is_only_looked_at() -> None:
    step, found = replays(Second).answers[0]
    assert (step, found.reproducible, found.phase) == (3, None, None)
    assert found.detail == "the step was not replayed: an optimizer has moved weights since its batch began."


class Lbfgs(nets.Net):
    """Many evaluations in one step, each with other random numbers."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        drawn = torch.rand(())
        self.drawn.append(drawn.item())
        return loss * (NAN if drawn.item() in self.sick else 1.0)

    drawn: ClassVar[list[float]] = []
    sick: ClassVar[list[float]] = []

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


def test_an_optimizer_that_evaluates_often_is_followed_from_where_it_stands() -> None:
    Lbfgs.drawn, Lbfgs.sick = [], []
    fits.fit(Lbfgs, max_epochs=1, limit_train_batches=2)
    assert len(set(Lbfgs.drawn)) == len(Lbfgs.drawn) == 8
    Lbfgs.drawn, Lbfgs.sick = [], [Lbfgs.drawn[6]]
    seen = replays(Lbfgs, limit_train_batches=2)
    assert seen.first.phase == "loss"
    assert Lbfgs.drawn[6] == Lbfgs.drawn[7]  # the second is the replay's


class Twice(torch.optim.SGD):
    """Evaluates each step twice, at the same weights."""

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad():
            closure()
            loss = closure()
        super().step()
        return loss


def test_a_loss_of_an_earlier_evaluation_is_not_held_against_the_next() -> None:
    class Evaluated(Still):
        calls = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            type(self).calls += 1
            return loss + (NAN if type(self).calls == 7 else 0.0)  # gradients stay finite

        def configure_optimizers(self) -> Optimizer:
            return Twice(self.parameters(), lr=0.1)

    assert [(step, found.reproducible) for step, found in replays(Evaluated).answers] == [(3, False)]


class Half(Still):
    """Notes in which precision it computes."""

    dtypes: ClassVar[list[torch.dtype]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.dtypes.append(self.body(batch[0]).dtype)
        return super().training_step(batch, batch_idx)


def half(init_scale: float) -> list[MixedPrecision]:
    return [MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=init_scale))]


def test_under_a_scaler_a_step_overflows_again_with_its_scale() -> None:
    Half.dtypes.clear()
    seen = replays(Half, plugins=half(2.0**40))
    assert seen.first.phase == "backward"
    assert "with the loss scaled by 1.09951e+12" in seen.first.detail
    assert set(Half.dtypes) == {torch.half}


def test_a_loss_is_sent_back_as_the_trainer_does_it() -> None:
    class Noted(SickWay):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            loss.register_hook(lambda gradient: sent.append((batch_idx, gradient.item())))
            return loss

    sent: list[tuple[int, float]] = []
    assert replays(Noted, plugins=half(2.0**10), accumulate_grad_batches=2, max_steps=2).first.phase == "backward"
    assert sent == [(0, 512.0), (1, 512.0), (2, 512.0), (3, 512.0), (3, 512.0)]


def test_under_a_scaler_the_search_for_a_scale_can_be_passed_over() -> None:
    assert replays(Half, Replays(gradients=False), plugins=half(2.0**40)).answers == []
    assert replays(SickLoss, Replays(gradients=False), plugins=half(2.0**10)).first.phase == "loss"


def test_a_step_without_a_loss_is_told_as_such() -> None:
    class Nothing(Still):
        """The last batch of a window has none."""

        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx) * NAN

    found = replays(Nothing, accumulate_grad_batches=2).first
    assert found.phase == "loss"
    assert "batch 1 of 2" in found.detail


# --- what cannot be replayed -----------------------------------------------------------------------------------------


def test_an_error_within_is_told_and_the_training_goes_on(tmp_path: Path) -> None:
    class Breaks(Complete):
        """Refuses to be asked twice for one batch."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx in asked:
                torch.rand(3)
                raise ValueError("no")
            asked.add(batch_idx)
            return super().training_step(batch, batch_idx)

    seen, asked = Replays(), set()
    plain = outcome(Breaks, tmp_path / "plain", [], max_epochs=1)
    asked.clear()
    watched = outcome(Breaks, tmp_path / "watched", [seen], max_epochs=1)
    assert str(seen.first) == "Not known whether reproducible: the step could not be replayed (ValueError: no)."
    for part in plain:
        assert watched[part] == plain[part], part


def test_an_error_of_our_own_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("lightning_weightwatch.replay.replay", fails)
    assert replays(SickLoss).first.detail == "the step could not be replayed (RuntimeError: ours)."


@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
def test_a_step_that_fetches_its_own_batches_is_not_replayed() -> None:
    class Fetches(Still):
        def training_step(self, dataloader_iter: Iterator[Any]) -> Tensor:
            (x, y), *_ = next(dataloader_iter)
            return nn.functional.cross_entropy(self(x), y) * NAN

    assert "takes its batches from an iterator" in replays(Fetches).first.detail


def test_a_compiled_module_is_not_replayed() -> None:
    class Quiet(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1]) * NAN

    seen = Replays()
    fits.trainer([seen], max_epochs=1).fit(torch.compile(Quiet(), backend="eager"))
    assert seen.first.detail == "the step was not replayed: compiled modules do not tell what passes through them."


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Stands in for the one of that name."""


def test_hidden_gradients_are_told_as_such() -> None:
    found = replays(SickLoss, strategy=DeepSpeedStrategy(torch.device("cpu"))).first
    assert found.detail == "the step was not replayed: DeepSpeedStrategy hides gradients."


# --- several processes -----------------------------------------------------------------------------------------------


class Writes(Replays):
    """Each process writes its answers down."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        answers = [[step, vars(found)] for step, found in self.answers]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(answers))


def answers_of(net: type, folder: Path, strategy: Callable[[], Any] = replicated, **options: Any) -> list[Any]:
    options = {"max_epochs": 1, "use_distributed_sampler": False} | options
    fits.trainer([Writes(folder)], strategy=strategy(), devices=2, **options).fit(net())
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


class OneRank(truth.Model):
    """The batch of one process is sick."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return super().training_step((x * NAN if (batch_idx, self.global_rank) == (3, 1) else x, y), batch_idx)


def test_each_process_speaks_for_its_own_batch(tmp_path: Path) -> None:
    (step, calm), (other_step, ill) = (answers[0] for answers in answers_of(OneRank, tmp_path))
    assert step == other_step == 3
    assert (ill["reproducible"], ill["phase"], ill["place"]) == (True, "forward", "net")
    assert (calm["reproducible"], calm["phase"]) == (None, None)
    assert calm["detail"].startswith("on this process the same batch gave finite numbers; gradients are averaged")


class Gathers(OneRank):
    """Asks the others in every step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + 0 * self.all_gather(batch[0].mean()).nan_to_num().sum()


class Waits(OneRank):
    """Waits for the others in every step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.distributed.barrier()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("net", [Gathers, Waits])
def test_a_step_that_waits_for_others_is_not_replayed_and_nobody_hangs(net: type, tmp_path: Path) -> None:
    for answers in answers_of(net, tmp_path):
        words = "the step could not be replayed (RuntimeError: the step waits for other processes)."
        assert answers[0][1]["detail"] == words


class ManualAmongMany(truth.Model):
    """Sends back on its own."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.mse_loss(self.net(batch[0]), batch[1]) * (NAN if batch_idx == 3 else 1.0))
        optimizer.step()


class SickShards(ShardedModel):
    """Its loss is sick in batch 3."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (NAN if batch_idx == 3 else 1.0)


def test_manual_optimization_on_several_processes_is_only_looked_at(tmp_path: Path) -> None:
    for answers in answers_of(ManualAmongMany, tmp_path):
        assert answers[0][1]["detail"] == "the step was not replayed: manual optimization on several processes."


def test_shards_are_only_looked_at(tmp_path: Path) -> None:
    for answers in answers_of(SickShards, tmp_path, lambda: Sharded(2)):
        words = "the step was not replayed: its weights are cut into shards over processes."
        assert (answers[0][0], answers[0][1]["detail"]) == (3, words)
