"""One process: every setting in which gradients are read, against the same training in plain torch.

What a test measured goes into the truth table of the documentation, see ``make truth``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as theirs
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.helpers import fits, nets
from tests.truth import reference
from tests.truth.compare import Witness, agree
from tests.truth.reference import Step

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),
    pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`.*"),
]
SIZE = 8  # batches of an epoch


class Net(nets.Net):
    """A network without dropout, so that a plain loop needs no random numbers to follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0].to(model.head.weight.dtype)), batch[1])


def fresh(net: Callable[[], pl.LightningModule]) -> pl.LightningModule:
    torch.manual_seed(0)
    return net()


def plain(net: Callable[[], pl.LightningModule], dtype: torch.dtype = torch.float32, **options: Any) -> list[Step]:
    model = fresh(net)
    model = model if dtype == torch.float32 else model.to(dtype)
    return reference.train(model, model.configure_optimizers(), nets.batches(), loss_of, **options)


class Fused(Net):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01, fused=True)


class Sgd(Net):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


class Scaled(Net):
    """Its loss, and so its gradients, are of another order of magnitude."""

    factor = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.factor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3 / self.factor)


class Tiny(Scaled):
    factor = 1e-27


class Huge(Scaled):
    factor = 1e27


class TurnsNaN(Net):
    """Its loss is NaN from the fourth step on."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (float("nan") if batch_idx >= 3 else 1.0)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body[2].weight = nn.Parameter(torch.randn(16, 16) / 4)
        self.again = nn.Linear(16, 16, bias=False)
        self.again.weight = self.body[2].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.body(x)))


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body[0].requires_grad_(False)


class WeightNormed(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.body[2])


class SpectralNormed(Net):
    """Reading its weight would move the power iteration, and the run."""

    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.body[2])


class Pruned(Net):
    def __init__(self) -> None:
        super().__init__()
        prune.l1_unstructured(self.body[2], "weight", amount=0.5)


class Sparse(Net):
    """Its embedding has sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x + self.table((x[:, 0].abs() * 10).long())))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Complex(Net):
    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.wave.abs()


class Odd(Net):
    """A scalar, a parameter of one element and one without elements."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar, self.one = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.ones(1, 1))
        self.empty = nn.Parameter(torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.scalar) * self.one + self.empty.sum()


class Eight(Net):
    """Keeps a frozen table in eight-bit floats."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor([0.5, -2.0, 0.0]).to(torch.float8_e4m3fn), requires_grad=False)


class Skips(Net):
    """Every third batch has no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return None if batch_idx % 3 == 2 else super().training_step(batch, batch_idx)


class LazyWaves(nn.LazyLinear):
    """Begins without random numbers, so that a plain loop has the same weights."""

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params():
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.copy_(torch.arange(parameter.numel()).cos().reshape(parameter.shape) / 4)


class Lazy(Net):
    """Its first layer has no weights before the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body[0] = LazyWaves(16)


class Compiled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.compile(self.body, backend="eager")


def scaler() -> torch.amp.GradScaler:
    """Return a scaler that overflows on its first steps."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**24)


def half() -> dict[str, Any]:
    return {"plugins": [MixedPrecision("16-mixed", device="cpu", scaler=scaler())]}


def skipping() -> list[Step]:
    """Return what happens where every third batch has no loss: Lightning steps all the same, with no gradients."""
    model, batches = fresh(Skips), enumerate(nets.batches())

    def some(model: nn.Module, batch: Any) -> Tensor | None:
        return None if next(batches)[0] % 3 == 2 else loss_of(model, batch)

    return reference.train(model, model.configure_optimizers(), nets.batches(), some)


def turning_nan() -> list[Step]:
    model, batches = fresh(TurnsNaN), enumerate(nets.batches())

    def ill(model: nn.Module, batch: Any) -> Tensor:
        return loss_of(model, batch) * (float("nan") if next(batches)[0] >= 3 else 1.0)

    return reference.train(model, model.configure_optimizers(), nets.batches(), ill)


def scaled(net: type[Scaled]) -> list[Step]:
    model = fresh(net)
    optimizer = model.configure_optimizers()
    return reference.train(model, optimizer, nets.batches(), lambda model, b: loss_of(model, b) * net.factor)


def norm_clip(parameters: list[nn.Parameter]) -> None:
    nn.utils.clip_grad_norm_(parameters, 0.1)


def value_clip(parameters: list[nn.Parameter]) -> None:
    nn.utils.clip_grad_value_(parameters, 0.01)


BF16, F16 = torch.bfloat16, torch.float16
AUTOMATIC: dict[str, tuple[type, Callable[[], list[Step]], Callable[[], dict[str, Any]]]] = {
    "fp32, Adam": (Net, partial(plain, Net), dict),
    "fp32, SGD with momentum and weight decay": (Sgd, partial(plain, Sgd), dict),
    "fp32, fused Adam": (Fused, partial(plain, Fused), dict),
    "bf16-mixed": (Net, partial(plain, Net, autocast=BF16), lambda: {"precision": "bf16-mixed"}),
    "bf16-true": (Net, partial(plain, Net, BF16), lambda: {"precision": "bf16-true"}),
    "16-true, fp16 weights": (Sgd, partial(plain, Sgd, F16), lambda: {"precision": "16-true"}),
    "64-true": (Net, partial(plain, Net, torch.float64), lambda: {"precision": "64-true"}),
    "16-mixed, GradScaler that overflows at first": (
        Net,
        lambda: plain(Net, autocast=F16, scaler=scaler()),
        half,
    ),
    "16-mixed, GradScaler, fused Adam": (Fused, lambda: plain(Fused, autocast=F16, scaler=scaler()), half),
    "16-mixed, GradScaler, clipping by norm": (
        Net,
        lambda: plain(Net, autocast=F16, scaler=scaler(), clip=norm_clip),
        lambda: half() | {"gradient_clip_val": 0.1},
    ),
    "accumulation over 3, last window of 2": (
        Net,
        partial(plain, Net, window=3),
        lambda: {"accumulate_grad_batches": 3},
    ),
    "clipping by norm": (Net, partial(plain, Net, clip=norm_clip), lambda: {"gradient_clip_val": 0.1}),
    "clipping by value": (
        Net,
        partial(plain, Net, clip=value_clip),
        lambda: {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ),
    "accumulation and clipping": (
        Net,
        partial(plain, Net, window=2, clip=norm_clip),
        lambda: {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    ),
    "training_step returns None": (Skips, skipping, dict),
    "beside StochasticWeightAveraging": (
        Sgd,
        partial(plain, Sgd),
        lambda: {"extra": [theirs.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=0.9)]},
    ),
    "beside WeightAveraging": (Net, partial(plain, Net), lambda: {"extra": [theirs.WeightAveraging()]}),
    "NaN from the fourth step": (TurnsNaN, turning_nan, dict),
    "gradients around 1e-28": (Tiny, partial(scaled, Tiny), dict),
    "gradients around 1e26": (Huge, partial(scaled, Huge), dict),
    "tied parameters": (Tied, partial(plain, Tied), dict),
    "frozen parameters": (Frozen, partial(plain, Frozen), dict),
    "weight_norm": (WeightNormed, partial(plain, WeightNormed), dict),
    "spectral_norm": (SpectralNormed, partial(plain, SpectralNormed), dict),
    "pruned": (Pruned, partial(plain, Pruned), dict),
    "sparse gradients": (Sparse, partial(plain, Sparse), dict),
    "complex parameters": (Complex, partial(plain, Complex), dict),
    "scalar, one element, empty": (Odd, partial(plain, Odd), dict),
    "frozen float8 parameter": (Eight, partial(plain, Eight), dict),
    "lazy layers": (Lazy, partial(plain, Lazy), lambda: {"logger": False}),
    "torch.compile": (Compiled, partial(plain, Net), dict),
}


@pytest.mark.parametrize("setting", AUTOMATIC)
def test_what_is_measured_is_what_happened(
    setting: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, record_property: Any
) -> None:
    net, truth, options = AUTOMATIC[setting]
    witness, options = Witness(monkeypatch, tmp_path), options()
    extra = options.pop("extra", [])
    fits.fit(net, [*witness.callbacks, *extra], max_epochs=1, **witness.options | options)
    errors = agree(witness.seen, truth(), measured=lambda name: name != "empty")
    record_property("truth", ("one process", setting, errors))


# --- settings with a loop of their own --------------------------------------------------------------------------------


def check(name: str, net: type, steps: list[Step], witness: Witness, record_property: Any, **options: Any) -> None:
    """Train a network under a witness, and compare."""
    fits.fit(net, witness.callbacks, max_epochs=1, **witness.options | options)
    record_property("truth", ("one process", name, agree(witness.seen, steps)))


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Witness:
    return Witness(monkeypatch, tmp_path)


class Lbfgs(Net):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, line_search_fn="strong_wolfe")


def test_of_an_lbfgs_step_the_gradient_at_the_weights_counts(witness: Witness, record_property: Any) -> None:
    model, steps = fresh(Lbfgs), []
    optimizer = model.configure_optimizers()
    for batch in nets.batches():
        calls: list[Step] = []

        def closure(batch: Any = batch, calls: list[Step] = calls) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            calls.append(Step(loss.item(), reference.gradients(model), before=reference.weights(model)))
            return loss

        optimizer.step(closure)
        calls[0].after = reference.weights(model)
        steps.append(calls[0])
    check("LBFGS with line search", Lbfgs, steps, witness, record_property)


class Manual(Net):
    """Two optimizers with a loss each; the gradients that one leaves are not the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for i, optimizer in enumerate(self.optimizers()):
            self.begin(optimizer)
            self.backward_of(self.loss_of(batch, i))
            self.take_step(optimizer)
            self.end(optimizer)

    def loss_of(self, batch: Any, i: int) -> Tensor:
        return loss_of(self, batch) * (1.0 + 2.0 * i)

    def begin(self, optimizer: Any) -> None:
        optimizer.zero_grad()

    def backward_of(self, loss: Tensor) -> None:
        self.manual_backward(loss)

    def take_step(self, optimizer: Any) -> None:
        optimizer.step()

    def end(self, optimizer: Any) -> None:
        """Do nothing."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.body.parameters(), lr=0.01), torch.optim.SGD(self.head.parameters(), lr=0.1)]


class Toggled(Manual):
    def begin(self, optimizer: Any) -> None:
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()

    def end(self, optimizer: Any) -> None:
        self.untoggle_optimizer(optimizer)


class RawBackward(Manual):
    def backward_of(self, loss: Tensor) -> None:
        loss.backward()


class RawOptimizers(Manual):
    def take_step(self, optimizer: Any) -> None:
        optimizer.optimizer.step()


class ClippedByHand(Manual):
    """Clips before every hook; what is measured is what the optimizer gets."""

    def take_step(self, optimizer: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        optimizer.step()


def by_hand(net: type[Manual], *, clip: bool = False, loss_known: bool = True) -> list[Step]:
    """Train with two optimizers in plain torch."""
    model, steps = fresh(net), []
    optimizers = [(model.body, *model.configure_optimizers()[:1]), (model.head, *model.configure_optimizers()[1:])]
    for batch in nets.batches():
        step = Step(0.0 if loss_known else float("nan"), before=reference.weights(model))
        for i, (part, optimizer) in enumerate(optimizers):
            model.zero_grad()
            loss = loss_of(model, batch) * (1.0 + 2.0 * i)
            loss.backward()
            step.loss += loss.item()
            if clip:
                norm_clip(list(part.parameters()))
            mine = {f"{'body' if part is model.body else 'head'}.{name}" for name, _ in part.named_parameters()}
            step.gradients |= {name: g for name, g in reference.gradients(model).items() if name in mine}
            optimizer.step()
        step.after = reference.weights(model)
        steps.append(step)
    return steps


MANUAL: dict[str, tuple[type[Manual], dict[str, bool]]] = {
    "manual optimization, two optimizers": (Manual, {}),
    "toggled optimizers": (Toggled, {}),
    "raw backward (the loss is not seen)": (RawBackward, {"loss_known": False}),
    "raw optimizers": (RawOptimizers, {}),
    "clipped by hand (before every hook)": (ClippedByHand, {"clip": True}),
}


@pytest.mark.parametrize("setting", MANUAL)
def test_each_of_two_optimizers_is_measured_on_its_own_parameters(
    setting: str, witness: Witness, record_property: Any
) -> None:
    net, options = MANUAL[setting]
    check(setting, net, by_hand(net, **options), witness, record_property)


class Unfreezing(Net):
    """Its body is frozen, and given to the optimizer in mid-run, as BackboneFinetuning does."""

    def __init__(self) -> None:
        super().__init__()
        self.body.requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.head.parameters(), lr=0.05)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4:
            unfreeze(self, self.optimizers().optimizer)


def unfreeze(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.body.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.body.parameters())})


def test_what_is_unfrozen_in_mid_run_is_measured_from_then_on(witness: Witness, record_property: Any) -> None:
    model, batches = fresh(Unfreezing), nets.batches()
    optimizer = model.configure_optimizers()
    first, then = list(batches)[:4], list(batches)[4:]
    steps = reference.train(model, optimizer, first, loss_of)
    for step in steps:
        step.owned = {name for name in step.before if name.startswith("head")}
        step.after = {name: step.after[name] if name in step.owned else None for name in step.after}
    unfreeze(model, optimizer)
    steps += reference.train(model, optimizer, then, loss_of)
    check("unfrozen in mid-run (BackboneFinetuning)", Unfreezing, steps, witness, record_property)
