"""Processes that hung, or were shown one another's numbers, under other monitors; what must never happen here."""

import ast
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

import lightning_weightwatch
from lightning_weightwatch import GradientHealthMonitor, InitAuditor, WeightHistogramLogger, figures, reduce
from lightning_weightwatch.parameters import describe, named_tensors, values
from lightning_weightwatch.recorder import GradientRecorder
from tests.helpers import fits, nets
from tests.helpers.ranks import Ranks
from tests.helpers.strategies import FORKING_IS_FINE, Sharded, replicated
from tests.never.listening import Operations, none_is_broken, surround

pytestmark = FORKING_IS_FINE

STEPS, EVERY = 4, 2
COLLECTIVES = ("all_", "broadcast", "barrier", "gather", "scatter", "reduce", "monitored_barrier", "send", "recv")


class Chain(pl.LightningModule):
    """As many layers as asked for; each process loads samples of its own."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(self.global_rank)
        return DataLoader(torch.randn(2 * STEPS, 2, generator=generator), batch_size=2)


class ShardedChain(Chain):
    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Scribe(pl.Callback):
    """Writes down, on each process, what its callbacks asked of the others, and what was drawn."""

    def __init__(self, watchers: list[pl.Callback], folder: Path) -> None:
        self.watchers, self.folder = watchers, folder
        self.within: list[Any] = []
        self.collectives: list[list[Any]] = []
        self.drawn, self.hooks = 0, []
        for watcher in watchers:
            surround(watcher, partial(self._within, type(watcher).__name__))

    @contextmanager
    def _within(self, *place: Any) -> Iterator[None]:
        self.within, before = list(place), self.within
        yield
        self.within = before

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen, in a process of its own that ends with the fit."""
        for module in (dist, funcol):
            for name, function in list(vars(module).items()):
                if callable(function) and not isinstance(function, type) and name.startswith(COLLECTIVES):
                    setattr(module, name, self._told(name, function))
        figures.encode = self._counted(figures.encode)

    def _told(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def told(*arguments: Any, **named: Any) -> Any:
            if self.within:
                sizes = [a.numel() for a in arguments if isinstance(a, Tensor)]
                op = str(named.get("op", "SUM")).rpartition(".")[2]
                self.collectives.append([*self.within, name, op, *sizes])
            return function(*arguments, **named)

        return told

    def _counted(self, encode: Callable[..., bytes]) -> Callable[..., bytes]:
        def counted(figure: Any) -> bytes:
            self.drawn += 1
            return encode(figure)

        return counted

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.hooks.append(sum(len(p._post_accumulate_grad_hooks or ()) for p in pl_module.parameters()))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        told = {
            "collectives": self.collectives,
            "drawn": self.drawn,
            "hooks": self.hooks,
            "whole": none_is_broken(self.watchers),
            "weights": [values(p).tolist() for p in pl_module.parameters()],
            "random": torch.get_rng_state().tolist(),
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(told))


STRATEGIES: dict[str, tuple[type[Chain], Callable[[], Strategy]]] = {
    "DDP": (Chain, replicated),
    "FSDP2": (ShardedChain, lambda: Sharded(2)),
}


def all_watchers() -> list[pl.Callback]:
    return [
        InitAuditor(),
        WeightHistogramLogger(every_n_steps=EVERY, figures=1, max_overhead=None),
        GradientHealthMonitor(every_n_steps=EVERY, statistics_every_n_steps=EVERY, max_overhead=None),
    ]


def run(strategy: str, layers: int, folder: Path, watchers: list[pl.Callback]) -> list[dict[str, Any]]:
    """Train on two processes; return what each wrote down."""
    model, make = STRATEGIES[strategy]
    torch.manual_seed(0)
    options = {"devices": 2, "max_epochs": 1, "use_distributed_sampler": False, "logger": TensorBoardLogger(folder)}
    fits.trainer([*watchers, Scribe(watchers, folder)], strategy=make(), **options).fit(model(layers))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


Told = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=STRATEGIES)
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Return what two processes wrote down, by the number of parameters; under 0 of those who trained unwatched."""
    runs = {0: (5, []), 10: (5, all_watchers()), 1000: (500, all_watchers())}
    return {
        count: run(request.param, layers, tmp_path_factory.mktemp("ranks"), watchers)
        for count, (layers, watchers) in runs.items()
    }


def test_a_run_on_two_processes_is_not_another_one_for_being_watched(told: Told) -> None:
    for plain, watched in zip(told[0], told[10], strict=True):
        assert plain["weights"] == watched["weights"]
        assert plain["random"] == watched["random"]


def test_no_process_enters_a_collective_that_the_other_does_not(told: Told) -> None:
    """None hides in a branch of one rank, and all are of the same size and kind."""
    for first, second in told.values():
        assert first["whole"]
        assert second["whole"]
        assert first["collectives"] == second["collectives"]


def test_collectives_do_not_grow_with_the_number_of_parameters(told: Told) -> None:
    (few, _), (many, _) = told[10], told[1000]
    assert [call[:5] for call in few["collectives"]] == [call[:5] for call in many["collectives"]]
    assert few["collectives"]


def test_no_step_waits_for_another_process_and_a_flush_sends_one_sum_and_one_maximum_at_most(told: Told) -> None:
    monitor = [call for call in told[1000][0]["collectives"] if call[0] == "GradientHealthMonitor"]
    later = [call for call in monitor if call[1] > 0]  # parameters are laid out in the first step
    flushes = {EVERY - 1, 2 * EVERY - 1, 2 * EVERY}  # the last one is at the end of the fit
    assert {step for _, step, *_ in later} <= flushes
    for flush in flushes:
        calls = [(name, op) for _, step, _, name, op, *_ in later if step == flush]
        assert sorted(calls) in ([], [("all_reduce", "SUM")], [("all_reduce", "MAX"), ("all_reduce", "SUM")])
    assert later


def test_no_whole_tensor_is_put_together_from_its_shards(told: Told) -> None:
    """Summoning whole parameters makes a step several times as long."""
    for first, _ in (told[10], told[1000]):
        once_begun = {call[3] for call in first["collectives"] if call[2] != "on_train_start"}
        assert once_begun == {"all_reduce"}  # before that, the folder of the logs is broadcast


def test_nothing_is_drawn_and_nobody_listens_on_one_process_only(told: Told) -> None:
    for first, second in (told[10], told[1000]):
        assert first["drawn"] > 0
        assert second["drawn"] == 0
        assert first["hooks"] == second["hooks"]
        assert set(first["hooks"][1:]) == {0}


# --- what never stands in the package ---------------------------------------------------------------------------------

FORBIDDEN = {
    "full_tensor": "puts a whole tensor together on every process",
    "summon_full_params": "does so for all of them",
    "callback_metrics": "reduces when it is looked at",
    "logged_metrics": "reduces when it is looked at",
    "log_dict": "reduces under keys that may differ",
    "all_gather_object": "pickles, and waits for the device twice",
    "get_scale": "waits for the device",
    "zero_grad": "is the user's to call",
    "backward": "is the user's to call",
    "training_step": "is the user's to call",
    "register_forward_hook": "cuts compiled graphs and comes twice under checkpointing",
    "register_forward_pre_hook": "cuts compiled graphs and comes twice under checkpointing",
    "register_full_backward_hook": "forbids in-place activations",
    "add_histogram": "raises on NaN",
    "grad_norm": "fails on DTensors, and is one of a shard elsewhere",
}
PACKAGE = Path(lightning_weightwatch.__file__).parent
# Running a broken batch again is asked for; it is not done where modules are compiled, cut or spread over processes.
ASKED_FOR = {*(PACKAGE / "replay").rglob("*.py"), PACKAGE / "callbacks" / "_replaying.py"}
NAMED = {("listening.py", "backward")}  # a function that is recognised, and never called


def test_what_hangs_or_lies_on_several_processes_is_never_called() -> None:
    called = [
        f"{path.name}:{node.lineno} calls {node.attr}"
        for path in {*PACKAGE.rglob("*.py")} - ASKED_FOR
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN and (path.name, node.attr) not in NAMED
    ]
    assert called == []


# --- two processes that hold different things -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("ranks") / "meeting")
    yield ranks
    ranks.close()


def recorded(gradients: list[list[list[float] | None]], *, sharded: bool) -> tuple[Any, ...]:
    """Record one step in which each process has gradients of its own; return what is read, and what was sent."""
    mine = gradients[dist.get_rank()]
    module = nn.ParameterList([torch.zeros(len(g or [0.0])) for g in mine])
    whole = nn.ParameterList([torch.zeros(sum(len(rank[i] or [0.0]) for rank in gradients)) for i in range(len(mine))])
    recorder = GradientRecorder(
        describe(whole if sharded else module), named_tensors(module), rows=2, sharded=sharded, clipping=True
    )
    optimizer = torch.optim.SGD(module.parameters())
    for parameter, gradient in zip(module, mine, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    calls: list[tuple[str, int]] = []

    def note(name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name.startswith("c10d."):
            calls.append((name, arguments[0][0].numel()))

    with Operations(note):
        recorder.begin_snapshot(0)
        recorder.add(0, optimizer, recorder.gradients(optimizer), loss=torch.tensor(1.0))
        recorder.before_step(optimizer)
        recorder.after_step(0, optimizer, recorder.gradients(optimizer))
        flight = recorder.send({}, agree=True)
    found = recorder.receive(flight)
    return found.norms.tolist(), found.measured.tolist(), calls


def recorded_shards(gradients: list) -> tuple[Any, ...]:
    return recorded(gradients, sharded=True)


def recorded_copies(gradients: list) -> tuple[Any, ...]:
    return recorded(gradients, sharded=False)


PATTERNS = {
    "both have all": [[[3.0], [1.0, 2.0]], [[4.0], [2.0]]],
    "one has no gradient of the first": [[[3.0], [1.0, 2.0]], [None, [2.0]]],
    "each lacks another": [[None, [1.0, 2.0]], [[4.0], None]],
    "one has none at all": [[[3.0], [1.0, 2.0]], [None, None]],
    "nobody has any": [[None, None], [None, None]],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_shards_without_a_gradient_neither_hang_nor_become_zeros(pattern: str, two_ranks: Ranks) -> None:
    """What is there counts in full, what is on no process is not measured."""
    gradients = PATTERNS[pattern]
    pieces = [[rank[i] for rank in gradients if rank[i] is not None] for i in range(2)]
    truth = [float(np.linalg.norm(np.concatenate(each))) if each else 0.0 for each in pieces]
    first, second = two_ranks(recorded_shards, gradients)
    assert first == second
    assert first[0] == [pytest.approx(truth)]
    assert first[1] == [[bool(each) for each in pieces]]


@pytest.mark.parametrize("work", [recorded_shards, recorded_copies])
def test_what_travels_does_not_depend_on_which_gradients_there_are(work: Callable, two_ranks: Ranks) -> None:
    """Processes that sent different numbers of them would wait for ever, or add up what does not belong together."""
    sent = [call[2] for gradients in PATTERNS.values() for call in two_ranks(work, gradients)]
    assert len(sent) == 10
    assert all(calls == sent[0] for calls in sent)
    assert len(sent[0]) == (2 if work is recorded_shards else 1)


def test_copies_without_a_gradient_on_one_process_are_not_averaged_with_zeros(two_ranks: Ranks) -> None:
    """Where nothing reduces gradients, each process tells its own."""
    first, second = two_ranks(recorded_copies, [[[3.0], [5.0]], [None, [5.0]]])
    assert (first[0], first[1]) == ([[3.0, 5.0]], [[True, True]])
    assert second[1] == [[False, True]]
    assert second[0][0][1] == 5.0


def norms_of_uneven_shards(seed: int) -> list[list[float]]:
    cut = [17, 500, 1][seed]
    whole = torch.randn(501, generator=torch.Generator().manual_seed(seed))
    mine = whole[:cut] if dist.get_rank() == 0 else whole[cut:]
    module = nn.ParameterList([torch.zeros(len(mine))])
    recorder = GradientRecorder(describe(nn.ParameterList([whole])), named_tensors(module), rows=2, sharded=True)
    module[0].grad = mine.clone()
    optimizer = torch.optim.SGD(module.parameters())
    recorder.add(0, optimizer, recorder.gradients(optimizer), loss=torch.tensor(1.0))
    return recorder.receive(recorder.send({}, agree=True)).norms.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_a_shard_norm_never_passes_for_the_whole_nor_differs_between_neighbours(seed: int, two_ranks: Ranks) -> None:
    """They are alike to the bit: what follows from numbers, such as to stop, must follow on all of them."""
    first, second = two_ranks(norms_of_uneven_shards, seed)
    assert first == second
    truth = torch.randn(501, generator=torch.Generator().manual_seed(seed)).double().norm().item()
    assert first == [[pytest.approx(truth, rel=1e-6)]]


# --- a process that fails ---------------------------------------------------------------------------------------------


class Asked:
    """In the place of ``torch.distributed``: writes down what is asked for."""

    def __init__(self, asked: list[str]) -> None:
        self.__dict__["asked"] = asked

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        raise AttributeError(name)


def test_a_process_that_fails_asks_nothing_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the middle of a step, and would never answer."""
    asked: list[str] = []

    class Fails(nets.TurnsNaN):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 6:
                monkeypatch.setattr(reduce, "is_distributed", lambda: True)
                monkeypatch.setattr(reduce, "dist", Asked(asked))
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    watchers = [*all_watchers(), GradientHealthMonitor(every_n_steps=100, prefix="late")]
    with pytest.raises(ZeroDivisionError):
        fits.fit(Fails, watchers, logger=TensorBoardLogger(tmp_path))
    assert asked == []
    assert none_is_broken(watchers)
    assert watchers[-1].findings
