"""What every callback promises: it never changes the run, never kills it, and leaves nothing behind."""

import copy
import inspect
import logging
import pickle
import random
import re
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_weightwatch.callbacks._state import unpacked
from tests.helpers import events, fits, nets
from tests.helpers.every_callback import CLASSES, every_callback, every_watcher

NETS = [nets.Net, nets.TwoOptimizers, nets.DeepSigmoid, nets.TurnsNaN, nets.Strange]
every_net = pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)


def same_bits(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(torch.view_as_real(x) if x.is_complex() else x.nan_to_num(7.0), _plain(y))
        for x, y in zip(left.values(), right.values(), strict=True)
    )


def _plain(y: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(y) if y.is_complex() else y.nan_to_num(7.0)


def streams() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def hooks_of(model: torch.nn.Module) -> Counter:
    """Count every hook that hangs on a module or a parameter."""
    count: Counter = Counter()
    for module in model.modules():
        for name, value in vars(module).items():
            if "hook" in name and isinstance(value, (dict, OrderedDict)):
                count[name] += len(value)
    for parameter in model.parameters():
        count["tensor hooks"] += len(parameter._backward_hooks or ())
        count["accumulate hooks"] += len(getattr(parameter, "_post_accumulate_grad_hooks", None) or ())
    return count


@every_watcher
@every_net
def test_training_is_bit_identical_with_and_without(callback_class: type, net: type, tmp_path: Path) -> None:
    plain = fits.fit(net)
    after_plain = streams()
    watched = fits.fit(net, [callback_class()], logger=TensorBoardLogger(tmp_path))
    assert same_bits(plain, watched)
    assert streams() == after_plain


def test_all_watchers_together_are_bit_identical_too(tmp_path: Path) -> None:
    watchers = [cls() for cls in CLASSES if cls.__name__ != "SeedEverything"]
    assert same_bits(fits.fit(nets.Net), fits.fit(nets.Net, watchers, logger=TensorBoardLogger(tmp_path)))


@every_callback
@every_net
def test_nothing_hangs_on_the_model_afterwards(callback_class: type, net: type) -> None:
    plain, watched = fits.fit(net), fits.fit(net, [callback_class()])
    assert hooks_of(watched) == hooks_of(plain)
    assert vars(watched).keys() == vars(plain).keys()


@every_callback
def test_the_model_is_let_go(callback_class: type) -> None:
    callback = callback_class()
    model = fits.fit(nets.Net, [callback])
    callback.__dict__.pop("log", None)  # Lightning itself hangs the module's bound methods on every callback
    callback.__dict__.pop("log_dict", None)
    parameters = {id(p) for p in model.parameters()}
    assert not parameters & _reachable(callback)


def _reachable(root: object) -> set[int]:
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, str, int, float)):
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, (list, tuple, set)):
            waiting += thing
        elif hasattr(thing, "__dict__") and not inspect.isroutine(thing):
            waiting += vars(thing).values()
    return seen


@every_callback
def test_a_second_fit_works(callback_class: type, tmp_path: Path) -> None:
    callback = callback_class()
    for _ in range(2):
        fits.fit(nets.Net, [callback], logger=TensorBoardLogger(tmp_path))
    assert not callback.broken


@every_callback
def test_the_same_trainer_can_fit_again(callback_class: type, tmp_path: Path) -> None:
    callback = callback_class()
    trainer = fits.trainer([callback], logger=TensorBoardLogger(tmp_path))
    trainer.fit(nets.Net())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(nets.Net())
    assert not callback.broken


@every_callback
def test_a_copy_works_as_well(callback_class: type) -> None:
    for copied in (copy.deepcopy(callback_class()), pickle.loads(pickle.dumps(callback_class()))):
        fits.fit(nets.Net, [copied])
        assert not copied.broken


@every_callback
@pytest.mark.parametrize(
    "options",
    [
        {"logger": False},
        {"fast_dev_run": True},
        {"barebones": True, "logger": None, "enable_checkpointing": None, "log_every_n_steps": None},
        {"max_epochs": 0},
        {"limit_train_batches": 0},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*barebones.*")
@pytest.mark.filterwarnings("ignore:.*no training batches.*")
def test_trainers_of_all_kinds_are_taken(callback_class: type, options: dict[str, Any]) -> None:
    callback = callback_class()
    options = (
        {"enable_progress_bar": None, "enable_model_summary": None} | options if "barebones" in options else options
    )
    fits.fit(nets.Net, [callback], **options)
    assert not callback.broken


@every_callback
@every_net
def test_networks_of_all_kinds_are_taken(callback_class: type, net: type, tmp_path: Path) -> None:
    callback = callback_class()
    fits.fit(net, [callback], logger=TensorBoardLogger(tmp_path))
    assert not callback.broken


@every_callback
def test_several_loggers_are_all_served(callback_class: type, tmp_path: Path) -> None:
    callback = callback_class()
    loggers = [TensorBoardLogger(tmp_path / "a"), CSVLogger(tmp_path / "b"), TensorBoardLogger(tmp_path / "c")]
    fits.fit(nets.Net, [callback], logger=loggers)
    first, second = events.read(tmp_path / "a"), events.read(tmp_path / "c")
    assert first.all_tags() == second.all_tags()
    assert not callback.broken


@every_callback
def test_a_logger_that_fails_ends_nothing(callback_class: type, tmp_path: Path, caplog: Any) -> None:
    class Broken(CSVLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if any("health" in key for key in metrics):
                raise OSError("disk full")

    callback = callback_class()
    fits.fit(nets.Net, [callback], logger=[Broken(tmp_path / "a"), TensorBoardLogger(tmp_path / "b")])
    assert not callback.broken
    assert sum("disk full" in record.message for record in caplog.records) <= 1


@every_callback
def test_an_internal_error_is_told_once_and_ends_nothing(callback_class: type, monkeypatch: Any, caplog: Any) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a bug of ours")

    plain = fits.fit(nets.Net)
    for name in ("sinks_of", "evidence_folder", "tell"):
        monkeypatch.setattr(f"lightning_weightwatch.callbacks._trainer.{name}", fails)
    callback = callback_class()
    watched = fits.fit(nets.Net, [callback])
    assert callback.broken
    assert sum("a bug of ours" in r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING) == 1
    if callback_class.__name__ != "SeedEverything":
        assert same_bits(plain, watched)


@every_callback
def test_the_users_own_error_comes_through(callback_class: type) -> None:
    callback = callback_class()
    with pytest.raises(ZeroDivisionError, match="the user's own error"):
        fits.fit(nets.Breaks, [callback])
    assert not callback.broken
    fits.fit(nets.Net, [callback])
    assert not callback.broken


@every_callback
def test_validate_and_test_alone_work(callback_class: type) -> None:
    callback = callback_class()
    fits.trainer([callback]).validate(nets.Net(), nets.batches(), verbose=False)
    assert not callback.broken


def _checkpoint(callbacks: list[pl.Callback], folder: Path) -> Path:
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=5, save_top_k=-1)
    fits.fit(nets.Net, [*callbacks, saver], enable_checkpointing=True, logger=TensorBoardLogger(folder))
    return sorted(folder.glob("*.ckpt"))[0]


@every_callback
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended.*")
@pytest.mark.filterwarnings("ignore:.*Be aware that when using `ckpt_path`.*")
def test_a_run_resumes_with_default_arguments(callback_class: type, before: bool, after: bool, tmp_path: Path) -> None:
    path = _checkpoint([callback_class()] if before else [], tmp_path)
    callback = callback_class()
    trainer = fits.trainer([callback] if after else [], max_epochs=3)
    trainer.fit(nets.Net(), ckpt_path=path)
    assert trainer.global_step >= 24  # lightning 2.4 counts one more after a resume within an epoch
    assert not callback.broken


@every_callback
def test_a_checkpoint_holds_plain_values_only(callback_class: type, tmp_path: Path) -> None:
    torch.load(_checkpoint([callback_class()], tmp_path), weights_only=True)


@every_watcher  # what SeedEverything keeps is a record: a resumed run is seeded by its own arguments
def test_state_makes_the_round_trip(callback_class: type) -> None:
    callback = callback_class()
    fits.fit(nets.TurnsNaN, [callback])
    other = callback_class()
    other.load_state_dict(copy.deepcopy(callback.state_dict()))
    np.testing.assert_equal(unpacked(other.state_dict()), unpacked(callback.state_dict()))


@every_callback
def test_a_state_of_another_version_is_taken(callback_class: type) -> None:
    callback_class().load_state_dict({})
    callback_class().load_state_dict({"from the future": 1})


def test_state_keys_differ() -> None:
    assert len({cls().state_key for cls in CLASSES}) == len(CLASSES)


@every_callback
def test_a_yaml_file_can_make_it(callback_class: type) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[pl.Callback])
    config = parser.parse_object({"callbacks": [{"class_path": f"lightning_weightwatch.{callback_class.__name__}"}]})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    (made,) = instantiate(config).callbacks
    assert type(made) is callback_class


@every_callback
def test_every_argument_is_described_and_typed(callback_class: type) -> None:
    signature = inspect.signature(callback_class)
    described = re.search(r"Args:\n(.*?)\n\n", inspect.getdoc(callback_class) + "\n\n", re.DOTALL).group(1)
    assert re.findall(r"^ {4}(\w+):", described, re.MULTILINE) == list(signature.parameters)
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


@every_callback
def test_the_other_namespace_is_taken(callback_class: type, tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Theirs(other.LightningModule):
        __init__ = nets.Net.__init__

    for name in ("forward", "training_step", "configure_optimizers", "train_dataloader"):
        setattr(Theirs, name, vars(nets.Net)[name])
    Theirs.__init__ = lambda self: (other.LightningModule.__init__(self), _fill(self))[0]
    callback = callback_class()
    trainer = other.Trainer(
        callbacks=[callback],
        max_epochs=1,
        accelerator="cpu",
        logger=other.loggers.TensorBoardLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
    )
    trainer.fit(Theirs())
    assert not callback.broken


def _fill(module: torch.nn.Module) -> None:
    model = nets.Net()
    module.lr, module.body, module.head = model.lr, model.body, model.head


@every_callback
def test_the_table_in_the_docstring_is_what_is_logged(callback_class: type, tmp_path: Path) -> None:
    """Tags of a sick run, which logs everything there is, with names of parameters left out."""
    for net, clip in ((nets.TurnsNaN, None), (nets.DeepSigmoid, 1.0)):
        logger = TensorBoardLogger(tmp_path)
        fits.fit(net, [callback_class()], max_epochs=5, logger=logger, gradient_clip_val=clip)
    logged = {re.sub(r"/\d\d .*", "/<nn name>", tag) for tag in events.read(tmp_path).all_tags()}
    documented = set(re.findall(r"^``(health.+?)``", inspect.getdoc(callback_class), re.MULTILINE))
    assert {tag for tag in logged if tag.startswith("health")} == documented
