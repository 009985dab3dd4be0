"""Two processes on gloo see what one process sees, write once, and never wait for one another."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_weightwatch import GradientHealthMonitor, InitAuditor, SeedEverything, WeightHistogramLogger
from lightning_weightwatch.rules import Finding, Rule
from tests.helpers import events, fits, truth
from tests.helpers.strategies import FORKING_IS_FINE, Flat, Sharded, ShardedModel, replicated

pytestmark = FORKING_IS_FINE

STRATEGIES = {
    "DDP": (truth.Model, replicated),
    "FSDP2": (ShardedModel, lambda: Sharded(2)),
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def run(strategy: str, callbacks: list[pl.Callback], **options: Any) -> None:
    model, make = STRATEGIES[strategy]
    options = {"max_epochs": 1, "log_every_n_steps": 1, "use_distributed_sampler": False} | options
    fits.trainer(callbacks, strategy=make(), **options | {"devices": truth.RANKS}).fit(model())


@every_strategy
def test_gradient_norms_are_those_of_one_process(strategy: str, tmp_path: Path) -> None:
    run(strategy, [GradientHealthMonitor(rules=[truth.spy(tmp_path)], every_n_steps=5)])
    norms, losses = truth.gradient_norms()
    for rank in range(truth.RANKS):
        seen = np.load(tmp_path / f"rank{rank}.npz")
        np.testing.assert_allclose(seen["norms"], norms, rtol=1e-5)
        np.testing.assert_allclose(seen["losses"], losses, rtol=1e-5)
        assert seen["steps"].tolist() == list(range(truth.STEPS))


@every_strategy
def test_histograms_count_every_element_once(strategy: str, tmp_path: Path) -> None:
    run(strategy, [WeightHistogramLogger(every_n_steps=1)], logger=TensorBoardLogger(tmp_path))
    seen = events.read(tmp_path)
    for tag, numel in {"00 net.0.weight": 35, "01 net.0.bias": 7, "04 net.4.weight": 3, "05 net.4.bias": 1}.items():
        assert seen.histograms(f"health.weight_hist/{tag}")[0].num == numel
        assert seen.histograms(f"health.grad_log10_hist/{tag}")[0].num == numel


@every_strategy
def test_the_initialisation_is_judged_as_a_whole(strategy: str, tmp_path: Path) -> None:
    run(strategy, [InitAuditor()], default_root_dir=tmp_path)
    report = json.loads(next(tmp_path.rglob("init_report.json")).read_text())
    told = {row["name"]: row for row in report["parameters"]}
    for name, tensor in truth.network().named_parameters():
        row = told[f"net.{name}"]
        assert tuple(row["shape"]) == tuple(tensor.shape)
        assert row["std"] == pytest.approx(tensor.double().std(correction=0).item(), rel=1e-5, abs=1e-9)


@every_strategy
def test_all_callbacks_together_leave_one_set_of_files(strategy: str, tmp_path: Path) -> None:
    watchers = [SeedEverything(1), InitAuditor(), WeightHistogramLogger(), GradientHealthMonitor()]
    run(strategy, watchers, logger=TensorBoardLogger(tmp_path))
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1
    assert len(list(tmp_path.rglob("init_report.json"))) == 1
    assert len(list(tmp_path.rglob("seed_report.json"))) == 1


def _always(evidence: Any):
    words = {"unit": "", "saw": "Ill.", "try_first": "Rest."}
    yield Finding(rule="always", severity="critical", step=evidence.steps[-1], since_step=0, value=1, limit=0, **words)


@every_strategy
def test_stop_ends_the_run_on_all_ranks_at_the_same_step(strategy: str, tmp_path: Path) -> None:
    monitor = GradientHealthMonitor(
        rules=[truth.spy(tmp_path), Rule("always", _always)], every_n_steps=4, action="stop"
    )
    run(strategy, [monitor])
    assert [np.load(tmp_path / f"rank{rank}.npz")["steps"].tolist() for rank in range(2)] == [[0, 1, 2, 3]] * 2


@every_strategy
def test_raise_ends_the_run_on_all_ranks(strategy: str) -> None:
    with pytest.raises(Exception, match=r"always\. Ill\. Try first: Rest\."):
        run(strategy, [GradientHealthMonitor(rules=[Rule("always", _always)], every_n_steps=4, action="raise")])


class FailsOnOneRank(GradientHealthMonitor):
    """Has a bug that only the second process meets, and only at step 6."""

    def _record(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step >= 6:
            self.failure = RuntimeError("a bug of ours")
        else:
            super()._record(trainer, *arguments)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        (Path(trainer.default_root_dir) / f"off{trainer.global_rank}").write_text(str(self.broken))


@every_strategy
def test_a_failure_on_one_rank_switches_off_all_and_leaves_nobody_waiting(strategy: str, tmp_path: Path) -> None:
    run(strategy, [FailsOnOneRank(every_n_steps=2)], default_root_dir=tmp_path)
    assert [(tmp_path / f"off{rank}").read_text() for rank in range(2)] == ["True", "True"]


class IllOnOneRank(truth.Model):
    """A bias that DDP is told to leave alone, whose gradient is NaN on the second process only."""

    def __init__(self) -> None:
        super().__init__()
        self._ddp_params_and_buffers_to_ignore = ["net.4.bias"]

    def on_after_backward(self) -> None:
        if self.global_rank == 1 and self.trainer.global_step == 4:
            self.net[4].bias.grad.fill_(float("nan"))


class Scribe(GradientHealthMonitor):
    """Leaves what each process found."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        told = json.dumps([f.to_dict() for f in self.findings])
        (Path(trainer.default_root_dir) / f"told{trainer.global_rank}").write_text(told)


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_an_illness_of_one_rank_is_told_on_all_and_nobody_waits(action: str, tmp_path: Path) -> None:
    """It was told by its own process only, and with "stop" that process alone left: the others waited for ever."""
    options = {"strategy": replicated(), "devices": 2, "max_epochs": 1, "use_distributed_sampler": False}
    fits.trainer([Scribe(every_n_steps=2, action=action)], default_root_dir=tmp_path, **options).fit(IllOnOneRank())
    told = [json.loads((tmp_path / f"told{rank}").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    if action == "warn":
        (broken,) = (f for f in told[0] if f["rule"] == "non_finite_gradients")
        assert (broken["since_step"], broken["parameters"]) == (4, ["net.4.bias"])
    (apart,) = (f for f in told[0] if f["rule"] == "rank_divergence")
    assert apart["parameters"] == ["net.4.bias"]  # what no process averages drifts apart


class MadeLate(truth.Model):
    """Its network is made in ``configure_model``, after the callbacks could note whole shapes."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = truth.network()


@pytest.mark.filterwarnings("ignore:.*FSDP.*")
@pytest.mark.filterwarnings("ignore:.*NO_SHARD.*")
@pytest.mark.parametrize("made_late", [False, True])
def test_flat_shards_never_pass_for_wholes(made_late: bool, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Histograms of a network made in ``configure_model`` counted one process's share, and nothing was said."""
    watchers = [Scribe(rules=[truth.spy(tmp_path)]), WeightHistogramLogger(every_n_steps=1)]
    options = {"devices": 2, "max_epochs": 1, "use_distributed_sampler": False, "logger": TensorBoardLogger(tmp_path)}
    fits.trainer(watchers, strategy=Flat(), **options).fit(MadeLate() if made_late else truth.Model())
    counted = events.read(tmp_path).histograms("health.weight_hist/00 net.0.weight")
    said = capfd.readouterr().out
    if made_late:
        assert not counted
        assert "gradients not measured (cut into shards before its whole shape could be noted), 6 of them" in said
        assert "weights and gradients not measured (cut into shards" in said
    else:
        assert counted[0].num == 35
        np.testing.assert_allclose(np.load(tmp_path / "rank0.npz")["norms"], truth.gradient_norms()[0], rtol=1e-5)
