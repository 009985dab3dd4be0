"""What ``SeedEverything`` promises, in real fits."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import random
from dataclasses import replace
from datetime import timedelta

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lightning_weightwatch
from lightning_weightwatch.callbacks import seed_everything
from lightning_weightwatch.callbacks.seed_everything import SeedEverything

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning's own call of torch
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
    "log_every_n_steps": 1,
}
LATE = (
    "SeedEverything(42) came after the model: weights that were drawn at random do not follow from this seed. "
    "Construct the callback before the model, or call lightning_weightwatch.seed(42) first."
)


def flags():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


pytestmark = pytest.mark.usefixtures("untouched_process")


class Tiny(pl.LightningModule):
    """Dropout and shuffled batches: every step depends on random numbers."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
        self.fail_at, self.seen, self.flags = fail_at, [], []

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fail_at:
            raise RuntimeError("the user's own mistake")
        self.seen.append(batch[0])
        self.flags.append(flags())
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        data = torch.arange(64.0).reshape(16, 4)
        return DataLoader(TensorDataset(data), batch_size=4, shuffle=True)

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.parameters()])


def fit(model, *callbacks, **arguments):
    trainer = pl.Trainer(callbacks=list(callbacks), **QUIET | {"max_epochs": 1} | arguments)
    trainer.fit(model)
    return trainer


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "lightning_weightwatch"]


# Silent cases


def test_nothing_is_warned_of_when_the_model_is_newer(caplog, tmp_path):
    # Its weights were drawn after the seeding.
    callback = SeedEverything(42)
    fit(Tiny(), callback, default_root_dir=tmp_path)
    assert warnings_of(caplog) == []
    assert callback.report.model_built_before is False


@pytest.mark.parametrize("seeder", [pl.seed_everything, lightning_weightwatch.seed, torch.manual_seed])
def test_nothing_is_warned_of_when_the_same_seed_was_set_before_the_model(seeder, caplog, tmp_path):
    # The weights follow from this very seed.
    seeder(42)
    model = Tiny()
    callback = SeedEverything(42)
    fit(model, callback, default_root_dir=tmp_path)
    assert warnings_of(caplog) == []
    assert callback.report.model_built_before is None


def test_nothing_is_warned_of_when_the_weights_come_from_a_checkpoint(caplog, tmp_path):
    # What was drawn for them is overwritten.
    callback = SeedEverything(42)
    fit(Tiny(), callback, default_root_dir=tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    torch.manual_seed(1)
    model = Tiny()
    trainer = pl.Trainer(callbacks=[SeedEverything(42)], **QUIET | {"max_epochs": 2, "default_root_dir": tmp_path})
    trainer.fit(model, ckpt_path=str(tmp_path / "last.ckpt"))
    assert trainer.current_epoch == 2
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_copies_do_not_seed_again(copier):
    # Lightning's tuner and spawned workers copy callbacks in the middle of things.
    callback = SeedEverything(42)
    torch.rand(1)
    state = torch.get_rng_state()
    copied = copier(callback)
    assert torch.equal(torch.get_rng_state(), state)
    assert copied.report == callback.report


def test_no_flag_is_touched_unless_determinism_is_asked_for(tmp_path):
    # Speed is the user's to give away.
    before = flags()
    model = Tiny()
    fit(model, SeedEverything(42), default_root_dir=tmp_path)
    assert set(model.flags) == {before}
    assert flags() == before


def test_validation_alone_is_not_seeded(tmp_path):
    # Only a fit is to be repeated; somebody who looks at a model twice may want two looks.
    class Looks(Tiny):
        def validation_step(self, batch, batch_idx):
            self.seen.append(torch.rand(3))

        def val_dataloader(self):
            return self.train_dataloader()

    model = Looks()
    trainer = pl.Trainer(callbacks=[SeedEverything(42)], **QUIET | {"default_root_dir": tmp_path})
    for _ in range(2):
        trainer.validate(model, verbose=False, dataloaders=DataLoader(torch.zeros(1, 4)))
    assert not torch.equal(*model.seen)


# Seeding


def test_it_seeds_when_constructed_so_weights_are_those_of_the_seed():
    torch.manual_seed(42)
    expected = Tiny().weights()
    torch.rand(5)
    SeedEverything(42)
    assert torch.equal(Tiny().weights(), expected)


def heard_at_the_fit(folder, seed, draws):
    class Listener(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            self.heard = torch.rand(3)

    callback, listener = SeedEverything(seed), Listener()
    torch.rand(draws)
    fit(Tiny(), callback, listener, default_root_dir=folder)
    return listener.heard


def test_the_fit_begins_alike_whatever_was_drawn_before(tmp_path):
    assert torch.equal(heard_at_the_fit(tmp_path, 42, draws=7), heard_at_the_fit(tmp_path, 42, draws=0))
    assert not torch.equal(heard_at_the_fit(tmp_path, 42, draws=7), heard_at_the_fit(tmp_path, 43, draws=7))


def test_a_layer_made_in_configure_model_is_not_the_twin_of_one_made_in_init(tmp_path):
    """The fit was seeded with the seed itself, and replayed what the weights had been drawn from."""

    class Later(Tiny):
        def configure_model(self):
            self.later = nn.Linear(4, 4)

    callback = SeedEverything(42)
    model = Later()
    first = [p.detach().clone() for p in model.parameters()]
    fit(model, callback, default_root_dir=tmp_path, max_steps=0)
    torch.manual_seed(42)
    twin = nn.Linear(4, 4).weight
    assert not torch.equal(model.later.weight, twin)
    assert all(p.shape != twin.shape or not torch.equal(p, model.later.weight) for p in first)


def test_two_runs_are_equal_to_the_bit_and_another_seed_is_not(tmp_path):
    def run(seed):
        callback = SeedEverything(seed)
        model = Tiny()
        fit(model, callback, default_root_dir=tmp_path, max_epochs=3)
        return model.weights(), torch.cat(model.seen)

    (weights, batches), (again, same_batches), (other, other_batches) = run(42), run(42), run(43)
    assert torch.equal(weights, again)
    assert torch.equal(batches, same_batches)
    assert not torch.equal(weights, other)
    assert not torch.equal(batches, other_batches)


def test_a_second_fit_of_the_same_callback_is_seeded_alike(tmp_path):
    callback = SeedEverything(42)
    first, second = Tiny(), Tiny()
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        fit(model, callback, default_root_dir=tmp_path)
    assert torch.equal(first.weights(), second.weights())


class Dice(Dataset):
    """What each worker draws: its number, then torch, NumPy and random."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        worker = torch.utils.data.get_worker_info().id
        return torch.tensor([worker, torch.rand(()), np.random.rand(), random.random()], dtype=torch.float64)


def test_workers_draw_the_same_in_two_runs_and_differ_from_each_other(tmp_path):
    class Gambler(Tiny):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch)
            return self.net(batch.float()).mean()

        def train_dataloader(self):
            return DataLoader(Dice(), batch_size=1, num_workers=2)

    def run():
        callback = SeedEverything(42)
        model = Gambler()
        fit(model, callback, default_root_dir=tmp_path)
        return torch.cat(model.seen)

    first, second = run(), run()
    assert torch.equal(first, second)
    assert set(first[:, 0].tolist()) == {0.0, 1.0}
    for drawn in first[:, 1:].T:
        assert len(set(drawn.tolist())) == len(drawn)


def test_a_seed_that_was_picked_is_kept_and_repeats_the_run(tmp_path):
    callback = SeedEverything()
    assert callback.report.source == "picked"
    first = Tiny()
    fit(first, callback, default_root_dir=tmp_path)
    assert callback.report.source == "picked"
    repeated = SeedEverything(callback.report.seed)
    second = Tiny()
    fit(second, repeated, default_root_dir=tmp_path)
    assert torch.equal(first.weights(), second.weights())


def test_a_seed_that_somebody_set_since_wins_only_where_none_was_asked_for(tmp_path):
    unasked, asked = SeedEverything(), SeedEverything(42)
    for callback in (unasked, asked):
        pl.seed_everything(7, verbose=False)
        fit(Tiny(), callback, default_root_dir=tmp_path)
    assert (unasked.report.seed, unasked.report.source) == (7, "PL_GLOBAL_SEED")
    assert (asked.report.seed, asked.report.source) == (42, "argument")


# A model that is older than the seed


def test_an_older_model_is_warned_of_once_in_words_that_help(caplog, tmp_path):
    model = Tiny()
    callback = SeedEverything(42)
    fit(model, callback, default_root_dir=tmp_path)
    assert warnings_of(caplog) == [LATE]
    assert callback.report.model_built_before is True


def test_a_copy_does_not_claim_to_know_what_is_older(caplog, tmp_path):
    model = Tiny()
    copied = copy.deepcopy(SeedEverything(42))
    fit(model, copied, default_root_dir=tmp_path)
    assert warnings_of(caplog) == []
    assert copied.report.model_built_before is None


def test_a_seed_in_the_environment_alone_seeds_no_weights(caplog, tmp_path):
    # A parent process hands PL_GLOBAL_SEED to its children, whose models may still be drawn unseeded.
    os.environ["PL_GLOBAL_SEED"] = "42"
    model = Tiny()
    fit(model, SeedEverything(42), default_root_dir=tmp_path)
    assert warnings_of(caplog) == [LATE]


# Determinism


@pytest.mark.parametrize("level", [True, "warn"])
def test_determinism_is_in_force_for_the_fit_and_only_for_it(level, tmp_path):
    before = flags()
    callback = SeedEverything(42, deterministic=level)
    assert flags() == before
    model = Tiny()
    fit(model, callback, default_root_dir=tmp_path)
    assert set(model.flags) == {(True, level == "warn", False, False, ":4096:8")}
    assert flags() == before
    assert callback.report.deterministic == level
    assert callback.report.changed["torch.are_deterministic_algorithms_enabled"] == (False, True)


def test_flags_are_put_back_when_the_fit_dies(tmp_path):
    before = flags()
    callback = SeedEverything(42, deterministic=True)
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        fit(Tiny(fail_at=1), callback, default_root_dir=tmp_path)
    assert flags() == before


@pytest.mark.parametrize(("theirs", "ours"), [(True, "warn"), ("warn", True), (True, True)])
def test_what_the_trainer_was_told_is_neither_overridden_nor_undone(theirs, ours, tmp_path):
    callback = SeedEverything(42, deterministic=ours)
    trainer = pl.Trainer(
        callbacks=[callback], deterministic=theirs, **QUIET | {"max_epochs": 1, "default_root_dir": tmp_path}
    )
    told = flags()
    model = Tiny()
    trainer.fit(model)
    assert set(model.flags) == {told}
    assert flags() == told
    assert callback.report.deterministic == theirs


# Reports


def test_the_console_gets_one_line(capsys, tmp_path):
    fit(Tiny(), SeedEverything(42), default_root_dir=tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weightwatch")]
    reach = "random, NumPy, torch and DataLoader workers"
    assert lines == [f"weightwatch: Seed 42 (as asked) for {reach}; deterministic algorithms: off."]


def test_the_report_lies_in_a_file_before_the_first_batch(tmp_path):
    callback = SeedEverything(42, deterministic="warn")
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        fit(Tiny(fail_at=0), callback, default_root_dir=tmp_path)
    written = json.loads((tmp_path / "weightwatch" / "seed_report.json").read_text())
    assert written == callback.report.to_dict()
    assert written["changed"]["PL_GLOBAL_SEED"] == [None, "42"]


def test_tensorboard_shows_the_page(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    callback = SeedEverything(42)
    fit(Tiny(), callback, logger=logger)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["tensors"] == ["health/seed/text_summary"]
    (event,) = events.Tensors("health/seed/text_summary")
    assert event.step == 0
    assert event.tensor_proto.string_val[0].decode() == callback.report.to_markdown()


def test_a_trial_run_writes_no_file(tmp_path):
    fit(Tiny(), SeedEverything(42), fast_dev_run=True, default_root_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_ours_is_said_and_ends_neither_the_fit_nor_the_restoring(monkeypatch, caplog, tmp_path):
    def break_down(*args):
        raise OSError("no console")

    monkeypatch.setattr(seed_everything._trainer, "tell", break_down)
    before = flags()
    callback = SeedEverything(42, deterministic=True)
    model = Tiny()
    fit(model, callback, default_root_dir=tmp_path)
    assert len(model.seen) == 4
    assert warnings_of(caplog) == ["The report of SeedEverything failed (OSError: no console). It is left out."]
    assert flags() == before
    assert not callback.broken


def test_a_failure_to_seed_switches_it_off_and_the_fit_goes_on(monkeypatch, caplog, tmp_path):
    callback = SeedEverything(42, deterministic=True)

    def break_down(*args, **kwargs):
        raise RuntimeError("no report")

    before = flags()
    monkeypatch.setattr(seed_everything.seeding, "describe", break_down)
    model = Tiny()
    fit(model, callback, default_root_dir=tmp_path)
    assert len(model.seen) == 4
    assert callback.broken
    assert warnings_of(caplog) == [
        "SeedEverything.setup failed (RuntimeError: no report). It is switched off, the training goes on."
    ]
    assert flags() == before


# State


def test_the_state_is_what_a_checkpoint_takes_and_its_key_is_nobody_elses(tmp_path):
    callback = SeedEverything(np.int64(42))
    assert callback.state_dict() == {"seed": 42, "source": "argument", "workers": True}
    assert type(callback.state_dict()["seed"]) is int
    assert callback.state_key == "lightning_weightwatch.SeedEverything" == SeedEverything(7).state_key
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == callback.state_dict()


def test_it_is_constructed_from_a_configuration():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(pl.Callback, "callback")
    configuration = {
        "class_path": "lightning_weightwatch.callbacks.seed_everything.SeedEverything",
        "init_args": {"seed": 7, "deterministic": "warn"},
    }
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # older jsonargparse has the second only
    callback = build(parser.parse_object({"callback": configuration})).callback
    assert (callback.report.seed, callback.workers, callback.deterministic) == (7, True, "warn")


# Two processes


class Ranked(pl.Callback):
    """Makes each process look as if a launcher had started it alone, and reports by file."""

    def __init__(self, seeder, folder):
        self.seeder, self.folder = seeder, folder

    def setup(self, trainer, pl_module, stage):
        logging.getLogger("lightning_weightwatch").addHandler(logging.FileHandler(self.folder / "warnings.txt"))
        if trainer.global_rank == 1:
            os.environ.pop("PL_GLOBAL_SEED", None)
            self.seeder._report = replace(self.seeder.report, seed=self.seeder.report.seed ^ 1)

    def on_train_start(self, trainer, pl_module):
        drawn = [self.seeder.report.seed, self.seeder.broken, torch.rand(()).item()]
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(drawn))


def test_processes_that_picked_apart_agree_on_the_first_ones_seed(tmp_path):
    seeder = SeedEverything()
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=30))
    ranked = Ranked(seeder, tmp_path)
    fit(Tiny(), ranked, seeder, strategy=strategy, devices=2, default_root_dir=tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[:2] == [seeder.report.seed, False]
    assert json.loads((tmp_path / "weightwatch" / "seed_report.json").read_text())["seed"] == first[0]
    assert (tmp_path / "warnings.txt").read_text() == (
        "SeedEverything: the processes started with different seeds, so weights made before the fit may differ between "
        f"them. Pass the same seed to all, such as SeedEverything({first[0]}).\n"
    )


# Bad input


@pytest.mark.parametrize("value", [-1, 2**32, True, "42", 1.5])
def test_a_seed_that_is_none_is_refused(value):
    with pytest.raises((TypeError, ValueError)) as refusal:
        SeedEverything(value)
    assert str(refusal.value) == (
        f"SeedEverything(seed={value!r}): expected a whole number from 0 to 4294967295 or None. "
        "Use 42, or None to pick one."
    )


@pytest.mark.parametrize("value", ["yes", 1])
def test_an_unknown_level_of_determinism_is_refused(value):
    with pytest.raises(ValueError) as refusal:
        SeedEverything(deterministic=value)
    assert str(refusal.value) == (
        f"SeedEverything(deterministic={value!r}): expected one of False, True, 'warn'. "
        'Use "warn" to be warned of operations that are not deterministic.'
    )


def test_a_word_for_workers_is_refused():
    with pytest.raises(TypeError) as refusal:
        SeedEverything(workers="no")
    assert str(refusal.value) == (
        "SeedEverything(workers='no'): expected True or False. Use True to seed DataLoader workers too."
    )
