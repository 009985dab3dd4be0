"""What the gradient monitor sees, when it tells it, and what it does then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_weightwatch import GradientHealthMonitor
from lightning_weightwatch.callbacks._judgement import Judgement
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.rules import Finding, Rule, all_rules
from lightning_weightwatch.sinks.files import read_lines
from tests.helpers import events, fits, nets


class Backwards(nets.Net):
    """Ten sigmoid layers, registered from the last to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(16, 16) for _ in range(9)] + [nn.Linear(8, 16)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(self.body):
            x = torch.sigmoid(layer(x))
        return self.head(x)


class NaNOnce(nets.Net):
    """The gradient of the head's bias is NaN at one step, and is taken back before the step."""

    at = 13

    def on_after_backward(self) -> None:
        if self.trainer.global_step == self.at:
            self.head.bias.grad.fill_(float("nan"))

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.head.bias.grad.nan_to_num_(0.0)


def test_healthy_training_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    monitor = GradientHealthMonitor()
    fits.fit(nets.Net, [monitor], max_epochs=10, default_root_dir=tmp_path)
    assert monitor.findings == ()
    assert monitor.first_cause is None
    assert "weightwatch" not in capsys.readouterr().out
    assert not (tmp_path / "weightwatch").exists()


@pytest.mark.parametrize(("net", "first"), [(nets.DeepSigmoid, "body.0.weight"), (Backwards, "body.9.weight")])
def test_vanishing_gradients_are_told_by_the_order_of_the_forward_pass(net: type, first: str) -> None:
    """A network registered backwards was told to have exploding gradients."""
    monitor = GradientHealthMonitor()
    fits.fit(net, [monitor], max_epochs=6)
    assert monitor.first_cause.rule == "vanishing_gradients"
    assert monitor.first_cause.parameters[0] == first
    assert monitor.first_cause.step < 50


def test_a_finding_is_printed_and_written_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fits.fit(nets.TurnsNaN, [GradientHealthMonitor()], max_epochs=6, default_root_dir=tmp_path)
    (written,) = read_lines(tmp_path / "weightwatch" / "findings.jsonl")
    assert (written["rule"], written["since_step"]) == ("non_finite_gradients", 3)
    assert capsys.readouterr().out.count("CRITICAL at step 9: non_finite_gradients.") == 1


def test_a_second_run_in_the_same_folder_does_not_mix_with_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        fits.fit(nets.TurnsNaN, [GradientHealthMonitor()], default_root_dir=tmp_path)
    assert len(read_lines(tmp_path / "weightwatch" / "findings.jsonl")) == 1
    assert len(read_lines(tmp_path / "weightwatch" / "findings.jsonl.old")) == 1


def test_a_nan_between_two_points_stays_in_the_curve(tmp_path: Path) -> None:
    """The curve was drawn from the last step of each interval, and showed 0 throughout."""
    fits.fit(NaNOnce, [GradientHealthMonitor(every_n_steps=10)], max_epochs=4, logger=TensorBoardLogger(tmp_path))
    curve = events.read(tmp_path).scalars("health/non_finite_parameters")
    assert curve[9] == 0
    assert curve[19] == 1
    assert curve[29] == 0


def test_a_long_interval_does_not_push_steps_out_of_the_window() -> None:
    """With 300 steps between two looks and a window of 50, a NaN at step 13 was never told."""
    monitor = GradientHealthMonitor(every_n_steps=300, window=50)
    fits.fit(NaNOnce, [monitor], max_epochs=40)
    assert [(f.rule, f.since_step) for f in monitor.findings] == [("non_finite_gradients", 13)]


def test_warn_trains_on() -> None:
    trainer = fits.trainer([GradientHealthMonitor(every_n_steps=2)])
    trainer.fit(nets.TurnsNaN())
    assert trainer.global_step == 16


def test_stop_ends_the_fit_in_good_order() -> None:
    trainer = fits.trainer([GradientHealthMonitor(every_n_steps=2, action="stop")])
    trainer.fit(nets.TurnsNaN())
    assert trainer.global_step == 4
    assert trainer.state.finished


def test_raise_raises_and_the_finding_is_on_disk(tmp_path: Path) -> None:
    monitor = GradientHealthMonitor(every_n_steps=2, action="raise")
    with pytest.raises(UnhealthyRunError, match="non_finite_gradients"):
        fits.fit(nets.TurnsNaN, [monitor], default_root_dir=tmp_path)
    assert len(read_lines(tmp_path / "weightwatch" / "findings.jsonl")) == 1


@pytest.mark.parametrize("action", ["stop", "raise"])
def test_a_warning_ends_nothing(action: str) -> None:
    trainer = fits.trainer([GradientHealthMonitor(action=action)], max_epochs=6)
    trainer.fit(nets.DeepSigmoid())
    assert trainer.global_step == 48


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_is_held_against_its_own_beginning(tmp_path: Path) -> None:
    """After a resume the loss of a converged run counted as its start, and so as not falling."""
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=16)
    fits.fit(nets.Net, [GradientHealthMonitor(), saver], enable_checkpointing=True)
    first = GradientHealthMonitor()
    fits.fit(nets.Net, [first], max_epochs=1)
    resumed = GradientHealthMonitor()
    fits.trainer([resumed], max_epochs=4).fit(nets.Net(), ckpt_path=next(tmp_path.glob("*.ckpt")))
    own, its = (monitor.state_dict()["evidence"] for monitor in (resumed, first))
    assert own["first_losses"] == its["first_losses"] != []
    assert own["steps"] == [*range(10), *range(16, 32)]  # what waits to be read is not in a checkpoint
    assert own["norms"][:8].tolist() == its["norms"].tolist()
    assert own["curve"]["steps"][0] == 0


def test_a_rule_of_the_users_that_fails_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def fails(evidence: Any) -> Any:
        raise KeyError("theirs")

    monitor = GradientHealthMonitor(rules=[Rule("mine", fails), *all_rules("training").values()])
    fits.fit(nets.TurnsNaN, [monitor], max_epochs=4)
    assert [f.rule for f in monitor.findings] == ["non_finite_gradients"]
    assert sum("The rule mine failed" in r.getMessage() for r in caplog.records) == 1


def test_a_pattern_that_matches_nothing_names_its_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    fits.fit(nets.Net, [GradientHealthMonitor(include=["bodi.*", "head.*"])])
    assert "no parameter matches 'bodi.*'. Nearest: body." in caplog.text


def test_a_remote_folder_is_not_taken_for_a_local_one(tmp_path: Path) -> None:
    """A folder named ``memory:`` appeared where the training was started."""
    monitor = GradientHealthMonitor()
    fits.fit(nets.TurnsNaN, [monitor], default_root_dir="memory://runs")
    assert len(monitor.findings) == 1
    assert list(tmp_path.iterdir()) == []


class NeverSteps(nets.Net):
    """Differentiates, and steps no optimizer through Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        left = sum(len(p._post_accumulate_grad_hooks or ()) for p in self.parameters())
        assert not left or batch_idx == 0
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        self.zero_grad()


def test_listening_ends_with_the_first_batch_where_no_optimizer_steps() -> None:
    """The hooks stayed, and noted every backward pass for ever."""
    monitor = GradientHealthMonitor()
    fits.fit(NeverSteps, [monitor], max_epochs=1)
    assert not monitor.broken


def test_an_internal_error_in_the_last_look_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It waited for a meeting that never came."""
    monitor = GradientHealthMonitor(every_n_steps=100)
    monkeypatch.setattr(Judgement, "news", lambda *_: 1 / 0)
    fits.fit(nets.Net, [monitor])
    assert monitor.broken
    assert sum("division by zero" in r.getMessage() for r in caplog.records) == 1


# --- running a broken batch again -------------------------------------------------------------------------------------


class LogOfMinusOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(0 * x - 1)


class BreaksInAModule(nets.Net):
    """One batch goes through a logarithm of -1."""

    def __init__(self) -> None:
        super().__init__()
        self.culprit = LogOfMinusOne()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.body(batch[0])
        loss = nn.functional.cross_entropy(self.head(self.culprit(hidden) if batch_idx == 5 else hidden), batch[1])
        self.log("loss", loss)
        return loss


def test_a_replay_names_the_module_and_changes_nothing() -> None:
    monitors = [GradientHealthMonitor(replay=replay) for replay in (False, True)]
    weights = []
    for monitor in monitors:
        torch.manual_seed(0)
        model = BreaksInAModule()
        fits.trainer([monitor]).fit(model)
        weights.append([*model.state_dict().values(), torch.get_rng_state()])
    plain, replayed = (monitor.first_cause for monitor in monitors)
    assert (plain.rule, plain.since_step) == (replayed.rule, replayed.since_step) == ("non_finite_loss", 5)
    assert "culprit" not in plain.saw
    assert "Reproducible: the first NaN is in the output of culprit (LogOfMinusOne), forward" in replayed.saw
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize(
    ("action", "ends"), [({"warning": "stop"}, True), ({"critical": "stop"}, False), ({"info": "warn"}, False)]
)
def test_each_severity_has_its_action(action: dict[str, str], ends: bool) -> None:
    monitor = GradientHealthMonitor(action=action, rules=[Rule("mine", _warns)], every_n_steps=2)
    trainer = fits.trainer([monitor])
    trainer.fit(nets.Net())
    assert (trainer.global_step == 2) is ends


def _warns(evidence: Any) -> Any:
    yield Finding(
        rule="mine",
        severity="warning",
        step=evidence.steps[-1],
        since_step=0,
        parameters=("head.bias",),
        value=1.0,
        limit=0.0,
        unit="u",
        saw="Saw.",
        try_first="Try.",
    )


def test_on_finding_is_called_with_each_and_its_error_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def asked(finding: Finding) -> None:
        seen.append(finding)
        raise KeyError("the user's")

    monitor = GradientHealthMonitor(on_finding=asked, rules=[Rule("mine", _warns)])
    fits.fit(nets.Net, [monitor])
    assert tuple(seen) == monitor.findings != ()
    assert not monitor.broken
    assert sum("on_finding failed" in r.getMessage() for r in caplog.records) == 1


def test_what_is_ignored_is_not_told() -> None:
    for patterns, told in ((["*"], 0), (["head.*"], 0), (["body.*"], 1)):
        monitor = GradientHealthMonitor(rules=[Rule("mine", _warns)], ignore={"mine": patterns})
        fits.fit(nets.Net, [monitor])
        assert len(monitor.findings) == told
