"""The first batch of a training, listened to: what is told is what a plain loop sees, and the training is the same."""

import gc
import json
import math
import os
import random
import weakref
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own short name
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from lightning_weightwatch import GradientHealthMonitor, InitAuditor, audit
from lightning_weightwatch.callbacks import _first_batch
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.meters import layers
from lightning_weightwatch.rules import Finding
from tests.helpers import fits, nets
from tests.helpers.hearing import stack
from tests.helpers.layers import array, same, truth, watched

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # of our own hooks, on first layers
    pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`.*"),
    pytest.mark.filterwarnings("ignore:.*fork.*"),
    pytest.mark.filterwarnings("ignore:.*limit_train_batches=0.*"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),
]


@pytest.fixture(autouse=True)
def nothing_stays_entered():
    yield
    assert stack() == []


class Still(nets.Net):
    """A network without dropout, so that a plain loop needs no random numbers to follow it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU())

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])


def fresh(net=Still):
    torch.manual_seed(0)
    return net()


BATCHES = list(nets.batches())
MODULES = ["body.0", "body.2", "head"]


def audited(net=Still, *others, **options):
    """Return the report of a training, and the model."""
    auditor = InitAuditor()
    model = fits.fit(net, [auditor, *others], **{"max_steps": 4} | options)
    assert not auditor.broken
    assert auditor.failure is None
    return auditor.report, model


def rms(tensor):
    return float(np.sqrt((array(tensor) ** 2).mean()))


def gradients(model):
    return {name: (pytest.approx(rms(p.grad), rel=1e-5),) for name, p in model.named_parameters() if p.grad is not None}


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_layers_gradients_and_loss_are_those_of_a_plain_loop(clip):
    report, _ = audited(gradient_clip_val=clip)
    model = fresh()
    seen = watched(model, lambda m: m.loss(BATCHES[0]), MODULES)
    assert [layer.name for layer in report.signal.layers] == [f"{name}.weight" for name in MODULES]
    for layer, calls in zip(report.signal.layers, seen.values(), strict=True):
        same(layer, truth(calls))
    loss = model.loss(BATCHES[0])
    loss.backward()
    assert report.signal.gradients == gradients(model)
    assert report.signal.loss == pytest.approx(loss.item())
    assert report.signal.not_measured == ()
    assert [(x.activation, x.feeds_loss) for x in report.signal.layers] == [("tanh", 0), ("relu", 0), ("", 1)]
    assert report.signal.optimizers == ("SGD",)


def test_a_window_of_batches_gives_its_own_gradient_and_the_layers_of_its_first_batch():
    """Lightning divides each loss by the length of the window, which is no part of a layer's gradient."""
    report, _ = audited(accumulate_grad_batches=3, max_epochs=1)
    model = fresh()
    for layer, calls in zip(
        report.signal.layers, watched(model, lambda m: m.loss(BATCHES[0]), MODULES).values(), strict=True
    ):
        same(layer, truth(calls))
    losses = [model.loss(batch) for batch in BATCHES[:3]]
    (sum(losses) / 3).backward()
    assert report.signal.gradients == gradients(model)
    assert report.signal.loss == pytest.approx(sum(loss.item() for loss in losses) / 3)


def scaler(init_scale, **options):
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale, **options))]


class Fused(Still):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, fused=True)


@pytest.mark.parametrize("net", [Still, Fused])
@pytest.mark.parametrize("init_scale", [2.0**10, 2.0**18], ids=["fitting", "too large at first"])
def test_under_a_grad_scaler_numbers_are_unscaled_and_its_search_is_passed_over(net, init_scale):
    """A step that was skipped left the weights as they were: what follows it is the first still."""
    report, _ = audited(net, plugins=scaler(init_scale))
    model, own = fresh(net), scaler(init_scale)[0].scaler
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for batch in BATCHES:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.half, cache_enabled=False):
            loss = model.loss(batch)
        own.scale(loss).backward()
        own.unscale_(optimizer)
        if all(p.grad.isfinite().all() for p in model.parameters()):
            break
        own.step(optimizer)
        own.update()
    assert (batch is not BATCHES[0]) is (init_scale > 2.0**16)
    found = report.signal
    assert found.gradients == {
        name: (pytest.approx(value[0].expected, rel=1e-3),) for name, value in gradients(model).items()
    }
    assert found.loss == pytest.approx(loss.item(), rel=1e-3)
    assert found.layers[-1].gradient == pytest.approx(
        rms(torch.softmax(model(batch[0]), 1) - F.one_hot(batch[1], 3)) / 4, rel=1e-2
    )


class Lbfgs(Still):
    """Twenty closure calls per step, at weights that move in between."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, line_search_fn="strong_wolfe")


def test_of_an_lbfgs_step_the_first_closure_counts():
    report, _ = audited(Lbfgs, max_steps=1)
    model = fresh()
    loss = model.loss(BATCHES[0])
    loss.backward()
    assert report.signal.gradients == gradients(model)
    assert report.signal.loss == pytest.approx(loss.item())
    for layer, calls in zip(
        report.signal.layers, watched(model, lambda m: m.loss(BATCHES[0]), MODULES).values(), strict=True
    ):
        same(layer, truth(calls))


class Gan(nets.Net):
    """Body and head as adversaries: each has an optimizer, a loss and a forward pass."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 1)

    def losses(self, batch):
        made = self.body(batch[0])
        yield F.softplus(-self.head(batch[0])).mean() + F.softplus(self.head(made.detach())).mean()
        yield F.softplus(-self.head(self.body(batch[0]))).mean()

    def training_step(self, batch, batch_idx):
        for optimizer, loss in zip(self.optimizers(), self.losses(batch), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.head, self.body)]


def test_of_two_optimizers_each_gives_the_gradients_of_its_own_parameters():
    report, _ = audited(Gan)
    model = fresh(Gan)
    wanted, first = {}, None
    for optimizer, loss in zip(model.configure_optimizers(), model.losses(BATCHES[0]), strict=True):
        model.zero_grad()
        loss.backward()
        first = loss.item() if first is None else first
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        wanted |= {n: value for n, value in gradients(model).items() if id(model.get_parameter(n)) in owned}
        optimizer.step()
    assert report.signal.gradients == wanted
    assert report.signal.loss == pytest.approx(first)
    assert report.signal.optimizers == ("SGD", "SGD")
    came_back = {layer.name: layer.gradient for layer in report.signal.layers}
    assert came_back["head.weight"] > 0
    assert math.isnan(came_back["body.0.weight"])  # the first loss does not reach it
    (head,) = watched(fresh(Gan), lambda m: next(m.losses(BATCHES[0])), ["head"]).values()
    same(next(layer for layer in report.signal.layers if layer.name == "head.weight"), truth(head))


class NoneFirst(Still):
    """Nothing is learnt from the first batches."""

    without = 1

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx < self.without else loss


class NoneForLong(NoneFirst):
    without = 6


@pytest.mark.parametrize("window", [1, 2])
def test_a_batch_without_a_loss_is_passed_over(window):
    report, _ = audited(NoneFirst, accumulate_grad_batches=window)
    model = fresh()
    seen = watched(model, lambda m: m.loss(BATCHES[1]), MODULES)
    for layer, calls in zip(report.signal.layers, seen.values(), strict=True):
        same(layer, truth(calls))
    (model.loss(BATCHES[1]) / window).backward()
    assert report.signal.gradients == gradients(model)
    assert report.signal.loss == pytest.approx(model.loss(BATCHES[1]).item())


def test_after_some_batches_without_a_loss_nothing_more_is_waited_for():
    report, _ = audited(NoneForLong, max_steps=8)
    assert report.signal.not_measured == ("gradients: there was no backward pass",)
    assert [layer.name for layer in report.signal.layers] == [f"{name}.weight" for name in MODULES]


class Raw(Still):
    """It steps torch's own optimizer, for which no hook of Lightning's comes."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.loss(batch).backward()
        optimizer.step()


def test_an_optimizer_that_is_stepped_past_lightning_is_said_to_be_unseen():
    report, _ = audited(Raw, max_epochs=1, max_steps=-1)
    assert report.signal.not_measured == ("gradients of parameters: no step of an optimizer was seen",)
    assert report.signal.gradients == {}
    assert all(layer.gradient > 0 for layer in report.signal.layers)


class Penalised(Still):
    """What is differentiated within the step is not its loss."""

    def training_step(self, batch, batch_idx):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(1e4 * self(x).sum(), x, create_graph=True)
        return self.loss(batch) + 0.0 * slope.square().mean()


def test_a_gradient_penalty_is_not_taken_for_the_loss():
    report, _ = audited(Penalised)
    model, outputs = fresh(Penalised), []
    model.head.register_forward_hook(lambda _, __, out: outputs.append(out))
    back = torch.autograd.grad(model.training_step(BATCHES[0], 0), outputs, allow_unused=True)
    felt = torch.cat([gradient.flatten() for gradient in back if gradient is not None])
    assert report.signal.layers[-1].gradient == pytest.approx(rms(felt), rel=1e-5)


class OfDicts(Still):
    def train_dataloader(self):
        return DataLoader([{"image": x, "more": {"label": y}} for x, y in BATCHES], batch_size=None)

    def training_step(self, batch, batch_idx):
        return self.loss((batch["image"], batch["more"]["label"]))


def test_a_batch_of_dicts():
    report, _ = audited(OfDicts)
    assert [x.name for x in report.signal.inputs] == ["batch['image']"]
    assert report.signal.inputs[0].std == pytest.approx(BATCHES[0][0].std(correction=0).item(), rel=1e-5)
    assert report.signal.gradients == audited()[0].signal.gradients


def test_a_monitor_that_listens_beside_it_changes_nothing():
    alone, _ = audited()
    for others in ([GradientHealthMonitor(statistics_every_n_steps=1)], [InitAuditor(prefix="other")]):
        together, _ = audited(Still, *others)
        assert together.signal == alone.signal


# --- matrices that begin at zero --------------------------------------------------------------------------------------


class Residual(Still):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x):
        return super().forward(x + self.outer(self.inner(x).relu()))


class Lora(Still):
    """Both factors of LoRA begin at zero, which a third step would not wake either."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(2, 8)), nn.Parameter(torch.zeros(3, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize(("net", "passes"), [(Still, 1), (Residual, 2), (Lora, 3)])
@pytest.mark.parametrize("window", [1, 2])
def test_it_looks_on_until_what_began_at_zero_has_moved(net, passes, window):
    report, _ = audited(net, accumulate_grad_batches=window, max_steps=4)
    model = fresh(net)
    optimizer = model.configure_optimizers()
    wanted = {name: [] for name, _ in model.named_parameters()}
    for step in range(passes):
        optimizer.zero_grad()
        for batch in BATCHES[window * step : window * (step + 1)]:
            (model.loss(batch) / window).backward()
        for name, p in model.named_parameters():
            wanted[name].append(rms(p.grad))
        optimizer.step()
    assert report.signal.gradients == {n: tuple(pytest.approx(v, rel=1e-4) for v in vs) for n, vs in wanted.items()}
    assert [layer.name for layer in report.signal.layers].count("head.weight") == 1


def test_a_training_that_ends_before_all_is_known_tells_what_is():
    report, _ = audited(Residual, max_steps=1)
    assert {len(passes) for passes in report.signal.gradients.values()} == {1}


# --- the training is the same -----------------------------------------------------------------------------------------


class Remembers(pl.Callback):
    """Notes the loss of every batch, and every hook that hangs on the model while it trains."""

    def __init__(self):
        self.losses = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(loss.item())


class Dropping(nets.Net):
    """Random numbers, buffers, functions in place, a list that grows, a count."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 16)
        )
        self.words = nn.Embedding(3, 16, max_norm=0.5)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))
        self.calls, self.seen = 0, []

    def forward(self, x):
        self.calls += 1
        h = self.body(x) + self.words(x[:, :3].argmax(1)) * random.random()
        self.seen.append(h.detach().sum().item())
        return self.head(F.dropout(torch.tanh_(self.spectral(h)), 0.1, training=self.training))


class Lazy(Still):
    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(3)


class Broken(Still):
    def forward(self, x):
        return super().forward(x) * math.nan


RUNS = {
    "dropout, batch norm, max_norm": (Dropping, {}),
    "accumulation": (Dropping, {"accumulate_grad_batches": 3}),
    "clipping": (Dropping, {"gradient_clip_val": 0.01}),
    "adversaries": (Gan, {}),
    "lbfgs": (Lbfgs, {"max_epochs": 1, "limit_train_batches": 3}),
    "none first": (NoneFirst, {}),
    "a grad scaler": (Dropping, {"plugins": lambda: scaler(2.0**18)}),
    "bf16-mixed": (Dropping, {"precision": "bf16-mixed"}),
    "bf16-true": (Still, {"precision": "bf16-true"}),
    "lazy layers": (Lazy, {}),
    "a penalty": (Penalised, {}),
    "raw optimizers": (Raw, {}),
    "waking": (Residual, {}),
    "broken": (Broken, {}),
}


@pytest.mark.parametrize("case", RUNS)
def test_the_training_is_bit_identical(case):
    net, options = RUNS[case]

    def run(*callbacks):
        random.seed(3)
        made = {key: value() if callable(value) else value for key, value in options.items()}
        noted = Remembers()
        model = fits.fit(net, [*callbacks, noted], **{"max_epochs": 1} | made)
        known = {k: v for k, v in vars(model).items() if isinstance(v, (int, list)) and not k.startswith("_")}
        streams = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
        return noted.losses, model.state_dict(), known, streams, hooks_of(model)

    plain, heard = run(), run(InitAuditor())
    assert np.array_equal(plain[0], heard[0], equal_nan=True)
    assert list(plain[1]) == list(heard[1])
    assert all(
        torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        for a, b in zip(plain[1].values(), heard[1].values(), strict=True)
    )
    assert plain[2:] == heard[2:]


def hooks_of(model):
    """Count every hook that hangs on a module or a parameter."""
    on_modules = [
        len(v)
        for m in model.modules()
        for k, v in vars(m).items()
        if "hook" in k and isinstance(v, (dict, OrderedDict))
    ]
    return sum(on_modules) + sum(len(p._backward_hooks or ()) for p in model.parameters())


# --- when it does not listen ------------------------------------------------------------------------------------------


def test_compiled_modules_are_not_listened_to_and_that_is_said():
    compiled = []

    class Backend(Still):
        def __init__(self):
            super().__init__()
            self.body = torch.compile(self.body, backend=lambda graph, _: compiled.append(graph) or graph.forward)

    report, _ = audited(Backend)
    assert report.signal.not_measured == ("how a batch passes: it is compiled",)
    assert report.signal.layers == ()
    assert len(compiled) == 1


@pytest.mark.parametrize(
    "options",
    [{"limit_train_batches": 0}, {"max_steps": 0}, {"max_epochs": 0}],
    ids=str,
)
def test_a_fit_without_batches(options):
    auditor = InitAuditor()
    fits.fit(Still, [auditor], **options)
    assert auditor.report is None
    assert not auditor.broken


def test_validation_before_the_training_is_not_the_first_batch():
    class Validated(Still):
        def val_dataloader(self):
            return nets.batches(seed=5)

    report, _ = audited(Validated, num_sanity_val_steps=2)
    assert report.signal == audited()[0].signal


def test_a_fast_run():
    report, _ = audited(fast_dev_run=True)
    assert report.signal == audited()[0].signal


def test_a_second_fit_of_one_auditor_listens_anew():
    auditor = InitAuditor()
    fits.fit(Still, [auditor], max_steps=2)
    first = auditor.report
    fits.fit(Still, [auditor], max_steps=2)
    assert auditor.report.signal == first.signal is not None
    assert auditor.report.signal.gradients


def test_a_fit_that_goes_on_is_not_listened_to():
    auditor, model = InitAuditor(), fresh()
    trainer = fits.trainer([auditor], max_steps=2)
    trainer.fit(model)
    trainer.fit_loop.epoch_loop.max_steps = 4
    trainer.fit(model)
    assert auditor.report.signal.not_measured == ("how a batch passes: a checkpoint was loaded",)


# --- whatever happens -------------------------------------------------------------------------------------------------


class Interrupted(Still):
    error = ZeroDivisionError

    def forward(self, x):
        h = self.body[0](x)
        raise self.error("in the middle of the first batch")
        return h


class ByHand(Interrupted):
    error = KeyboardInterrupt


@pytest.mark.parametrize(("net", "caught"), [(Interrupted, ZeroDivisionError), (ByHand, SystemExit)])
def test_a_training_that_breaks_in_its_first_batch(net, caught, tmp_path):
    auditor, where = InitAuditor(), tmp_path / "weightwatch" / "init_report.json"
    with pytest.raises(caught):
        fits.fit(net, [auditor], default_root_dir=tmp_path)
    assert stack() == []
    assert [layer.name for layer in auditor.report.signal.layers] == ["body.0.weight"]
    assert auditor.report.signal.not_measured == ("gradients: there was no backward pass",)
    assert json.loads(where.read_text())["signal"]["layers"][0]["name"] == "body.0.weight"
    fits.fit(Still, [auditor], max_steps=1)
    assert len(auditor.report.signal.layers) == 3


class Skips(Still):
    """It skips the epoch when its first batch is there."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1


def test_an_epoch_that_is_skipped():
    report, _ = audited(Skips, max_epochs=1, max_steps=-1)
    assert report.signal.layers == ()


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


class WithMode(Still):
    """A mode of the user's, entered in the step and left after it."""

    def on_train_batch_start(self, batch, batch_idx):
        self.mode = Mode()
        self.mode.__enter__()

    def on_train_batch_end(self, *_):
        self.mode.__exit__(None, None, None)


class SkipsTheFirstEpoch(Still):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.current_epoch == 0 else None


class Looks(pl.Callback):
    """Sees what is entered when an epoch has ended; it comes after the auditor."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, *_):
        self.seen.append(stack())


def test_a_skipped_epoch_leaves_nothing_entered_and_the_next_one_is_listened_to():
    looks = Looks()
    report, _ = audited(SkipsTheFirstEpoch, looks, max_steps=-1, max_epochs=2, limit_val_batches=0)
    assert looks.seen == [[], []]
    assert [layer.name for layer in report.signal.layers] == ["body.0.weight", "body.2.weight", "head.weight"]


def test_modes_of_the_user_end_in_their_own_order():
    report, _ = audited(WithMode)
    assert report.signal == audited()[0].signal


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("on_finding", ["warn", "raise"])
def test_a_failure_in_measuring_leaves_the_training_alone(monkeypatch, when, on_finding):
    def fail(*_, **__):
        raise ArithmeticError("no")

    monkeypatch.setattr(layers, "axes_of" if when == "forward" else "_of_samples", fail)
    auditor = InitAuditor(on_finding=on_finding)
    model = fits.fit(nets.Net, [auditor], max_epochs=1)
    assert not auditor.broken
    assert auditor.report.signal.not_measured == ("how a batch passes: listening failed (ArithmeticError: no)",)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.parameters(), fits.fit(nets.Net, max_epochs=1).parameters(), strict=True)
    )


def test_a_failure_of_its_own_is_told_at_the_end(monkeypatch, caplog):
    monkeypatch.setattr(_first_batch.FirstBatch, "before_step", lambda *_: 1 / 0)
    auditor = InitAuditor()
    fits.fit(Still, [auditor], max_steps=2)
    assert auditor.broken
    told = [r.getMessage() for r in caplog.records if r.name == "lightning_weightwatch"]
    assert told == ["InitAuditor failed (ZeroDivisionError: division by zero). It is switched off."]


def test_no_output_and_no_graph_is_kept():
    alive, kept = [], []

    class Kept:
        """What a weak reference can be had of."""

    class Keeping(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.kept = Kept()
            kept.append(weakref.ref(ctx.kept))
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad.clone()

    class Watching(Residual):
        def forward(self, x):
            out = Keeping.apply(self.body(x))
            alive.append(weakref.ref(out))
            return self.head(out.exp())

    gc.disable()
    try:
        auditor = InitAuditor()
        fits.fit(Watching, [auditor], max_steps=3)
        counts = [sum(one() is not None for one in held) for held in (alive, kept)]
    finally:
        gc.enable()
    assert len(alive) == 3
    assert counts == [0, 0]
    assert auditor.report.signal.layers


# --- raising ----------------------------------------------------------------------------------------------------------


def no_nan_in_a_layer(initial):
    """Find what this test needs found, whatever the rules of the package are."""
    for layer in initial.signal.layers if initial.signal else ():
        if layer.nonfinite:
            yield Finding(
                rule="broken",
                severity="critical",
                step=0,
                since_step=0,
                parameters=(layer.name,),
                value=layer.nonfinite,
                limit=0.0,
                unit="elements",
                saw="It is broken.",
                try_first="Mend it.",
            )


@pytest.fixture
def one_rule(monkeypatch):
    monkeypatch.setattr(audit, "all_rules", lambda subject: {"broken": no_nan_in_a_layer})


class BrokenGan(Gan):
    def losses(self, batch):
        for loss in super().losses(batch):
            yield loss + (self.head(batch[0]) * math.nan).sum() + self.head(self.head.weight * math.nan).sum()


@pytest.mark.parametrize(
    ("net", "options"),
    [
        (Broken, {}),
        (Broken, {"accumulate_grad_batches": 2}),
        (Broken, {"precision": "bf16-mixed"}),
        (BrokenGan, {}),
    ],
    ids=["plain", "accumulation", "mixed precision", "manual"],
)
def test_a_nan_in_the_first_forward_pass_raises_before_any_weight_has_moved(one_rule, net, options):
    class Nan(net):
        def forward(self, x):
            return self.head(self.body(x * math.nan))

    auditor, model = InitAuditor(on_finding="raise"), fresh(Nan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnhealthyRunError, match=r"CRITICAL at step 0: broken. It is broken. Try first: Mend it."):
        fits.trainer([auditor], **options).fit(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {f.rule for f in auditor.report.findings} == {"broken"}


def test_the_search_for_a_loss_scale_raises_nothing():
    auditor = InitAuditor(on_finding="raise")
    fits.fit(Still, [auditor], plugins=scaler(2.0**18), max_steps=6)
    assert not [f for f in auditor.report.findings if f.severity == "critical"]


class Scribe(InitAuditor):
    """Leaves what happened to each process, for the test that started them to read."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        try:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
        except UnhealthyRunError as error:
            pairs = zip(pl_module.parameters(), fresh(Residual).parameters(), strict=True)
            moved = any(not torch.equal(now, before) for now, before in pairs)
            note(trainer, f"{error} | moved: {moved}")
            trainer.should_stop = True


def note(trainer, text):
    (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}").write_text(text)


class OneIsIll(Residual):
    """One process meets NaN in its first batch; gradients are not averaged, so that nothing tells the other."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1:
            batch = [batch[0] * math.nan, batch[1]]
        return self.loss(batch)


class OneCannotHear(Residual):
    """Measuring fails on one process, which is done then; the other goes on to a second step."""

    def on_train_start(self):
        if self.trainer.global_rank == 1:
            layers.axes_of = None

    def on_train_end(self):
        note(self.trainer, f"{self.trainer.global_step} steps")


def fork(folder, net, auditor):
    with mock.patch.dict(os.environ):  # Lightning leaves the address of the process group there
        options = {"strategy": DDPStrategy(start_method="fork"), "devices": 2, "max_steps": 4}
        fits.fit(net, [auditor], default_root_dir=folder, **options)
    return [(folder / f"rank{rank}").read_text() for rank in range(2)]


def test_all_processes_raise_if_the_batch_of_one_is_ill(tmp_path, one_rule):
    healthy, sick = fork(tmp_path, OneIsIll, Scribe(on_finding="raise"))
    assert healthy == "A critical finding on another process. | moved: False"
    assert sick == "CRITICAL at step 0: broken. It is broken. Try first: Mend it. | moved: False"


def test_a_process_that_cannot_hear_keeps_no_other_waiting(tmp_path):
    assert fork(tmp_path, OneCannotHear, InitAuditor(on_finding="raise")) == ["4 steps"] * 2
