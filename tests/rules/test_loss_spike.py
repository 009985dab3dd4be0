"""A loss that jumps: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Evidence, Listened, Setup, Watched
from lightning_weightwatch.rules.loss_spike import RULE, check
from tests.helpers.runs import INF, run


def MILD(evidence):  # noqa: N802 - it stands for the rule
    """Judge what a spike does, whatever its size."""
    return tuple(check(evidence, times=np.inf))


RNG = np.random.default_rng(0)
NOISE = np.exp(0.2 * RNG.normal(size=2000))


def losses(loss, steps=100, **options):
    return run(lambda t: [1.0], steps=steps, loss=loss, **options)


def learnt(step):
    return 2.3 if step < 10 else 0.5 * NOISE[step]


def leaps(at, to, stays=1):
    return lambda t: to if at <= t < at + stays else learnt(t)


SILENT = [
    pytest.param(losses(learnt, 200), id="noise"),
    pytest.param(losses(lambda t: 2.3 * 0.97**t * NOISE[t], 200), id="it falls"),
    pytest.param(losses(lambda t: 2.3 * 1.02**t * NOISE[t], 200), id="it rises steadily: another illness"),
    pytest.param(losses(lambda t: 2.3, 200), id="no noise at all"),
    pytest.param(losses(lambda t: None), id="unknown"),
    pytest.param(losses(lambda t: INF if t == 90 else learnt(t)), id="not finite: another illness"),
    pytest.param(losses(lambda t: 0.0), id="exactly zero"),
    pytest.param(losses(leaps(20, 20.0), 40), id="in the first steps"),
    pytest.param(losses(leaps(70, 20.0)), id="30 steps ago, and it came back"),
    pytest.param(
        losses(lambda t: 2.3 if t < 10 else 0.02 if t == 90 else 1e-4 * NOISE[t]), id="a converged run flickers"
    ),
    pytest.param(losses(lambda t: RNG.normal()), id="a loss around zero"),
    pytest.param(
        losses(lambda t: NOISE[t] * np.exp(NOISE[1000 + t]), 200), id="single samples, some of them ten times others"
    ),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert MILD(evidence) == ()


def test_one_step_is_worth_knowing():
    evidence = losses(leaps(90, 30.0))
    (finding,) = MILD(evidence)
    assert (finding.severity, finding.since_step, finding.step, finding.parameters) == ("info", 90, 99, ())
    logs = np.log(evidence.losses[26:90])
    mad = np.median(np.abs(logs - np.median(logs)))
    assert finding.value == pytest.approx((np.log(30.0) - np.median(logs)) / (1.4826 * mad))
    assert finding.limit == 8.0


def test_what_is_below_zero_now_and_then_is_measured_as_it_is():
    values = RNG.normal(size=100) - 3
    values[90] = 20.0
    (finding,) = MILD(losses(lambda t: values[t]))
    before, size = values[26:90], np.median(np.abs(values))
    mad = np.median(np.abs(before - np.median(before)))
    assert finding.value == pytest.approx((20 - np.median(before)) / (1.4826 * max(mad, 0.05 * size)))
    assert finding.severity == "info"


@pytest.mark.parametrize(
    ("stays", "steps", "found"),
    [(100, 91, ["warning"]), (100, 90, ["info"]), (5, 90, ["info"]), (5, 91, [])],
    ids=["stays", "too early to tell", "came back", "came back long ago"],
)
def test_a_loss_that_stays_up_is_a_warning(stays, steps, found):
    findings = MILD(losses(leaps(70, 6.0, stays), steps))
    assert [f.severity for f in findings] == found
    assert {f.since_step for f in findings} <= {70}


def test_half_of_what_was_learnt_is_what_counts():
    """From 2.3 it had learnt 1.8; at 1.2 it has lost 0.7 of that, at 1.6 more than half."""
    for level, found in ((1.2, []), (1.6, ["warning"])):
        steady = losses(lambda t, level=level: 2.3 if t < 10 else 0.5 + t % 3 / 50 if t < 70 else level + t % 3 / 50)
        assert [f.severity for f in MILD(steady)] == found


def test_one_that_comes_back_slowly_is_no_warning():
    evidence = losses(lambda t: 2.3 if t < 10 else 0.3 if t < 60 else 0.3 + 5 * 0.96 ** (t - 60))
    assert MILD(evidence) == ()


def test_rewards_and_opponents_make_no_warning():
    reward, opponents = losses(leaps(70, 6.0, 100), 90), losses(leaps(70, 6.0, 100), 90)
    reward.add_reading(Listened(0))
    opponents.setup = Setup(optimizers=("Adam", "Adam"))
    for evidence in (reward, opponents):
        assert [f.severity for f in MILD(evidence)] == ["info"]


def test_one_nan_neither_blinds_nor_jams():
    evidence = losses(lambda t: INF if t == 85 else leaps(90, 30.0)(t))
    assert MILD(evidence)[0].since_step == 90


def test_it_names_the_batch_where_that_is_known():
    evidence = Evidence([Watched("fc", 1, True)])
    for step in range(60):
        evidence.add(step, [1.0], loss=9.0 if step == 55 else 1.0, batch=step % 40)
    assert "at step 55 (batch 15 of its epoch)" in MILD(evidence)[0].saw


def test_32_losses_before_it_are_enough():
    assert MILD(losses(leaps(32, 60.0), 33))
    assert MILD(losses(leaps(31, 60.0), 33)) == ()


def steady(to, stays=1):
    return lambda t: to if 90 <= t < 90 + stays else 2.3 if t < 10 else 0.5 + t % 3 / 50


@pytest.mark.parametrize(("to", "severity"), [(2.0, "info"), (2.5, "warning")])
def test_a_loss_beyond_where_the_run_began_is_a_warning_though_it_comes_back(to, severity):
    (finding,) = RULE(losses(steady(to), 95))
    assert (finding.severity, finding.since_step) == (severity, 90)


@pytest.mark.parametrize(
    ("loss", "steps"),
    [
        (steady(9.0, stays=100), 100),
        (steady(9.0), 93),
        (lambda t: 4.0 if t == 75 else steady(9.0)(t), 100),
    ],
    ids=["new data cost more for longer", "what comes next is not known", "others cost nearly as much"],
)
def test_a_loss_beyond_where_the_run_began_that_may_be_healthy(loss, steps):
    assert [f.severity for f in RULE(losses(loss, steps))] == ["info"]
