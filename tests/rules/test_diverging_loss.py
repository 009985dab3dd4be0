"""A loss that rises and stays up: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Evidence, Listened, LossCall, Setup, Watched
from lightning_weightwatch.rules.diverging_loss import RULE
from tests.helpers.runs import INF, falling, run

RNG = np.random.default_rng(0)
NOISE = np.exp(0.1 * RNG.normal(size=3000))
WILD = np.exp(1.0 * RNG.normal(size=3000))


def losses(loss, steps=150, rate=None):
    evidence = Evidence([Watched("fc", 1, True)])
    for step in range(steps):
        evidence.add(step, [1.0], loss=loss(step), learning_rate=None if rate is None else rate(step))
    return evidence


def learnt(step):
    return max(2.3 * 0.95**step, 0.2) * NOISE[step]


def leaps(to, at=100):
    return lambda t: to * NOISE[t] if t >= at else learnt(t)


def comes_back(step):
    return learnt(step) if step < 100 else (0.2 + 5 * 0.97 ** (step - 100)) * NOISE[step]


def with_targets(evidence, *sizes):
    for step, size in enumerate(sizes):
        evidence.add_reading(Listened(step, losses=(LossCall("mse_loss", target_mean=size, target_std=0.0),)))
    return evidence


SILENT = [
    pytest.param(losses(learnt, 400), id="it fell and rests"),
    pytest.param(losses(lambda t: 2.3 * NOISE[t], 400), id="it never fell"),
    pytest.param(losses(lambda t: WILD[t], 400), id="single samples, no progress"),
    pytest.param(losses(lambda t: 0.995**t * WILD[t], 1000), id="single samples, slow progress"),
    pytest.param(losses(lambda t: None), id="unknown"),
    pytest.param(losses(comes_back, 130), id="new data, a while ago"),
    pytest.param(losses(comes_back, 200), id="new data, a long while ago"),
    pytest.param(losses(leaps(0.2, 100)), id="nothing"),
    pytest.param(losses(leaps(0.35, 100)), id="less than twice its best"),
    pytest.param(losses(lambda t: max(2.3 * 0.9**t, 0.002) if t < 100 else 0.05), id="a hundredth of what it learnt"),
    pytest.param(losses(leaps(0.9), rate=lambda t: 0.01 if t < 100 else 0.1), id="a third lost as the rate restarts"),
    pytest.param(losses(lambda t: -5.0 + t, 150), id="below zero at first"),
    pytest.param(losses(lambda t: 3.0 * np.sin(t) + t / 50, 150), id="around zero"),
    pytest.param(with_targets(losses(leaps(5.0)), 1.0, 1.0, 1.0, 5.0, 5.0, 5.0), id="its targets grew as well"),
    pytest.param(losses(lambda t: 2.3 if t < 100 else INF), id="not finite: another illness"),
    pytest.param(losses(lambda t: 30.0 if t == 120 else learnt(t)), id="a single spike"),
    pytest.param(losses(lambda t: 10.0**t, 20), id="too short to tell"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_rewards_and_opponents_may_rise():
    reward, opponents = losses(leaps(5.0)), losses(leaps(5.0))
    reward.add_reading(Listened(0))
    opponents.setup = Setup(optimizers=("Adam", "Adam"))
    assert RULE(reward) == RULE(opponents) == ()
    assert RULE(losses(leaps(5.0)))


def test_a_loss_that_left_its_best_level_for_good():
    evidence = losses(leaps(1.5))
    (finding,) = RULE(evidence)
    assert (finding.severity, finding.since_step, finding.step, finding.parameters) == ("warning", 100, 149, ())
    lowest = min(np.median(evidence.losses[i : i + 20]) for i in range(131))
    assert finding.value == pytest.approx(np.median(evidence.losses[-20:]) / lowest)
    assert finding.limit == 2.0
    assert "from its lowest level of" in finding.saw


def test_a_slow_climb_began_where_it_left_the_best_level():
    (finding,) = RULE(losses(lambda t: 0.5 if t < 60 else 0.5 + (t - 60) / 40, 120))
    assert 60 < finding.since_step <= 64


def test_the_best_level_is_remembered_beyond_the_window():
    (finding,) = RULE(losses(leaps(1.5, 400), 900))
    assert finding.value == pytest.approx(1.5 / 0.2, rel=0.1)
    assert 380 < finding.since_step <= 400  # as exactly as the curve knows


@pytest.mark.parametrize(
    ("level", "steps", "severity"),
    [(2.2, 199, "warning"), (2.2, 205, "critical"), (1.5, 300, "warning"), (25.0, 125, "critical")],
    ids=["at its start", "at its start for 100 steps", "below it for long", "ten times its start"],
)
def test_what_makes_it_critical(level, steps, severity):
    assert [f.severity for f in RULE(losses(leaps(level), steps))] == [severity]


@pytest.mark.parametrize(("share", "told"), [(0.2, False), (0.35, True)])
def test_a_quarter_of_what_was_learnt_must_be_lost(share, told):
    steady = losses(lambda t: 2.0 if t < 10 else 0.01 if t < 100 else 0.01 + share * 1.99)
    assert bool(RULE(steady)) is told


def test_half_of_it_where_the_learning_rate_has_risen():
    for level, told in ((0.9, False), (1.5, True)):
        assert bool(RULE(losses(leaps(level), rate=lambda t: 0.01 if t < 100 else 0.1))) is told


@pytest.mark.parametrize(("level", "told"), [(1.4, False), (1.6, True)])
def test_a_loss_that_never_fell_is_held_against_its_start(level, told):
    found = RULE(losses(lambda t: 2.0 if t < 8 else 2.0 * level, 60))
    assert bool(found) is told
    assert all(f.since_step == 8 and f.limit == 1.5 and "its start" in f.saw for f in found)


def test_an_explosion_is_told_at_once_and_as_critical():
    (finding,) = RULE(losses(lambda t: 2.3 * 1.5**t, 26))
    assert finding.severity == "critical"
    assert finding.since_step <= 3
    assert "its first value of 2.3" in finding.saw


def test_a_reward_must_rise_by_three_decades():
    for factor, told in ((500.0, False), (2000.0, True)):
        evidence = losses(lambda t, f=factor: 2.0 if t < 10 else 2.0 * f, 60)
        evidence.add_reading(Listened(0))
        assert bool(RULE(evidence)) is told


def test_one_nan_does_not_hide_it():
    assert RULE(losses(lambda t: INF if t == 140 else leaps(1.5)(t)))[0].since_step == 100


def test_a_huge_loss_can_be_written_down():
    (finding,) = RULE(losses(lambda t: 1e-30 if t < 20 else 1e300, 60))
    assert np.isfinite(finding.value)


def test_a_run_that_learns_is_silent_all_the_while():
    for steps in range(10, 200, 10):
        assert RULE(run(lambda t: [1.0], loss=falling, steps=steps)) == ()
