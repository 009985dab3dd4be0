"""Hooks that broke a model, a copy, a checkpoint or a compiled graph elsewhere; what must never happen here."""

import contextlib
import copy
import io
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as theirs
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_weightwatch import GradientHealthMonitor, InitAuditor, WeightHistogramLogger, watch
from tests.helpers import events, fits, nets
from tests.never.listening import none_is_broken, remembered

pytestmark = [pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")]
MOMENTS = (
    "on_train_start",
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_end",
)


def watchers() -> list[pl.Callback]:
    """Return every callback, looking as often as it can."""
    often = {"max_overhead": None}
    return [
        watch(seed=1)[0],
        InitAuditor(),
        WeightHistogramLogger(every_n_steps=1, figures=0, **often),
        GradientHealthMonitor(every_n_steps=1, statistics_every_n_steps=1, **often),
    ]


class Moments(pl.Callback):
    """Does something at every moment of the first steps of a fit, after all other callbacks."""

    def __init__(self, act: Callable[[pl.Trainer, pl.LightningModule], None], *, steps: int = 2) -> None:
        self.act, self.steps = act, steps
        for name in MOMENTS:
            setattr(self, name, self._at)

    def _at(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step < self.steps or not trainer.training:
            self.act(trainer, pl_module)


def step_hooks(optimizer: torch.optim.Optimizer) -> int:
    """Count what hangs on an optimizer."""
    names = [name for name in vars(optimizer) if "hook" in name]
    return sum(len(getattr(optimizer, name)) for name in names)


def module_hooks(model: nn.Module) -> int:
    """Count what hangs on modules."""
    return sum(
        len(value)
        for module in model.modules()
        for name, value in vars(module).items()
        if "hook" in name and hasattr(value, "__len__")
    )


def same(one: Any, other: Any) -> bool:
    """Whether two things of a checkpoint are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def parameter_hooks(model: nn.Module) -> int:
    """Count what hangs on parameters."""
    return sum(len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


# --- hooks on optimizers ----------------------------------------------------------------------------------------------


class Keeps(nets.Net):
    """Keeps its optimizer for the test."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.kept = super().configure_optimizers()
        return self.kept


class Ends(Keeps):
    """Its fit does not get to the end."""

    by: type[BaseException] = ZeroDivisionError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 5:
            assert step_hooks(self.kept) > 0
            raise self.by
        return super().training_step(batch, batch_idx)


class Interrupted(Ends):
    by = KeyboardInterrupt


class EndsInStep(Keeps):
    """Its fit ends between the two hooks of a step, after the first of them."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        optimizer.register_step_pre_hook(lambda *_: 1 / 0)
        return optimizer


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Put back the handler that Lightning changes when it is interrupted."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("net", [Keeps, Ends, Interrupted, EndsInStep])
def test_no_hook_stays_on_an_optimizer_however_the_fit_ends(net: type, ctrl_c: None) -> None:
    model = net()
    with contextlib.suppress(ZeroDivisionError, SystemExit):
        fits.trainer(watchers()).fit(model)
    assert step_hooks(model.kept) == (net is EndsInStep)
    assert module_hooks(model) == parameter_hooks(model) == 0


class Lookahead(torch.optim.Optimizer):
    """Wraps another optimizer without being made as one, as several in the wild do; nothing can hang on it."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.state = base, base.state
        self.param_groups, self.defaults = base.param_groups, base.defaults

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)


class Wrapped(nets.Net):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Lookahead(super().configure_optimizers())


def test_an_optimizer_that_nothing_can_hang_on_does_not_switch_the_monitor_off() -> None:
    monitor, seen = remembered()
    fits.fit(Wrapped, [monitor])
    assert not monitor.broken
    assert seen[-1].steps == list(range(16))
    plain, seen_plain = remembered()
    fits.fit(nets.Net, [plain])
    assert (seen[-1].norms == seen_plain[-1].norms).all()


def test_copies_of_an_optimizer_do_not_carry_our_hooks_and_can_be_made_at_any_moment() -> None:
    copies = []

    def copied(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        buffer = io.BytesIO()
        torch.save(optimizer, buffer)
        buffer.seek(0)
        copies.extend([copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))])
        copies.append(torch.load(buffer, weights_only=False))
        hooked.append(step_hooks(optimizer))

    hooked: list[int] = []
    fits.fit(nets.Net, [*watchers(), Moments(copied)])
    assert max(hooked) == 2
    assert len(copies) > 20
    assert not any(step_hooks(optimizer) for optimizer in copies)


def test_a_checkpoint_is_the_same_with_and_without_but_for_the_state_of_callbacks(tmp_path: Path) -> None:
    saved = []
    for name, extra in (("plain", []), ("watched", watchers()[1:])):
        saver = theirs.ModelCheckpoint(dirpath=tmp_path / name, every_n_train_steps=10)
        fits.fit(nets.Net, [*extra, saver], enable_checkpointing=True)
        saved.append(torch.load(next((tmp_path / name).glob("*.ckpt")), weights_only=True))
    plain, watched = saved
    assert plain.keys() == watched.keys()
    assert all(same(plain[key], watched[key]) for key in plain.keys() - {"callbacks"})


# --- copies of the model ----------------------------------------------------------------------------------------------


def test_a_model_can_be_saved_pickled_and_copied_at_any_moment() -> None:
    copies: list[nn.Module] = []

    def copied(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        buffer = io.BytesIO()
        torch.save(pl_module.body, buffer)
        buffer.seek(0)
        made = [copy.deepcopy(pl_module.body), pickle.loads(pickle.dumps(pl_module.body))]
        made.append(torch.load(buffer, weights_only=False))
        copies.extend(made)
        assert module_hooks(pl_module) == 0

    fits.fit(nets.Net, [*watchers(), Moments(copied)])
    assert len(copies) > 20
    for made in copies:
        assert module_hooks(made) == parameter_hooks(made) == 0


class Averaged(Keeps):
    """Has something that an average can be validated on."""

    def val_dataloader(self) -> Any:
        return nets.batches(8)


AVERAGES: dict[str, dict[str, Any]] = {
    "StochasticWeightAveraging": {"swa_lrs": 0.01, "swa_epoch_start": 1},
    "WeightAveraging": {},
    "EMAWeightAveraging": {},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_averaged_copy_of_the_model_is_neither_a_crash_nor_watched(name: str, tmp_path: Path) -> None:
    def averaged() -> pl.Callback:
        return getattr(theirs, name)(**AVERAGES[name])

    plain = fits.fit(Averaged, [watch(seed=1)[0], averaged()])
    for place in (0, 4):
        averaging, ours = averaged(), watchers()
        callbacks = [*ours[:place], averaging, *ours[place:]]
        watched = fits.fit(Averaged, callbacks, logger=TensorBoardLogger(tmp_path))
        assert none_is_broken(ours)
        for model in (watched, averaging._average_model or watched):
            assert module_hooks(model) == parameter_hooks(model) == 0
        assert step_hooks(watched.kept) == 0
        assert same(plain.state_dict(), watched.state_dict())


class Scripted(nets.Net):
    """A part of it is TorchScript, which takes no hook made of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.jit.script(self.body)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated.*")
@pytest.mark.filterwarnings("ignore:.*is not supported in Python 3.14.*")
def test_torchscript_is_neither_refused_nor_in_the_way(tmp_path: Path) -> None:
    def scripted(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.jit.script(pl_module.body)

    ours = watchers()
    fits.fit(Scripted, [*ours, Moments(scripted)], logger=TensorBoardLogger(tmp_path))
    assert none_is_broken(ours)
    fits.fit(nets.Net, [*watchers(), Moments(scripted)])


# --- hooks on modules -------------------------------------------------------------------------------------------------

REGISTER = [name for name in dir(nn.Module) if name.startswith("register_") and name.endswith("hook")]


def test_no_module_is_ever_hooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Module hooks break graphs, forbid in-place activations, see what is overwritten, and come twice."""
    registered: list[str] = []
    for name in REGISTER:
        original = getattr(nn.Module, name)

        def register(self: nn.Module, *args: Any, _name: str = name, _original: Any = original, **named: Any) -> Any:
            registered.append(_name)
            return _original(self, *args, **named)

        monkeypatch.setattr(nn.Module, name, register)
    ours = watchers()
    fits.fit(nets.Net, ours, logger=TensorBoardLogger(tmp_path))
    assert len(REGISTER) > 5
    assert none_is_broken(ours)
    assert registered == []


def test_hooks_on_parameters_are_gone_when_the_first_step_is_taken() -> None:
    counts: list[tuple[int, int]] = []

    def counted(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        counts.append((trainer.global_step, parameter_hooks(pl_module)))

    fits.fit(nets.Net, [*watchers(), Moments(counted)])
    assert (0, 6) in counts
    assert {hooked for step, hooked in counts if step > 0} == {0}


# --- compiled networks ------------------------------------------------------------------------------------------------


class Body(nn.Sequential):
    """A part with a forward of its own; torch compiles none of its own classes by ``compile()``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Still(nets.Net):
    """A network without dropout, so that all ways to compile it train alike."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Graphs:
    """Backends that count the graphs they are given; a compilation anew counts again."""

    def __init__(self) -> None:
        self.count = 0

    def backward_too(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.count += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def forward(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def wrapped(backend: Graphs) -> pl.LightningModule:
    model = Still()
    model.body = torch.compile(model.body, backend=backend.backward_too)
    return model


def in_place(backend: Graphs) -> pl.LightningModule:
    model = Still()
    model.body.compile(backend=backend.forward)
    return model


def whole(backend: Graphs) -> pl.LightningModule:
    return torch.compile(Still(), backend=backend.forward)


class StepsCompiled(Still):
    """Its optimizer's step is compiled, together with whatever hangs on it."""

    def __init__(self, backend: Graphs) -> None:
        super().__init__()
        self.backend = backend

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        optimizer.step = torch.compile(optimizer.step, backend=self.backend.forward)
        return optimizer


class StepsCompiledByHand(StepsCompiled):
    """The same under manual optimization, where nothing of Lightning is within the compiled step."""

    def __init__(self, backend: Graphs) -> None:
        super().__init__(backend)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


COMPILED: dict[str, Callable[[Graphs], pl.LightningModule]] = {
    "torch.compile(part)": wrapped,
    "part.compile()": in_place,
    "torch.compile(module)": whole,
    "torch.compile(optimizer.step)": StepsCompiled,
    "torch.compile(optimizer.step), by hand": StepsCompiledByHand,
}


@pytest.fixture
def dynamo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Begin, and leave, without compiled code."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch sets it as it begins to compile
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_fit(way: str, callbacks: list[pl.Callback], folder: Path) -> tuple[int, pl.LightningModule]:
    """Train for 16 steps; return how many graphs were compiled, and the model."""
    torch._dynamo.reset()
    backend = Graphs()
    torch.manual_seed(0)
    model = COMPILED[way](backend)
    fits.trainer([watch(seed=1)[0], *callbacks], logger=TensorBoardLogger(folder)).fit(model)
    return backend.count, getattr(model, "_orig_mod", model)


@pytest.mark.parametrize("way", COMPILED)
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
@pytest.mark.filterwarnings("ignore:.*Profiler.*")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf.*")
def test_a_compiled_network_is_not_cut_into_more_graphs_nor_compiled_again(
    way: str, tmp_path: Path, dynamo: None
) -> None:
    alone, plain = compiled_fit(way, [], tmp_path / "plain")
    ours = watchers()[1:]
    together, watched = compiled_fit(way, ours, tmp_path / "watched")
    assert together == alone > 0
    assert none_is_broken(ours)
    assert same(list(plain.parameters()), list(watched.parameters()))


@pytest.mark.parametrize("way", list(COMPILED)[:3])
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_a_compiled_network_does_not_go_by_other_names(way: str, tmp_path: Path, dynamo: None) -> None:
    compiled_fit(way, watchers()[1:], tmp_path)
    tags = [tag for tag in events.read(tmp_path).tags("histograms") if "weight_hist" in tag]
    names = [name for name, _ in Still().named_parameters()]
    assert sorted(tags) == [f"health.weight_hist/{i:02d} {name}" for i, name in enumerate(names)]


@pytest.mark.parametrize("way", list(COMPILED)[3:])
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
@pytest.mark.filterwarnings("ignore:.*Profiler.*")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf.*")
def test_a_compiled_optimizer_step_does_not_leave_gradients_unmeasured(way: str, tmp_path: Path, dynamo: None) -> None:
    monitor, seen = remembered()
    compiled_fit(way, [monitor], tmp_path / "compiled")
    plain, seen_plain = remembered()
    torch.manual_seed(0)
    model = Still()
    fits.trainer([watch(seed=1)[0], plain]).fit(model)
    assert seen
    assert seen[-1].steps == seen_plain[-1].steps
    assert same(seen[-1].norms.tolist(), seen_plain[-1].norms.tolist())
