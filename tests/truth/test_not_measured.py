"""What cannot be measured is said to be, with the reason, and never passes for zero or for health."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from lightning_weightwatch import GradientHealthMonitor, InitAuditor, WeightHistogramLogger
from tests.end_to_end.test_two_processes import MadeLate
from tests.helpers import fits, nets
from tests.helpers.strategies import FORKING_IS_FINE, Flat

pytestmark = [*FORKING_IS_FINE, pytest.mark.filterwarnings("ignore:.*(FSDP|NO_SHARD).*")]


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Stands in for the one of that name, by which it is known: its gradients are not where torch keeps them."""


class Holds(nets.Net):
    """Has a parameter that holds no number that could be read."""

    def odd(self) -> nn.Parameter:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.strange = self.odd()


class Quantised(Holds):
    def odd(self) -> nn.Parameter:
        return nn.Parameter(torch.ones(4, dtype=torch.uint8), requires_grad=False)


class Empty(Holds):
    def odd(self) -> nn.Parameter:
        return nn.Parameter(torch.empty(0, 3))


class NeverRun(nets.Net):
    """Has a lazy layer that no batch reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.lazy = nn.LazyLinear(3)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([*self.body.parameters(), *self.head.parameters()], lr=0.05)


class Unused(nets.Net):
    """Has a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Foreign(nets.Net):
    """Steps its head by an optimizer that the Trainer was not given."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.optim.SGD(self.head.parameters(), lr=0.05)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.body.parameters(), lr=0.05)

    def on_after_backward(self) -> None:
        self.own.step()


class NeverSteps(nets.Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


UNSEEN = "(unused, or stepped by an optimizer that the Trainer does not know)"


class CompiledHead(nets.Net):
    """A part of it is compiled; it is called as it is, so that no compiler is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.head._compiled_call_impl = self.head._call_impl


SAID: dict[str, tuple[type[pl.LightningModule], dict[str, Any], str]] = {
    "gradients under DeepSpeed ZeRO": (
        nets.Net,
        {"strategy": DeepSpeedStrategy(torch.device("cpu"))},
        "weightwatch: gradients not measured: DeepSpeedStrategy hides them.",
    ),
    "activations of compiled modules": (
        CompiledHead,
        {},
        "weightwatch: activations, loss functions and inputs not listened to: it is compiled.",
    ),
    "a quantised parameter": (
        Quantised,
        {},
        "weightwatch: gradients not measured (no real numbers (torch.uint8)), 1 of them: strange.",
    ),
    "a parameter without elements": (
        Empty,
        {},
        "weightwatch: gradients not measured (empty), 1 of them: strange.",
    ),
    "a lazy layer that never ran": (
        NeverRun,
        {},
        "weightwatch: gradients not measured (uninitialised lazy parameter), 2 of them: lazy.weight, lazy.bias.",
    ),
    "a layer without gradients": (
        Unused,
        {},
        f"weightwatch: gradients not measured: none was seen of spare.weight, spare.bias {UNSEEN}.",
    ),
    "an optimizer that the Trainer does not know": (
        Foreign,
        {},
        f"weightwatch: gradients not measured: none was seen of head.weight, head.bias {UNSEEN}.",
    ),
    "a training without steps": (
        NeverSteps,
        {},
        "weightwatch: gradients not measured: no optimizer step was seen.",
    ),
}


@pytest.mark.parametrize("what", SAID)
def test_it_is_said_in_these_words(what: str, capsys: pytest.CaptureFixture, record_property: Any) -> None:
    net, options, words = SAID[what]
    monitor = GradientHealthMonitor(every_n_steps=1, statistics_every_n_steps=1)
    fits.fit(net, [monitor, WeightHistogramLogger(), InitAuditor()], **options)
    assert words in capsys.readouterr().out.splitlines()
    assert not monitor.broken
    assert {f.rule for f in monitor.findings} <= {"untrained_parameters"}  # which some of them are
    if monitor.snapshot is not None:
        unseen = [n for n in monitor.snapshot.parameters if n.startswith(("strange", "lazy", "spare"))]
        assert all(torch.tensor(monitor.snapshot.of(n)["grad_norm"]).isnan() for n in unseen)
    record_property("truth", ("not measured", what, words))


def test_flat_shards_of_an_unknown_whole_are_said_to_be_unmeasured(
    capfd: pytest.CaptureFixture, record_property: Any
) -> None:
    options = {"devices": 2, "max_epochs": 1, "use_distributed_sampler": False}
    fits.trainer([GradientHealthMonitor()], strategy=Flat(), **options).fit(MadeLate())
    said = "weightwatch: gradients not measured (cut into shards before its whole shape could be noted), 6 of them: "
    assert said in capfd.readouterr().out
    record_property("truth", ("not measured", "FSDP1, network made in configure_model", f"{said}..."))
