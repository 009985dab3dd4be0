"""The moment an optimizer steps: told in order, once, to nobody else, and until it is taken back."""

import contextlib
import copy
import gc
import pickle
import signal
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lightning_weightwatch import GradientHealthMonitor, WeightHistogramLogger
from lightning_weightwatch.callbacks._step_hooks import StepHooks
from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules import Rule
from tests.helpers import fits, nets


class Log:
    """Writes down what it is told, and the weight at that moment."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, float]] = []
        self.hooks = StepHooks(lambda o: self.note("before", o), lambda o: self.note("after", o))

    def note(self, what: str, optimizer: Optimizer) -> None:
        self.lines.append((what, weight_of(optimizer).item()))


def weight_of(optimizer: Optimizer) -> Tensor:
    return optimizer.param_groups[0]["params"][0]


def optimizer(make: Callable[..., Optimizer] = SGD) -> Optimizer:
    """Return one whose next step takes its weight from 3 to 2."""
    parameter = nn.Parameter(torch.tensor(3.0))
    parameter.grad = torch.tensor(1.0)
    return make([parameter], lr=1.0)


def hooks_of(*optimizers: Optimizer) -> int:
    return sum(len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in optimizers)


def test_it_is_told_before_and_after_the_weights_change() -> None:
    log, stepped = Log(), optimizer()
    log.hooks.watch(stepped)
    stepped.step()
    assert log.lines == [("before", 3.0), ("after", 2.0)]


def test_a_closure_is_evaluated_in_between_and_its_result_returned() -> None:
    log, stepped = Log(), optimizer()
    log.hooks.watch(stepped)

    def closure() -> float:
        log.note("closure", stepped)
        return 7.5

    assert stepped.step(closure) == 7.5
    assert [what for what, _ in log.lines] == ["before", "closure", "after"]


def test_only_who_steps_is_told_of() -> None:
    log, first, second = Log(), optimizer(), optimizer()
    log.hooks.watch(first, second)
    with torch.no_grad():
        weight_of(second).fill_(9.0)
    second.step()
    assert log.lines == [("before", 9.0), ("after", 8.0)]


def test_an_optimizer_is_watched_once() -> None:
    log, stepped = Log(), optimizer()
    for _ in range(3):
        log.hooks.watch(stepped, stepped)
    stepped.step()
    assert len(log.lines) == 2


def test_what_has_no_step_hooks_is_left_alone() -> None:
    class Duck:
        param_groups: tuple[Any, ...] = ()

    log, duck = Log(), Duck()
    log.hooks.watch(duck)
    assert vars(duck) == {}
    log.hooks.remove()


def test_removal_takes_its_own_hooks_away_and_leaves_those_of_others() -> None:
    log, stepped, theirs = Log(), optimizer(), []
    stepped.register_step_pre_hook(lambda *_: theirs.append("before"))
    log.hooks.watch(stepped)
    stepped.register_step_post_hook(lambda *_: theirs.append("after"))
    log.hooks.remove()
    log.hooks.remove()
    stepped.step()
    assert (log.lines, theirs, hooks_of(stepped)) == ([], ["before", "after"], 2)


def test_after_a_removal_it_can_watch_again() -> None:
    log, stepped = Log(), optimizer()
    log.hooks.watch(stepped)
    log.hooks.remove()
    log.hooks.watch(stepped)
    stepped.step()
    assert len(log.lines) == 2


class Fails(SGD):
    """Raises within its fourth step."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        loss, self.steps = super().step(closure), self.steps + 1
        if self.steps == 4:
            raise ZeroDivisionError("the user's own error")
        return loss


def test_a_step_that_fails_has_no_end() -> None:
    log, stepped = Log(), optimizer(Fails)
    stepped.steps = 3
    log.hooks.watch(stepped)
    with pytest.raises(ZeroDivisionError):
        stepped.step()
    assert log.lines[0] == ("before", 3.0)


def test_arguments_that_a_hook_of_the_users_replaces_stay_replaced() -> None:
    log, stepped, asked = Log(), optimizer(), []
    stepped.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: asked.append("theirs")), {}))
    log.hooks.watch(stepped)
    stepped.step(lambda: asked.append("not theirs"))
    assert asked == ["theirs"]


def test_a_copy_and_a_pickle_of_a_watched_optimizer_carry_no_hooks() -> None:
    log, stepped = Log(), optimizer()
    log.hooks.watch(stepped)
    copies = [copy.deepcopy(stepped), pickle.loads(pickle.dumps(stepped))]
    assert hooks_of(*copies) == 0
    for other in copies:
        other.step()
    assert log.lines == []


# --- optimizers that are not like torch's -----------------------------------------------------------------------------


def test_an_optimizer_where_one_lay_that_is_gone_is_watched_like_any_other() -> None:
    """It was known by its address alone, and one made where an earlier one had been was taken for that one."""
    log, missed = Log(), 0
    for _ in range(50):
        stepped = optimizer()
        log.hooks.watch(stepped)
        missed += hooks_of(stepped) == 0
        del stepped
        gc.collect()
    assert missed == 0


class Wrapper(Optimizer):
    """Wraps another, and is made without ``super().__init__()``, as Lookahead often is."""

    def __init__(self, params: Any, **options: Any) -> None:
        self.inner = SGD(params, **options)
        self.defaults, self.param_groups, self.state = self.inner.defaults, self.inner.param_groups, defaultdict(dict)

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)


class Prepared(Wrapper):
    """As timm makes it: with room for hooks, which nobody calls."""

    def __init__(self, params: Any, **options: Any) -> None:
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        super().__init__(params, **options)


def test_an_optimizer_without_room_for_hooks_is_left_alone() -> None:
    """It has the methods but not what they need, and raised."""
    log, stepped = Log(), optimizer(Wrapper)
    log.hooks.watch(stepped)
    stepped.step()
    assert weight_of(stepped).item() == 2.0


class Projects(SGD):
    """Does something of its own after the step of the class it is made of."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            weight_of(self).mul_(10)
        return loss


def test_a_step_made_of_another_classs_step_is_one_step_and_ends_when_it_ends() -> None:
    """Once torch had seen an instance of the parent, both steps called the hooks: the inner end was taken for the end.

    An update was then measured without what the subclass did, or with it, by what else ran in the process.
    """
    log, stepped = Log(), optimizer(Projects)
    optimizer(SGD)
    log.hooks.watch(stepped)
    stepped.step()
    assert log.lines == [("before", 3.0), ("after", 20.0)]


class KeepsAll(SGD):
    """Is pickled with everything it holds."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__


def test_an_optimizer_that_is_pickled_with_all_it_holds_still_can_be() -> None:
    """Its pickling raised, in the middle of a run that saves its optimizer."""
    stepped = optimizer(KeepsAll)
    pickle.dumps(stepped)
    log = Log()
    log.hooks.watch(stepped)
    pickle.dumps(stepped)


# --- in a fit ---------------------------------------------------------------------------------------------------------


class Net(nets.Net):
    make: Callable[..., Optimizer] = SGD

    def configure_optimizers(self) -> Optimizer:
        return type(self).make(self.parameters(), lr=0.05)


def net(make: Callable[..., Optimizer]) -> type[Net]:
    return type("Net", (Net,), {"make": staticmethod(make)})


class Witness:
    """A monitor that keeps its evidence."""

    def __init__(self, **arguments: Any) -> None:
        self.evidence: Evidence | None = None
        rules = [Rule("witness", self._look)]
        arguments = {"every_n_steps": 1, "statistics_every_n_steps": 1, "max_overhead": None} | arguments
        self.monitor = GradientHealthMonitor(rules=rules, **arguments)

    def _look(self, evidence: Evidence) -> Any:
        self.evidence = evidence
        return iter(())


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("make", [SGD, Wrapper, Prepared, Projects, KeepsAll], ids=lambda make: make.__name__)
def test_no_optimizer_switches_a_watcher_off_or_is_changed_by_it(make: Any, tmp_path: Any) -> None:
    """Where an optimizer had no room for hooks, all watching ended before the first step."""
    witness, logger = Witness(), WeightHistogramLogger(every_n_steps=1, figures=0)
    options = {"max_epochs": 1, "logger": TensorBoardLogger(tmp_path)}
    watched = fits.fit(net(make), [witness.monitor, logger], **options)
    assert same_weights(watched, fits.fit(net(make), max_epochs=1))
    assert (witness.monitor.broken, logger.broken) == (False, False)
    assert witness.evidence.steps == list(range(8))
    assert np.isfinite(witness.evidence.norms).all()


class Swallows(Net):
    """Steps by hand, and goes on where its optimizer fails."""

    make = Fails

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        chosen = self.optimizers()
        chosen.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        with contextlib.suppress(ZeroDivisionError):
            chosen.step()


def test_an_error_of_an_optimizer_that_the_user_catches_is_none_of_ours() -> None:
    witness = Witness()
    watched = fits.fit(Swallows, [witness.monitor], max_epochs=1)
    assert same_weights(watched, fits.fit(Swallows, max_epochs=1))
    assert not witness.monitor.broken
    assert witness.evidence.steps == list(range(8))
    measured = {s.step: bool(np.isfinite(s.values["update_norm"]).all()) for s in witness.evidence.snapshots}
    assert [measured[step] for step in range(4, 8)] == [True] * 4


@pytest.mark.parametrize("ending", [ZeroDivisionError, KeyboardInterrupt])
def test_after_an_end_in_the_middle_of_a_step_no_hook_is_left(ending: type[BaseException], tmp_path: Path) -> None:
    class Ends(SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            loss, self.steps = super().step(closure), self.steps + 1
            if self.steps == 4:
                raise ending
            return loss

    watchers = [GradientHealthMonitor(every_n_steps=1), WeightHistogramLogger(every_n_steps=1, figures=0)]
    trainer, handler = fits.trainer(watchers, logger=TensorBoardLogger(tmp_path)), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((ZeroDivisionError, SystemExit)):
            trainer.fit(net(Ends)())
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(trainer.optimizers) == 1
    assert hooks_of(*trainer.optimizers) == 0


class MadeAnew(nets.Net):
    """Gives the Trainer a new optimizer for every batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.trainer.strategy.optimizers = []
        gc.collect()
        self.trainer.strategy.optimizers = [SGD(self.parameters(), lr=0.05)]


def test_updates_of_optimizers_made_in_mid_run_are_measured() -> None:
    """Some were not, by where the new optimizer came to lie."""
    witness = Witness()
    fits.fit(MadeAnew, [witness.monitor], max_epochs=2)
    assert not witness.monitor.broken
    measured = [bool(np.isfinite(s.values["update_norm"]).all()) for s in witness.evidence.snapshots]
    assert measured == [True] * 16


class Sharpness(SGD):
    """Asks for the gradients twice, at the weights and beside them, as SAM does."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            moves = [p.grad * 0.5 for p in parameters]
            torch._foreach_add_(parameters, moves)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
        super().step()
        return loss


class Centred(SGD):
    """Changes gradients in place within its step, as gradient centralization does."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.sub_(p.grad.mean())
        super().step()
        return loss


@pytest.mark.parametrize("make", [Sharpness, Centred], ids=lambda make: make.__name__)
def test_gradients_that_nothing_clipped_do_not_count_as_clipped(make: Any) -> None:
    """What an optimizer had left of the gradients was taken for what clipping had left."""
    witness = Witness()
    fits.fit(net(make), [witness.monitor], max_epochs=2, gradient_clip_val=1e9)
    evidence = witness.evidence
    clipped = evidence.clipped_norm < evidence.global_norm * (1 - 1e-5)
    assert clipped.sum() == 0


def test_norms_after_clipping_that_cannot_be_told_are_not_passed_over_in_silence(capsys: pytest.CaptureFixture) -> None:
    fits.fit(net(Centred), [Witness().monitor], max_epochs=1, gradient_clip_val=0.1)
    said = "weightwatch: norms after clipping not measured: the step of Centred may change gradients."
    assert said in capsys.readouterr().out.splitlines()
    fits.fit(net(SGD), [Witness().monitor], max_epochs=1, gradient_clip_val=0.1)
    assert "not measured" not in capsys.readouterr().out


class Named(SGD):
    """Steps as torch's own does."""


@pytest.mark.parametrize("make", [SGD, Named], ids=lambda make: make.__name__)
def test_clipping_is_measured_under_an_optimizer_that_steps_as_torchs_own(make: Any) -> None:
    """A class of the user's was taken for one that changes gradients, though it has no step of its own."""
    witness = Witness()
    fits.fit(net(make), [witness.monitor], max_epochs=1, gradient_clip_val=0.1)
    np.testing.assert_allclose(witness.evidence.clipped_norm, 0.1, rtol=1e-4)
