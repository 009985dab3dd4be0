"""Gradients that nobody clears: silent cases first."""

import pytest

from lightning_weightwatch.evidence import Evidence, Watched
from lightning_weightwatch.rules.stale_gradients import RULE, check

NAN = float("nan")


def told(stale, *, steps=30, measured=(True, True), first=0):
    """Return evidence of two layers; ``stale(step)`` is 1, 0 or ``None``."""
    evidence = Evidence([Watched("fc0", 4, True), Watched("fc1", 4, True)])
    for step in range(first, first + steps):
        evidence.add(step, [1.0, 1.0], measured=measured, loss=1.0, stale=stale(step))
    return evidence


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(told(lambda t: 0.0), id="cleared before each step"),
        pytest.param(told(lambda t: None), id="nobody can tell"),
        pytest.param(told(lambda t: float(t % 2)), id="two batches for one step, by hand"),
        pytest.param(told(lambda t: float(t % 10 > 0)), id="nine in a row, again and again"),
        pytest.param(told(lambda t: 1.0, steps=9), id="too few steps"),
        pytest.param(told(lambda t: 1.0, measured=(False, False)), id="no gradient was measured"),
    ],
)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_ten_in_a_row_are_told_from_the_first():
    (finding,) = RULE(told(lambda t: float(t >= 1), steps=11))
    assert (finding.severity, finding.parameters) == ("warning", ("fc0", "fc1"))
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (1, 10, 10.0, 10.0)


def test_told_though_they_are_cleared_once_an_epoch():
    (finding,) = RULE(told(lambda t: float(t % 15 > 0), steps=35))
    assert (finding.since_step, finding.value) == (1, 14.0)


def test_steps_of_which_nobody_can_tell_neither_count_nor_break_the_row():
    (finding,) = RULE(told(lambda t: None if t % 2 else 1.0, steps=20))
    assert (finding.since_step, finding.value) == (0, 10.0)
    assert RULE(told(lambda t: None if t % 2 else 1.0, steps=18)) == ()


def test_frozen_parameters_are_not_named():
    assert RULE(told(lambda t: 1.0, measured=(False, True)))[0].parameters == ("fc1",)


def test_steps_are_those_of_the_run():
    assert RULE(told(lambda t: float(t >= 507), first=500))[0].since_step == 507


def test_the_limit_can_be_moved():
    assert list(check(told(lambda t: float(t in (3, 4))), steps=2))
