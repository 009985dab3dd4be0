"""Trainings that are not one optimizer, one loss and one backward pass: the run is left alone, the numbers are true.

What is recorded is held against a loop in plain torch.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch import callbacks as theirs
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, IterableDataset

from lightning_weightwatch import GradientHealthMonitor, InitAuditor, WeightHistogramLogger, cli, watch
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules import Finding, Rule
from lightning_weightwatch.sinks.files import read_lines
from tests.helpers import events, fits, nets

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),
    pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`.*"),
]


class Still(nets.Net):
    """A network without dropout, so that a plain loop needs no random numbers to follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def fresh(net: Callable[[], nn.Module] = Still) -> nn.Module:
    torch.manual_seed(0)
    return net()


def norms_of(parameters: Any, scale: float = 1.0) -> list[float]:
    """Return gradient norms in float64, NaN where there is no gradient, Inf where it is not finite."""
    norms = [np.nan if p.grad is None else (p.grad.double() / scale).norm().item() for p in parameters]
    return [norm if p.grad is None or np.isfinite(norm) else np.inf for norm, p in zip(norms, parameters, strict=True)]


class Spy:
    """A monitor that finds nothing and keeps its evidence: what was recorded of a run, in one flush at its end."""

    def __init__(self, **arguments: Any) -> None:
        self.seen: list[Evidence] = []
        arguments = {"every_n_steps": 150, "rules": [Rule(name="spy", check=self._look)]} | arguments
        self.monitor = GradientHealthMonitor(**arguments)

    def _look(self, evidence: Evidence) -> Iterator[Finding]:
        self.seen.append(evidence)
        return iter(())

    @property
    def last(self) -> Evidence:
        return self.seen[-1]

    @property
    def names(self) -> list[str]:
        return [p.name for p in self.last.parameters]

    def column(self, name: str) -> list[float]:
        return self.last.norms[:, self.names.index(name)].tolist()


def recorded(net: type, *, extra: Any = (), spy: Spy | None = None, **options: Any) -> Spy:
    spy = spy or Spy()
    fits.fit(net, [spy.monitor, *extra], **options)
    assert not spy.monitor.broken
    return spy


def same(found: Any, truth: Any) -> None:
    np.testing.assert_allclose(np.array(found, dtype=float), np.array(truth, dtype=float), rtol=1e-5, atol=1e-12)


# --- LBFGS -----------------------------------------------------------------------------------------------------------


class Lbfgs(Still):
    """Twenty closure calls per step, most of them at points that the line search rejects."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, line_search_fn="strong_wolfe")


def test_of_an_lbfgs_step_the_gradient_at_the_weights_is_recorded() -> None:
    model, norms, losses = fresh(), [], []
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, line_search_fn="strong_wolfe")
    for batch in nets.batches():
        calls = []

        def closure(batch: Any = batch, calls: list = calls) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            calls.append((norms_of(list(model.parameters())), loss.item()))
            return loss

        optimizer.step(closure)
        assert len(calls) > 5
        norms.append(calls[0][0])
        losses.append(calls[0][1])
    spy = recorded(Lbfgs, max_epochs=1)
    same(spy.last.norms, norms)
    same(spy.last.losses, losses)
    assert spy.last.steps == list(range(8))


class LbfgsTurnsNaN(Lbfgs):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (float("nan") if batch_idx >= 5 else 1.0)


def test_an_illness_under_lbfgs_is_dated_in_steps_not_in_closure_calls() -> None:
    monitor = GradientHealthMonitor(every_n_steps=1)
    fits.fit(LbfgsTurnsNaN, [monitor], max_epochs=1)
    assert [f.since_step for f in monitor.findings if f.rule == "non_finite_gradients"] == [5]


# --- GradScaler ------------------------------------------------------------------------------------------------------


def scaler(init_scale: float = 2.0**12, **options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=init_scale, **options)


def half(init_scale: float = 2.0**12, **options: Any) -> list[MixedPrecision]:
    return [MixedPrecision("16-mixed", device="cpu", scaler=scaler(init_scale, **options))]


class Fused(Still):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, fused=True)


@pytest.mark.parametrize("net", [Still, Fused])
@pytest.mark.parametrize("init_scale", [2.0**10, 2.0**24])
def test_under_a_grad_scaler_norms_and_losses_are_unscaled_and_its_search_is_no_illness(
    net: type, init_scale: float
) -> None:
    model, own, norms, losses = fresh(net), scaler(init_scale), [], []
    optimizer, parameters = model.configure_optimizers(), list(model.parameters())
    for _ in range(2):
        for batch in nets.batches():
            with torch.autocast("cpu", torch.half, cache_enabled=False):
                loss = loss_of(model, batch)
            optimizer.zero_grad()
            own.scale(loss).backward()
            norms.append(norms_of(parameters, own.get_scale()))
            losses.append(loss.item())
            own.step(optimizer)
            own.update()
    spy = recorded(net, plugins=half(init_scale))
    same(spy.last.norms, norms)
    same(spy.last.losses, losses)
    monitor = GradientHealthMonitor(every_n_steps=1)
    fits.fit(net, [monitor], plugins=half(init_scale))
    assert np.isinf(norms).any() == (init_scale == 2.0**24)
    assert not [f for f in monitor.findings if f.rule == "non_finite_gradients"]


class EveryOther(Still):
    """Every other step has no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


def test_a_window_closed_by_none_under_a_scaler_does_not_pass_scaled_gradients_for_true_ones() -> None:
    """Lightning skips unscaling there, and the step."""
    first = next(iter(nets.batches()))
    model = fresh()
    (loss_of(model, first) / 2).backward()
    spy = recorded(EveryOther, plugins=half(), accumulate_grad_batches=2, limit_train_batches=2, max_epochs=1)
    np.testing.assert_allclose(spy.last.norms[0], norms_of(list(model.parameters())), rtol=0.02)  # float16
    assert spy.last.losses[0] == pytest.approx(loss_of(model, first).item(), rel=0.02)


def test_a_scaler_that_is_switched_off_excuses_no_nan() -> None:
    monitor = GradientHealthMonitor(every_n_steps=1)
    fits.fit(nets.TurnsNaN, [monitor], plugins=half(enabled=False))
    assert monitor.first_cause is not None
    assert monitor.first_cause.rule == "non_finite_gradients"


# --- windows, clipping, steps without a loss --------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [{}, {"gradient_clip_val": 0.01}, {"gradient_clip_val": 0.001}], ids=str)
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("window", [1, 3])
def test_norms_are_those_of_the_window_before_clipping(window: int, algorithm: str, clip: dict[str, float]) -> None:
    """Eight batches by three leave a last window of two; Lightning divides its gradients by three all the same."""
    model, norms, losses = fresh(), [], []
    optimizer, parameters, data = model.configure_optimizers(), list(model.parameters()), list(nets.batches())
    for _ in range(2):
        for start in range(0, 8, window):
            optimizer.zero_grad()
            found = [loss_of(model, batch) for batch in data[start : start + window]]
            for loss in found:
                (loss / window).backward()
            losses.append(np.mean([loss.item() for loss in found]))
            norms.append(norms_of(parameters))
            if clip and algorithm == "norm":
                nn.utils.clip_grad_norm_(parameters, clip["gradient_clip_val"])
            elif clip:
                nn.utils.clip_grad_value_(parameters, clip["gradient_clip_val"])
            optimizer.step()
    spy = recorded(Still, accumulate_grad_batches=window, gradient_clip_algorithm=algorithm, **clip)
    same(spy.last.norms, norms)
    same(spy.last.losses, losses)


def test_an_illness_is_dated_in_windows_as_self_log_counts_them(tmp_path: Path) -> None:
    class Net(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("broken", float(batch_idx == 7))
            return loss * (float("nan") if batch_idx == 7 else 1.0)

    monitor = GradientHealthMonitor()
    fits.fit(Net, [monitor], accumulate_grad_batches=3, log_every_n_steps=1, logger=TensorBoardLogger(tmp_path))
    logged = events.read(tmp_path).scalars("broken")
    assert {f.since_step for f in monitor.findings} == {2} == {min(s for s, value in logged.items() if value)}


def test_a_step_without_a_loss_is_not_measured_and_shifts_no_other() -> None:
    model, norms = fresh(), []
    optimizer, parameters = model.configure_optimizers(), list(model.parameters())
    for batch_idx, batch in enumerate(nets.batches()):
        optimizer.zero_grad()
        if batch_idx % 2 == 0:
            loss_of(model, batch).backward()
        norms.append(norms_of(parameters))
        optimizer.step()
    spy = recorded(EveryOther, max_epochs=1)
    same(spy.last.norms, norms)
    assert np.isnan(spy.last.losses).tolist() == [False, True] * 4


def test_a_run_that_never_had_a_gradient_is_not_passed_over_in_silence(capsys: Any) -> None:
    class Never(Still):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    fits.fit(Never, [GradientHealthMonitor()])
    said = "gradients not measured: none was seen of body.0.weight, body.0.bias, body.2.weight, body.2.bias and 2 more"
    assert said in capsys.readouterr().out


# --- several optimizers ----------------------------------------------------------------------------------------------


class Leftovers(nets.TwoOptimizers):
    """The second loss reaches both parts, and nobody clears what it leaves in the first."""

    toggle, critics = False, 1

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, times in zip(self.optimizers(), (self.critics, 1), strict=True):
            if self.toggle:
                self.toggle_optimizer(optimizer)
            for _ in range(times):
                self.manual_backward(loss_of(self, batch))
                optimizer.step()
                optimizer.zero_grad()
            if self.toggle:
                self.untoggle_optimizer(optimizer)


class Toggled(Leftovers):
    toggle = True


class Critics(Leftovers):
    critics = 3


@pytest.mark.parametrize("net", [Leftovers, Toggled, Critics])
def test_each_optimizer_is_measured_on_its_own_parameters_and_at_its_largest_in_a_batch(net: type) -> None:
    model, norms = fresh(net), []
    optimizers, parts = model.configure_optimizers(), [list(model.body.parameters()), list(model.head.parameters())]
    for batch in nets.batches():
        row = []
        for optimizer, part, times in zip(optimizers, parts, (net.critics, 1), strict=True):
            turns = []
            for _ in range(times):
                for p in model.parameters():
                    p.requires_grad_(not net.toggle or any(p is own for own in part))
                loss_of(model, batch).backward()
                turns.append(norms_of(part))
                optimizer.step()
                optimizer.zero_grad()
            row += np.max(turns, axis=0).tolist()
        norms.append(row)
    spy = recorded(net, max_epochs=1)
    assert spy.names == [name for name, _ in model.named_parameters()]
    same(spy.last.norms, norms)
    assert spy.last.steps == list(range(8))


def test_what_two_optimizers_exclude_does_not_start_the_evidence_anew_on_every_step() -> None:
    spy = recorded(nets.TwoOptimizers, spy=Spy(exclude=["*.bias"]))
    assert len(spy.seen) == 1
    assert spy.last.steps == list(range(16))
    assert spy.names == ["body.0.weight", "body.3.weight", "head.weight"]


class Alternating(Leftovers):
    """Body, head, body, head within one batch."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for factor in (1.0, 1e-6):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(factor * loss_of(self, batch))
                optimizer.step()


def test_a_histogram_shows_the_first_step_of_optimizers_that_take_turns_within_a_batch(tmp_path: Path) -> None:
    fits.fit(Alternating, [WeightHistogramLogger(every_n_steps=1)], max_epochs=1, logger=TensorBoardLogger(tmp_path))
    points = events.read(tmp_path).histograms("health.grad_log10_hist/00 body.0.weight")
    assert len(points) == 8
    assert min(point.max for point in points.values()) > -4  # the second turn's gradients are a million times smaller


class Raw(Still):
    """Steps torch's own optimizer, for which no hook comes."""

    raw = ("body", "head")

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for part, optimizer in zip(("body", "head"), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss_of(self, batch))
            (optimizer.optimizer if part in self.raw else optimizer).step()

    configure_optimizers = nets.TwoOptimizers.configure_optimizers


class HalfRaw(Raw):
    raw = ("head",)


class Unknown(Raw):
    """Steps an optimizer that the Trainer was never given."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        torch.optim.SGD(self.head.parameters(), lr=0.05).step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.body.parameters(), lr=0.05)] * 2

    raw = ()


@pytest.mark.parametrize("net", [Raw, HalfRaw])
def test_an_optimizer_stepped_without_lightning_is_measured_by_its_own_hook(net: type, capsys: Any) -> None:
    """It was said to be unseen: Lightning's hook does not come."""
    model, norms = fresh(), []
    parts = [(p, torch.optim.SGD(p.parameters(), lr=0.05)) for p in (model.body, model.head)]
    for batch in nets.batches():
        row = []
        for part, optimizer in parts:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            row += norms_of(list(part.parameters()))
            optimizer.step()
        norms.append(row)
    spy = recorded(net, max_epochs=1)
    same(spy.last.norms, norms)
    assert "not measured" not in capsys.readouterr().out


def test_an_optimizer_that_the_trainer_does_not_know_is_said_to_be_unmeasured(capsys: Any) -> None:
    fits.fit(Unknown, [GradientHealthMonitor()])
    assert capsys.readouterr().out.count("not measured: none was seen of head.weight, head.bias (unused") == 1


def test_nothing_is_said_to_be_unmeasured_where_all_was_measured(capsys: Any) -> None:
    for net in (Still, nets.TwoOptimizers, Toggled):
        fits.fit(net, [GradientHealthMonitor()])
    assert "not measured" not in capsys.readouterr().out


# --- parameters that change ------------------------------------------------------------------------------------------


class Backbone(Still):
    @property
    def backbone(self) -> nn.Module:
        return self.body

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)


def finetuning() -> theirs.BackboneFinetuning:
    return theirs.BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)


def test_what_is_unfrozen_in_mid_run_is_measured_from_then_on() -> None:
    spy = recorded(Backbone, extra=[finetuning()])
    frozen = np.isnan(spy.column("body.0.weight"))
    assert frozen.tolist() == [True] * 8 + [False] * 8
    assert not np.isnan(spy.column("head.weight")).any()
    assert spy.last.steps == list(range(16))


class Late(Still):
    """A layer is added in the course of training, in a param group of its own."""

    at = 5

    def forward(self, x: Tensor) -> Tensor:
        late = getattr(self, "late", None)
        return super().forward(x if late is None else late(x))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.at:
            self.late = nn.Linear(8, 8)
            self.optimizers().optimizer.add_param_group({"params": list(self.late.parameters())})


class AtStart(Late):
    def on_train_start(self) -> None:
        self.at = 0
        self.on_train_batch_start(None, 0)
        self.at = -1


@pytest.mark.parametrize(("net", "first"), [(Late, 5), (AtStart, 0)])
def test_what_is_added_in_mid_run_is_measured_from_then_on(net: type, first: int) -> None:
    spy = recorded(net)
    assert spy.last.steps == list(range(16))
    assert np.isnan(spy.column("late.weight")).tolist() == [step < first for step in range(16)]
    assert not np.isnan(spy.column("head.weight")).any()


class Diverging(Still):
    """Its loss and gradients grow tenfold every eight steps."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * 10 ** (self.trainer.global_step / 8)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-9)


class DivergingAndGrowing(Diverging):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 7:
            adapter = nn.Linear(2, 2)
            self.add_module(f"adapter{self.trainer.global_step}", adapter)
            self.optimizers().optimizer.add_param_group({"params": list(adapter.parameters())})


def test_parameters_that_keep_coming_do_not_hide_a_run_that_diverges() -> None:
    found = []
    for net in (Diverging, DivergingAndGrowing):
        monitor = GradientHealthMonitor(every_n_steps=1)
        fits.fit(net, [monitor], max_epochs=5)
        found.append([(f.rule, f.since_step) for f in monitor.findings if f.rule != "untrained_parameters"])
    assert found[0] == found[1] != []


class LateCritic(Leftovers):
    """The second optimizer gets a parameter between two optimizers' steps."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            self.late = nn.Linear(2, 2)
            self.optimizers()[1].optimizer.add_param_group({"params": list(self.late.parameters())})
        super().training_step(batch, batch_idx)


def test_a_step_within_which_parameters_come_stays_one_step() -> None:
    spy = recorded(LateCritic, max_epochs=1)
    assert spy.last.steps == list(range(8))
    assert not np.isnan(spy.column("body.0.weight")).any()
    assert not np.isnan(spy.column("head.weight")).any()


class Growing(Still):
    """A layer grows every step: the old weight is gone before the new one is made."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        optimizer, width = self.optimizers().optimizer, 16 + self.trainer.global_step
        optimizer.param_groups.clear()
        optimizer.state.clear()
        self.body[0].weight = self.body[2].weight = None
        self.body[0].weight = nn.Parameter(torch.randn(width, 8))
        self.body[0].bias = nn.Parameter(torch.randn(width))
        self.body[2].weight = nn.Parameter(torch.randn(16, width))
        optimizer.add_param_group({"params": list(self.parameters())})


def test_a_new_parameter_is_not_taken_for_the_one_it_replaced() -> None:
    spy = recorded(Growing)
    sizes = [evidence.parameters[spy.names.index("body.0.weight")].numel for evidence in spy.seen]
    assert sizes == [8 * (16 + step) for step in range(16)]


class Lazy(Still):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(16), nn.Tanh())


def test_a_pattern_that_matches_nothing_is_told_once_also_of_lazy_networks(tmp_path: Path, caplog: Any) -> None:
    logger = WeightHistogramLogger(every_n_steps=1, include=["*", "nonsense.*"])
    fits.fit(Lazy, [logger], logger=TensorBoardLogger(tmp_path))
    assert caplog.text.count("nonsense") == 1


def test_a_lazy_weight_is_drawn_and_measured_once_it_is_there(tmp_path: Path) -> None:
    spy = Spy()
    watchers = [WeightHistogramLogger(every_n_steps=1), spy.monitor]
    fits.fit(Lazy, watchers, max_epochs=1, logger=TensorBoardLogger(tmp_path))
    seen = events.read(tmp_path)
    assert len(spy.column("body.0.weight")) == 8
    assert "health.fig_weight/00 body.0.weight" in seen.tags("images")
    assert 0 in seen.histograms("health.grad_log10_hist/00 body.0.weight")


class Pruned(Still):
    """Half of a weight is masked away in mid-run, which renames it."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 4:
            prune.l1_unstructured(self.body[0], "weight", amount=0.5)


def test_pruning_in_mid_run_breaks_no_row() -> None:
    spy = recorded(Pruned)
    assert spy.last.steps == list(range(16))
    assert not np.isnan(spy.last.norms).any()


class Sparse(Still):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.table((x[:, 0].abs() * 10).long()))


def test_the_zeros_that_a_sparse_gradient_does_not_store_are_counted(tmp_path: Path) -> None:
    class Dense(Sparse):
        def __init__(self) -> None:
            super().__init__()
            self.table.sparse = False

    shares, norms = [], []
    for net in (Sparse, Dense):
        watchers = [WeightHistogramLogger(every_n_steps=1, figures=0), (spy := Spy()).monitor]
        fits.fit(net, watchers, max_epochs=1, logger=TensorBoardLogger(tmp_path / net.__name__))
        share = events.read(tmp_path / net.__name__).scalars("health.grad_zero_share/06 table.weight")
        shares.append(share)
        norms.append(spy.column("table.weight"))
    assert shares[0] == shares[1]
    assert min(shares[0].values()) > 0.9
    same(norms[0], norms[1])


def test_a_compiled_network_stays_one_graph_and_keeps_its_names() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    class Compiled(Still):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.compile(self.body, backend=backend)

    plain = fits.fit(Compiled, max_epochs=1)
    alone = len(graphs)
    torch._dynamo.reset()
    spy = Spy()
    watched = fits.fit(Compiled, [spy.monitor, InitAuditor(), WeightHistogramLogger()], max_epochs=1)
    torch._dynamo.reset()
    assert (alone, len(graphs)) == (1, 2)
    assert spy.names[0] == "body.0.weight"
    assert same_bits(plain, watched)


# --- the run is left alone -------------------------------------------------------------------------------------------


class Normed(Still):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.body[0])
        parametrizations.weight_norm(self.body[2])
        with contextlib.suppress(AttributeError):
            nn.utils.spectral_norm(self.head)


class Deep(Still):
    """A thousand layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), *[nn.Linear(16, 16, bias=False) for _ in range(998)])
        for layer in self.body[1:]:
            nn.init.eye_(layer.weight)

    def train_dataloader(self) -> DataLoader:
        return nets.batches(4)


class OneTrainable(Still):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.head.bias.requires_grad_(True)


class Named(nets.TurnsNaN):
    """Names that mean something to fnmatch, markdown, rich, matplotlib or a file system."""

    odd = ("$%<>|[red]", "größe mit raum", "$x^2$", "\\frac{", "a/b", "[bold]x[/]", "`*_|", "%s{0}", "☃")

    def __init__(self) -> None:
        super().__init__()
        for name in self.odd:
            self.add_module(name, nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        for name in self.odd:
            x = getattr(self, name)(x)
        return self.head(x)


class Samples(IterableDataset):
    """They come one by one, and nobody knows how many."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(x, y) for batch in nets.batches() for x, y in zip(*batch, strict=True)])


class Endless(Still):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Samples(), batch_size=4)


class Validated(Still):
    def val_dataloader(self) -> DataLoader:
        return nets.batches(8)


class Sized(Validated):
    batch_size = 2

    def train_dataloader(self) -> DataLoader:
        return nets.batches(batch_size=self.batch_size)


class AllNaN(Still):
    def __init__(self) -> None:
        super().__init__()
        for p in self.parameters():
            nn.init.constant_(p, float("nan"))


class NaNFromTheStart(Still):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * float("nan")


class DetachedNaN(Still):
    """The loss is NaN, its gradients are finite."""

    added = float("nan")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.added


class DetachedInf(DetachedNaN):
    added = float("inf")


class HelpsItself(Still):
    """Brings the watchers along."""

    def configure_callbacks(self) -> list[pl.Callback]:
        return [GradientHealthMonitor(every_n_steps=2, prefix="own")]


class Empty(pl.LightningModule):
    """Nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(1)

    def configure_optimizers(self) -> None:
        return None

    train_dataloader = nets.Net.train_dataloader


def their(name: str, **arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"extra": [getattr(theirs, name)(**arguments)]}


ODD: dict[str, tuple[type, Callable[[], dict[str, Any]]]] = {
    "lbfgs": (LbfgsTurnsNaN, lambda: {"max_epochs": 1}),
    "scaler": (Still, lambda: {"plugins": half(2.0**24)}),
    "scaler and fused": (Fused, lambda: {"plugins": half(2.0**24)}),
    "scaler and None": (EveryOther, lambda: {"plugins": half(), "accumulate_grad_batches": 2}),
    "short last window": (nets.Net, lambda: {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}),
    "None now and then": (EveryOther, dict),
    "leftovers": (Leftovers, dict),
    "toggled": (Toggled, dict),
    "critics": (Critics, dict),
    "raw optimizers": (Raw, dict),
    "one raw optimizer": (HalfRaw, dict),
    "finetuning": (Backbone, lambda: {"extra": [finetuning()]}),
    "added in mid-run": (Late, dict),
    "added at the start": (AtStart, dict),
    "lazy": (Lazy, dict),
    "parametrised": (Normed, dict),
    "pruned": (Pruned, dict),
    "pruned by Lightning": (Still, their("ModelPruning", pruning_fn="l1_unstructured", amount=0.3)),
    "sparse": (Sparse, dict),
    "float64": (nets.Net, lambda: {"precision": "64-true"}),
    "bfloat16": (nets.Net, lambda: {"precision": "bf16-true"}),
    "averaged at the end": (nets.Net, their("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=1)),
    "averaged all along": (Validated, their("EMAWeightAveraging")),
    "learning rate found": (nets.Net, their("LearningRateFinder", num_training_steps=5)),
    "batch size found": (Sized, their("BatchSizeFinder", max_trials=2, steps_per_trial=1)),
    "stopped early": (nets.Net, their("EarlyStopping", monitor="loss", patience=0)),
    "accumulation schedule": (nets.Net, their("GradientAccumulationScheduler", scheduling={0: 1, 1: 2})),
    "rate monitored": (nets.Net, their("LearningRateMonitor")),
    "own callbacks": (HelpsItself, dict),
    "no length": (Endless, dict),
    "no length, no end": (Endless, lambda: {"max_epochs": -1, "max_steps": 12}),
    "time only": (Still, lambda: {"max_epochs": 2, "max_steps": -1, "max_time": "00:01:00:00"}),
    "no batches": (Still, lambda: {"limit_train_batches": 0}),
    "validated in between": (Validated, lambda: {"val_check_interval": 0.25, "num_sanity_val_steps": 2}),
    "overfitted": (nets.Net, lambda: {"overfit_batches": 2}),
    "never logged": (nets.Net, lambda: {"log_every_n_steps": 0}),
    "a thousand layers": (Deep, lambda: {"max_epochs": 1}),
    "one trainable": (OneTrainable, dict),
    "odd names": (Named, dict),
    "no parameters": (Empty, dict),
    "all NaN": (AllNaN, dict),
    "NaN from the start": (NaNFromTheStart, dict),
    "detached NaN": (DetachedNaN, dict),
}


DRAWN = {"lazy", "sparse", "bfloat16", "odd names", "all NaN"}


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in zip(left.values(), right.values(), strict=True)
    )


def odd_fit(name: str, folder: Path, watchers: list[pl.Callback]) -> tuple[nn.Module, tuple[Any, ...]]:
    net, make = ODD[name]
    options = make()
    logger = [TensorBoardLogger(folder / "tb"), CSVLogger(folder / "csv")]
    random.seed(0)
    np.random.seed(0)
    extra = options.pop("extra", [])
    model = fits.fit(net, [*watchers, *extra], **{"logger": logger, "default_root_dir": folder} | options)
    return model, (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:.*no training batches.*")
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.*")
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.spectral_norm.*")
@pytest.mark.filterwarnings("ignore:.*Glyph.*")
def test_an_odd_training_is_left_alone_to_the_bit(name: str, tmp_path: Path, caplog: Any) -> None:
    plain, streams = odd_fit(name, tmp_path / "plain", [])
    caplog.clear()
    drawn = 1 if name in DRAWN else 0  # a picture takes as long as a whole training here
    watchers = [InitAuditor(), WeightHistogramLogger(figures=drawn), GradientHealthMonitor()]
    watched, streams_watched = odd_fit(name, tmp_path / "watched", watchers)
    assert same_bits(plain, watched)
    assert streams_watched == streams
    assert not [type(w).__name__ for w in watchers if w.broken]
    assert not [r.getMessage() for r in caplog.records if r.name == "lightning_weightwatch"]


def findings_of(net: type, **options: Any) -> tuple[Finding, ...]:
    monitor = GradientHealthMonitor()
    fits.fit(net, [monitor], **options)
    return monitor.findings


def test_a_nan_at_the_first_step_is_dated_there() -> None:
    found = findings_of(NaNFromTheStart)
    assert [(f.rule, f.since_step) for f in found] == [("non_finite_gradients", 0), ("non_finite_loss", 0)]


def test_weights_that_are_all_nan_are_told_as_the_cause() -> None:
    auditor, monitor = InitAuditor(), GradientHealthMonitor()
    fits.fit(AllNaN, [auditor, monitor])
    assert [f.rule for f in auditor.report.findings] == ["non_finite_weights"]
    assert monitor.findings[0].since_step == 0


@pytest.mark.parametrize("net", [DetachedNaN, DetachedInf])
def test_a_loss_that_is_not_finite_is_remembered_as_such_and_its_finite_gradients_as_finite(net: type) -> None:
    spy = recorded(net)
    assert np.isinf(spy.last.losses).all()
    assert np.isfinite(spy.last.norms).all()
    assert not [f for f in findings_of(net) if f.rule == "non_finite_gradients"]


def test_a_monitor_from_configure_callbacks_works(tmp_path: Path) -> None:
    fits.fit(HelpsItself, logger=TensorBoardLogger(tmp_path))
    assert "own/grad_norm_log10" in events.read(tmp_path).tags("scalars")


# --- copies, folders, consoles ---------------------------------------------------------------------------------------


def test_callbacks_can_be_copied_and_pickled_in_the_middle_of_a_fit(tmp_path: Path) -> None:
    copies: list[pl.Callback] = []

    class Copier(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                ours = [c for c in trainer.callbacks if type(c).__module__.startswith("lightning_weightwatch")]
                copies.extend(copy.deepcopy(ours))
                pickle.dumps(ours)

    watchers = watch(seed=1)
    fits.fit(nets.Net, [*watchers, Copier()], logger=TensorBoardLogger(tmp_path / "a"))
    assert len(copies) == 4
    fits.fit(nets.TurnsNaN, copies, logger=TensorBoardLogger(tmp_path / "b"))
    assert not [c for c in (*watchers, *copies) if c.broken]
    assert [f.since_step for f in copies[3].findings] == [3]
    assert watchers[3].findings == ()


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    fits.fit(nets.TurnsNaN, watch(seed=1), default_root_dir=tmp_path / "not" / "yet")
    assert len(read_lines(tmp_path / "not" / "yet" / "weightwatch" / "findings.jsonl")) == 1


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    watchers = watch(seed=1)
    fits.fit(nets.TurnsNaN, watchers, default_root_dir=tmp_path / "file")
    assert not [c for c in watchers if c.broken]
    assert len(watchers[3].findings) == 1
    assert "Could not write" in caplog.text


def closed() -> io.TextIOBase:
    stream = io.StringIO()
    stream.close()
    return stream


class BrokenPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stdout", [closed, BrokenPipe, lambda: None], ids=["closed", "broken", "none"])
def test_a_console_that_is_gone_ends_nothing_and_loses_no_finding(
    stdout: Callable[[], Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout())
    watchers = watch(seed=1)
    fits.fit(nets.TurnsNaN, watchers, default_root_dir=tmp_path)
    monkeypatch.undo()
    assert not [c for c in watchers if c.broken]
    assert len(read_lines(tmp_path / "weightwatch" / "findings.jsonl")) == 1
    assert (tmp_path / "weightwatch" / "init_report.json").exists()


class NamedAndConstant(Named):
    """Its odd names are told on the console, as two layers in a row are constant."""

    def __init__(self) -> None:
        super().__init__()
        for name in self.odd[1:3]:
            nn.init.constant_(getattr(self, name).weight, 0.1)


def test_a_console_of_few_letters_gets_escapes_for_the_others(monkeypatch: Any) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    watchers = watch(seed=1)
    fits.fit(NamedAndConstant, watchers)
    said = raw.getvalue().decode("ascii")
    monkeypatch.undo()
    assert not [c for c in watchers if c.broken]
    assert "gr\\xf6\\xdfe mit raum" in said
    assert "CRITICAL" in said


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_a_finding_stands_on_a_line_of_its_own_above_the_progress_bar(bar: str, capsys: Any) -> None:
    if bar == "RichProgressBar":
        pytest.importorskip("rich")
    fits.fit(nets.TurnsNaN, [GradientHealthMonitor(), getattr(theirs, bar)()], enable_progress_bar=True)
    lines = [line.split("\r")[-1] for line in capsys.readouterr().out.split("\n")]
    assert sum(line.startswith("weightwatch: CRITICAL at step") for line in lines) == 1


def finds(value: Any) -> Rule:
    def check(evidence: Evidence) -> Iterator[Finding]:
        step, first = np.int64(evidence.steps[-1]), np.int64(evidence.steps[0])
        told: dict[str, Any] = {"unit": "things", "saw": "It.", "try_first": "That.", "limit": np.float32(0.5)}
        yield Finding(rule="mine", severity="warning", step=step, since_step=first, value=value, **told)

    return Rule(name="mine", check=check)


def test_what_a_users_rule_counts_in_numpy_can_be_written_and_loaded(tmp_path: Path) -> None:
    monitor = GradientHealthMonitor(rules=[finds(np.float64(3.0))])
    saver = theirs.ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=12)
    fits.fit(nets.Net, [monitor, saver], enable_checkpointing=True, default_root_dir=tmp_path)
    (path,) = tmp_path.glob("*.ckpt")
    torch.load(path, weights_only=True)
    assert [line["value"] for line in read_lines(tmp_path / "weightwatch" / "findings.jsonl")] == [3.0]


def test_what_a_users_rule_found_and_no_file_can_take_is_still_told(capsys: Any, caplog: Any) -> None:
    monitor = GradientHealthMonitor(rules=[finds(object())])
    fits.fit(nets.Net, [monitor])
    assert not monitor.broken
    assert "mine. It." in capsys.readouterr().out
    assert caplog.text.count("Writing a finding failed") == 1


# --- how runs end ----------------------------------------------------------------------------------------------------


class After(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.file, self.seen = folder / "weightwatch" / "findings.jsonl", []

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.seen.append((exception, len(read_lines(self.file))))


def ends_with(exception: BaseException) -> type[pl.LightningModule]:
    class Ends(nets.TurnsNaN):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 6:
                raise exception
            return super().training_step(batch, batch_idx)

    return Ends


@pytest.mark.parametrize("action", ["warn", "stop", "raise"])
def test_the_users_error_comes_through_whatever_the_last_steps_hold(action: Any, tmp_path: Path) -> None:
    """What is found on the way out is told before others are asked, and takes nobody's place."""
    error, after, monitor = ZeroDivisionError("the user's"), After(tmp_path), GradientHealthMonitor(action=action)
    with pytest.raises(ZeroDivisionError, match="the user's"):
        fits.fit(ends_with(error), [monitor, after], default_root_dir=tmp_path)
    assert after.seen == [(error, 1)]


def test_asked_to_raise_it_does_while_the_run_goes_on(tmp_path: Path) -> None:
    after = After(tmp_path)
    with pytest.raises(UnhealthyRunError):
        fits.fit(nets.TurnsNaN, [GradientHealthMonitor(action="raise"), after], default_root_dir=tmp_path)
    assert [count for _, count in after.seen] == [1]


def test_ctrl_c_loses_no_finding(tmp_path: Path) -> None:
    after, handler = After(tmp_path), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fits.fit(ends_with(KeyboardInterrupt()), [*watch(seed=1), after], default_root_dir=tmp_path)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert [count for _, count in after.seen] == [1]


KILLED = """
import os, signal
from lightning_weightwatch import watch
from tests.helpers import fits, nets
class Killed(nets.TurnsNaN):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)
fits.fit(Killed, watch(seed=1))
"""


def test_a_killed_run_leaves_what_was_told_and_the_command_reads_it(tmp_path: Path, capsys: Any) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", KILLED]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert cli.main(["report", str(tmp_path), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out).values()
    assert [(f["rule"], f["since_step"]) for f in found] == [("non_finite_gradients", 3)]
