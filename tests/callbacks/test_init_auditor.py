"""When the auditor looks, whom it tells, and what it never changes."""

import copy
import json
import logging
import os
import pickle
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_weightwatch import audit, parameters
from lightning_weightwatch.audit import audit_init
from lightning_weightwatch.callbacks.init_auditor import InitAuditor
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.parameters import Parameter, describe

pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning", "ignore:.*LeafSpec.*", "ignore:.*fork.*"
)


class Module(pl.LightningModule):
    """Any network, trained on noise."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def net(sick: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    if sick is not None:
        nn.init.constant_(model[3].weight, sick)
    return model


def fit(folder: Path, model: nn.Module, *callbacks: pl.Callback, ckpt_path=None, **trainer) -> pl.Trainer:
    data = DataLoader(TensorDataset(torch.randn(8, 4, generator=torch.Generator().manual_seed(0))), batch_size=4)
    settings = {"max_steps": 2, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"} | trainer
    trainer = pl.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(Module(model), data, ckpt_path=ckpt_path)
    return trainer


NAN = float("nan")


def test_every_parameter_gets_a_verdict(tmp_path):
    auditor = InitAuditor()
    fit(tmp_path, net(), auditor)
    report = auditor.report
    assert {p.name: p.verdict for p in report.parameters} == dict.fromkeys(
        ["net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias", "net.3.weight", "net.3.bias"], "ok"
    )
    assert all(p.scheme.startswith("PyTorch default") for p in report.parameters)
    assert (report.findings, report.resumed) == ((), False)


def test_no_report_before_a_training_has_begun(tmp_path):
    auditor = InitAuditor()
    assert auditor.report is None
    fit(tmp_path, net(), auditor, max_steps=0)
    assert auditor.report is None


def test_console_file_and_text_tab(tmp_path, capsys):
    trainer = fit(tmp_path, net(NAN), InitAuditor(), logger=TensorBoardLogger(tmp_path))
    shown = capsys.readouterr().out
    assert "Initial weights of 6 parameters: 1 critical, 5 ok" in shown
    assert "CRITICAL at step 0: non_finite_weights. 16 elements of 1 of 6 parameters are NaN" in shown
    plain = json.loads((Path(trainer.log_dir) / "weightwatch" / "init_report.json").read_text())
    assert [p["verdict"] for p in plain["parameters"]].count("critical") == 1
    events = EventAccumulator(trainer.log_dir).Reload()
    assert events.Tags()["tensors"] == ["health/init audit/text_summary"]
    (event,) = events.Tensors("health/init audit/text_summary")
    assert event.step == 0
    page = " ".join(event.tensor_proto.string_val[0].decode().split())
    assert "| net.3.weight | 2 x 8 | linear |" in page


def test_what_is_logged_is_what_the_docstring_says(tmp_path):
    trainer = fit(tmp_path, net(), InitAuditor(), logger=TensorBoardLogger(tmp_path))
    (tag,) = EventAccumulator(trainer.log_dir).Reload().Tags()["tensors"]
    assert f"``{tag.removesuffix('/text_summary')}``" in InitAuditor.__doc__


def test_prefix_is_the_first_part_of_the_tag(tmp_path):
    trainer = fit(tmp_path, net(), InitAuditor(prefix="gan"), logger=TensorBoardLogger(tmp_path))
    assert EventAccumulator(trainer.log_dir).Reload().Tags()["tensors"] == ["gan/init audit/text_summary"]


@pytest.mark.parametrize(
    ("depth", "sick", "lines"), [(10, None, "one line"), (21, None, "one line"), (21, NAN, "table")], ids=str
)
def test_a_healthy_model_is_told_in_one_line(tmp_path, capsys, depth, sick, lines):
    between = nn.LayerNorm(4, elementwise_affine=False)  # or so many layers would lose the signal
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), between) for _ in range(depth - 1)), nn.Linear(4, 4))
    if sick is not None:
        nn.init.constant_(model[0][0].weight, sick)
    fit(tmp_path, model, InitAuditor())
    shown = capsys.readouterr().out
    assert ("parameter " in shown) is (lines == "table")
    if lines == "one line":
        assert shown.startswith(f"weightwatch: Initial weights of {2 * depth} parameters: ")
        assert shown.count("\n") == 1


def test_findings_can_be_left_to_the_report(tmp_path, capsys):
    auditor = InitAuditor(on_finding="ignore")
    fit(tmp_path, net(NAN), auditor)
    assert "CRITICAL" not in capsys.readouterr().out
    assert [f.rule for f in auditor.report.findings] == ["non_finite_weights"]


def test_raises_on_a_critical_finding_if_asked_to(tmp_path):
    auditor = InitAuditor(on_finding="raise")
    with pytest.raises(UnhealthyRunError) as caught:
        fit(tmp_path, net(NAN), auditor)
    assert str(caught.value) == (
        "CRITICAL at step 0: non_finite_weights. 16 elements of 1 of 6 parameters are NaN or Inf (limit 0) at the "
        "start: net.3.weight. Try first: Initialise them, or load an earlier checkpoint."
    )
    assert auditor.report.findings


def test_does_not_raise_on_less(tmp_path):
    auditor = InitAuditor(on_finding="raise")
    fit(tmp_path, net(0.1), auditor)
    assert [f.severity for f in auditor.report.findings] == ["info"]


def test_selection(tmp_path):
    auditor = InitAuditor(include=["net.3.*"], exclude=["*.weight"])
    fit(tmp_path, net(), auditor)
    (bias,) = auditor.report.parameters
    assert (bias.name, bias.scheme) == ("net.3.bias", "PyTorch default (uniform ±1/sqrt(fan_in))")
    assert bias.expected_std == pytest.approx(1 / 24**0.5)  # from the weight that was left out


def test_a_pattern_that_matches_nothing_warns(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "lightning_weightwatch"):
        fit(tmp_path, net(), InitAuditor(include=["net.*"], exclude=["nett.3.wieght"]))
    assert [r.getMessage() for r in caplog.records if r.name == "lightning_weightwatch"] == [
        "InitAuditor: no parameter matches 'nett.3.wieght'. Nearest: net.3.weight, net.1.weight, net.0.weight."
    ]


def test_lazy_parameters_are_reported_as_skipped(tmp_path):
    auditor = InitAuditor()
    fit(tmp_path, nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), auditor)
    assert [(p.verdict, p.reason) for p in auditor.report.parameters[:2]] == [
        ("skipped", "uninitialised lazy parameter")
    ] * 2


def test_parameters_made_in_configure_model_are_seen(tmp_path, monkeypatch):
    class Late(Module):
        def configure_model(self):
            self.late = nn.Linear(4, 4)

    auditor = InitAuditor()
    monkeypatch.setattr(f"{__name__}.Module", Late)
    fit(tmp_path, net(), auditor)
    assert "late.weight" in [p.name for p in auditor.report.parameters]


@pytest.mark.parametrize("steps", [0, 2], ids=["from a checkpoint of step 0", "from a later one"])
def test_resume_says_nothing_of_schemes(tmp_path, steps):
    trainer = fit(tmp_path, net(), max_steps=steps)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    auditor = InitAuditor()
    fit(tmp_path, net(), auditor, max_steps=3, ckpt_path=tmp_path / "run.ckpt")
    assert auditor.report.resumed
    assert {p.scheme for p in auditor.report.parameters} == {"restored"}


def test_a_checkpoint_with_nan_is_found(tmp_path):
    trainer = fit(tmp_path, net(NAN))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    auditor = InitAuditor(on_finding="raise")
    with pytest.raises(UnhealthyRunError, match=r"^CRITICAL at step 2: non_finite_weights"):
        fit(tmp_path, net(), auditor, max_steps=3, ckpt_path=tmp_path / "run.ckpt")


def test_a_second_fit_counts_as_resumed(tmp_path):
    auditor = InitAuditor()
    trainer = fit(tmp_path, net(), auditor)
    trainer.fit_loop.epoch_loop.max_steps = 4
    trainer.fit(trainer.lightning_module, DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4))
    assert auditor.report.resumed


def test_the_run_is_the_same_with_and_without(tmp_path):
    def outcome(*callbacks):
        torch.manual_seed(1)
        trainer = fit(tmp_path, net(), *callbacks)
        return trainer.lightning_module.state_dict(), torch.get_rng_state()

    (with_it, stream), (without, other) = outcome(InitAuditor()), outcome()
    assert torch.equal(stream, other)
    assert with_it.keys() == without.keys()
    assert all(torch.equal(with_it[key], without[key]) for key in with_it)


@pytest.mark.parametrize("logger", ["none", "csv", "fast_dev_run"])
def test_any_logger_will_do(tmp_path, logger):
    auditor = InitAuditor()
    settings = {"none": {"logger": False}, "csv": {"logger": CSVLogger(tmp_path)}, "fast_dev_run": {"fast_dev_run": 1}}
    trainer = fit(tmp_path, net(), auditor, **settings[logger])
    assert auditor.report is not None
    assert not auditor.broken
    written = list(tmp_path.rglob("init_report.json"))
    assert len(written) == (0 if trainer.fast_dev_run else 1)


def test_a_failure_of_ours_is_reported_once_and_the_training_goes_on(tmp_path, caplog, monkeypatch):
    def fail(*args, **kwargs):
        raise ArithmeticError("no")

    monkeypatch.setattr(audit, "judge", fail)
    with caplog.at_level(logging.WARNING, "lightning_weightwatch"):
        trainer = fit(tmp_path, net(), InitAuditor(on_finding="raise"))
    assert trainer.global_step == 2
    assert [r.getMessage() for r in caplog.records if r.name == "lightning_weightwatch"] == [
        "InitAuditor.on_train_start failed (ArithmeticError: no). It is switched off, the training goes on."
    ]


def test_a_report_that_cannot_be_shown_is_still_there(tmp_path, monkeypatch):
    monkeypatch.setattr(audit.InitReport, "to_markdown", lambda self: 1 / 0)
    auditor = InitAuditor(on_finding="raise")
    with pytest.raises(UnhealthyRunError):
        fit(tmp_path, net(NAN), auditor)
    assert auditor.report.findings


def test_it_can_be_pickled_and_copied_before_and_after_a_fit(tmp_path):
    auditor = InitAuditor(include=["net.*"])
    assert pickle.loads(pickle.dumps(auditor)).include == ("net.*",)
    fit(tmp_path, net(), auditor)
    assert copy.deepcopy(auditor).report == auditor.report
    assert auditor.state_dict() == {}


def test_two_auditors_of_two_prefixes_have_states_of_their_own():
    assert InitAuditor().state_key != InitAuditor(prefix="gan").state_key
    assert InitAuditor().state_key == InitAuditor(include=["a.*"]).state_key


PATTERNS = (
    "expected a list of non-empty parameter name patterns. "
    'Use a list of shell-style patterns such as ["encoder.*", "*.bias"].'
)
CHOICES = "expected one of 'warn', 'raise', 'ignore'. Use \"warn\" to be told and train on."
PREFIX = "expected letters, digits, '_', '.', '-' or spaces. Use a short word such as \"health\"."


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("on_finding", "explode", ValueError, CHOICES),
        ("include", "conv*", TypeError, PATTERNS),
        ("include", [""], ValueError, PATTERNS),
        ("exclude", [3], TypeError, PATTERNS),
        ("prefix", "a/b", ValueError, PREFIX),
    ],
)
def test_what_cannot_be_used_is_refused(argument, value, error, message):
    with pytest.raises(error) as caught:
        InitAuditor(**{argument: value})
    assert str(caught.value) == f"InitAuditor({argument}={value!r}): {message}"


def whole(now, before, tensors, flat=True) -> dict[str, Parameter]:
    return {p.name: p for p in parameters.as_wholes(now, before, tensors, flat=flat)}


def test_flat_shards_are_described_by_what_was_noted_before():
    before = describe(nn.Linear(8, 4))
    shards = nn.Module()
    shards.weight = nn.Parameter(torch.zeros(0))
    shards.late = nn.Parameter(torch.zeros(5))
    found = whole(describe(shards), before, dict(shards.named_parameters()))
    assert (found["weight"].shape, found["weight"].unmeasurable) == ((4, 8), None)
    assert found["late"].unmeasurable == "cut into shards before its whole shape could be noted"
    assert found["bias"].unmeasurable == "flattened into one tensor with others by the strategy"


def test_whole_tensors_of_other_strategies_are_taken_as_they_are():
    late = nn.Linear(8, 4)
    found = whole(describe(late), (), dict(late.named_parameters()), flat=False)
    assert [p.unmeasurable for p in found.values()] == [None, None]


class Scribe(InitAuditor):
    """Leaves what each process found, for the test that started them to read."""

    def on_train_start(self, trainer, pl_module):
        try:
            super().on_train_start(trainer, pl_module)
            told = json.dumps(self.report.to_dict())
        except UnhealthyRunError as error:
            told = str(error)
        (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}").write_text(told)


class IllOnOne(Scribe):
    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank == 1:
            nn.init.constant_(pl_module.net[3].weight, NAN)  # after the broadcast: this process alone is ill
        super().on_train_start(trainer, pl_module)


def fork(folder: Path, model: nn.Module, auditor: InitAuditor, strategy: pl.strategies.Strategy) -> list[str]:
    """Train on two processes and return what each wrote."""
    with mock.patch.dict(os.environ):  # Lightning leaves the address of the process group there
        fit(folder, model, auditor, strategy=strategy, devices=2)
    return [(folder / f"rank{rank}").read_text() for rank in range(2)]


def test_all_processes_raise_if_one_is_ill(tmp_path):
    healthy, sick = fork(tmp_path, net(), IllOnOne(on_finding="raise"), DDPStrategy(start_method="fork"))
    assert healthy == "A critical finding on another process."
    assert sick.startswith("CRITICAL at step 0: non_finite_weights.")


class Launcher(_MultiProcessingLauncher):
    def _recover_results_in_main_process(self, worker_output, trainer):
        """Leave the weights where they are: the process that forked has no place for shards."""


class Forked:
    """Makes a strategy that starts scripts fork instead, so that it runs within a test."""

    def _configure_launcher(self):
        self._launcher = Launcher(self, start_method="fork")


class FSDP1(Forked, FSDPStrategy):
    def _setup_model(self, model):
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


class FSDP2(Forked, ModelParallelStrategy):
    pass


class Sharding(Module):
    def configure_model(self):
        if isinstance(self.trainer.strategy, FSDP2):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


@pytest.mark.parametrize("sick", [None, NAN], ids=["healthy", "ill"])
@pytest.mark.parametrize("strategy", [FSDP1, FSDP2])
def test_shards_are_judged_as_the_whole(tmp_path, monkeypatch, strategy, sick):
    monkeypatch.setattr(f"{__name__}.Module", Sharding)
    model = nn.Sequential(net(sick), nn.Linear(2, 7), nn.Linear(7, 3))  # seven rows do not part evenly
    truth = audit_init(Module(copy.deepcopy(model)))
    ranks = [json.loads(text) for text in fork(tmp_path, model, Scribe(), strategy())]
    assert ranks[0] == ranks[1]
    assert len(ranks[0]["parameters"]) == len(truth.parameters)
    for found, wanted in zip(ranks[0]["parameters"], truth.to_dict()["parameters"], strict=True):
        assert found == wanted | {"std": approx(wanted["std"]), "mean": approx(wanted["mean"])}
    assert [f["rule"] for f in ranks[0]["findings"]] == ([] if sick is None else ["non_finite_weights"])


def approx(number):
    return number if number is None else pytest.approx(number)
