"""What is done about findings, on one process and on two."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_weightwatch import GradientHealthMonitor, reduce
from lightning_weightwatch.callbacks._acting import act, checked_action
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.rules import Finding, Rule
from tests.helpers import fits, nets
from tests.helpers.strategies import FORKING_IS_FINE, replicated

ME = "GradientHealthMonitor"


def finding(severity, rule="mine", step=3):
    options = {"value": 1.0, "limit": 0.5, "unit": "u", "saw": f"A {severity} one.", "try_first": "Try."}
    return Finding(rule=rule, severity=severity, step=step, since_step=step, parameters=("head.weight",), **options)


class Trainer:
    should_stop = False


class Module(nn.Module):
    device = torch.device("cpu")


def done(actions, *severities, stopped=False):
    """Return what happens to a run: the error it ends with, or whether it is asked to stop."""
    trainer = Trainer()
    trainer.should_stop = stopped
    try:
        act(trainer, Module(), checked_action(ME, actions), [finding(s) for s in severities])
    except UnhealthyRunError as error:
        return str(error)
    return trainer.should_stop


def test_a_single_action_is_that_for_critical_findings():
    assert checked_action(ME, "stop") == {"info": "warn", "warning": "warn", "critical": "stop"}
    assert checked_action(ME, {"warning": "raise"}) == {"info": "warn", "warning": "raise", "critical": "warn"}
    assert set(checked_action(ME, {}).values()) == {"warn"}


ALL = {"info": "stop", "warning": "stop", "critical": "raise"}


@pytest.mark.parametrize(
    ("actions", "severities", "expected"),
    [
        ("warn", ["critical"], False),
        ("stop", [], False),
        ("stop", ["warning", "info"], False),
        ("stop", ["warning", "critical"], True),
        ({"warning": "stop"}, ["critical"], False),
        ({"warning": "stop"}, ["info", "warning"], True),
        (ALL, ["info"], True),
        (ALL, ["info", "warning"], True),
        (ALL, ["info", "critical", "warning"], "CRITICAL at step 3: mine. A critical one. Try first: Try."),
        ({"warning": "raise", "critical": "stop"}, ["critical", "warning"], "WARNING at step 3: mine. A warning one."),
    ],
    ids=str,
)
def test_the_severest_action_that_a_finding_asks_for_is_taken(actions, severities, expected):
    seen = done(actions, *severities)
    assert seen == expected if isinstance(expected, bool) else str(seen).startswith(expected)


def test_a_run_that_is_to_stop_for_another_reason_stops():
    assert done("stop", stopped=True) is True
    assert done("warn", "critical", stopped=True) is True


@pytest.mark.parametrize(
    ("own", "theirs", "expected"),
    [
        ([], 0, False),
        ([], 1, True),
        (["critical"], 0, True),
        ([], 2, "A finding on another process."),
        (["critical"], 2, "A finding on another process."),
    ],
    ids=str,
)
def test_what_another_process_asks_for_is_done_here_too(monkeypatch, own, theirs, expected):
    monkeypatch.setattr(reduce, "largest", lambda number, device: max(int(number), theirs))
    assert done("stop", *own) == expected


def test_processes_that_only_warn_do_not_meet(monkeypatch):
    monkeypatch.setattr(reduce, "largest", lambda *_: pytest.fail("they met"))
    assert done("warn", "critical") is False
    assert done({"warning": "warn"}, "critical") is False


EXPECTED = 'one of "warn", "stop", "raise", or a dict of them by severity'
REMEDY = 'Use "warn" to be told and train on, or a dict such as {"critical": "stop"}.'


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("explode", ValueError),
        ("", ValueError),
        ({"critical": "explode"}, ValueError),
        ({"deadly": "stop"}, ValueError),
        ({"info": "stop", "deadly": "stop"}, ValueError),
        (None, TypeError),
        (True, TypeError),
        (["stop"], TypeError),
        ({"critical": None}, TypeError),
        ({1: "stop"}, TypeError),
    ],
    ids=str,
)
def test_an_action_that_is_none_is_refused(action, error):
    with pytest.raises(error) as raised:
        GradientHealthMonitor(action=action)
    assert str(raised.value) == f"{ME}(action={action!r}): expected {EXPECTED}. {REMEDY}"


# --- in a fit ---------------------------------------------------------------------------------------------------------


def at(step, severity, ranks=(0, 1)):
    """Return a rule that finds something at a step, on some processes."""

    def check(evidence):
        if reduce.rank() in ranks and evidence.steps[-1] >= step:
            yield finding(severity, step=step)

    return Rule("mine", check)


def fitted(action, severity, **options):
    monitor = GradientHealthMonitor(every_n_steps=2, rules=[at(5, severity)], action=action, max_overhead=None)
    trainer = fits.trainer([monitor], max_epochs=1, **options)
    trainer.fit(nets.Net())
    return monitor, trainer


@pytest.mark.parametrize("severity", ["info", "warning", "critical"])
def test_a_fit_stops_in_good_order_at_the_severity_that_is_asked_for(severity):
    monitor, trainer = fitted({severity: "stop"}, severity)
    assert (trainer.global_step, trainer.state.finished, monitor.broken) == (6, True, False)
    other = {"info": "warning", "warning": "critical", "critical": "info"}[severity]
    assert fitted({other: "stop"}, severity)[1].global_step == 8


def test_a_fit_raises_at_the_severity_that_is_asked_for():
    with pytest.raises(UnhealthyRunError, match="INFO at step 5"):
        fitted({"info": "raise"}, "info")


def test_the_users_function_is_called_with_each_finding_before_anything_is_done():
    seen = []
    monitor = GradientHealthMonitor(
        every_n_steps=2, rules=[at(5, "critical")], action="raise", on_finding=seen.append, max_overhead=None
    )
    with pytest.raises(UnhealthyRunError):
        fits.fit(nets.Net, [monitor], max_epochs=1)
    assert seen == list(monitor.findings) != []


def test_a_function_of_the_users_that_fails_is_told_and_changes_nothing(caplog):
    monitor = GradientHealthMonitor(rules=[at(0, "info")], on_finding=lambda finding: 1 / 0)
    fits.fit(nets.Net, [monitor])
    assert len(monitor.findings) == 1
    assert not monitor.broken
    assert "Calling on_finding failed (ZeroDivisionError: division by zero). It is left out." in caplog.text


class Writes(nets.Net):
    """Writes down, for each process, after which step it ended."""

    folder = ""

    def on_train_end(self):
        (Path(self.folder) / f"{self.global_rank}").write_text(str(self.trainer.global_step))


class TestTwoProcesses:
    """One of which alone has a finding."""

    pytestmark = FORKING_IS_FINE

    def test_both_end_in_the_same_step(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Writes, "folder", str(tmp_path))
        rules = [at(1, "critical", ranks=(1,))]
        monitor = GradientHealthMonitor(every_n_steps=2, rules=rules, action="stop", max_overhead=None)
        fits.trainer([monitor], max_epochs=1, devices=2, strategy=replicated()).fit(Writes())
        assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["2", "2"]
