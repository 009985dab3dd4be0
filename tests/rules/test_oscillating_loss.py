"""A loss that swings and gets nowhere: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Evidence, Listened, Setup, Snapshot, Watched
from lightning_weightwatch.rules.oscillating_loss import RULE

RNG = np.random.default_rng(0)
WILD = np.exp(1.2 * RNG.normal(size=2000))


def losses(loss, steps=120, ratio=0.2, rate=lambda t: 0.1):
    evidence = Evidence([Watched("fc", 1, True)])
    for step in range(steps):
        evidence.add(step, [1.0], loss=loss(step), learning_rate=rate(step))
        if ratio is not None and step % 25 == 0:
            evidence.add_snapshot(Snapshot(step, ("fc",), {"update_ratio": np.array([ratio])}))
    return evidence


def swings(step):
    return 3.0 if step % 2 else 0.5


def slowly(step):
    """Return the loss of a heavy ball that rolls to and fro, 24 steps from one side to the same."""
    return 10 * np.cos(np.pi * step / 24) ** 2 + 0.1


SILENT = [
    pytest.param(losses(lambda t: 2.3), id="no swings"),
    pytest.param(losses(lambda t: 2.3 * np.exp(0.2 * RNG.normal())), id="noise"),
    pytest.param(losses(lambda t: WILD[t], 400, ratio=0.005), id="batches of one sample and small steps"),
    pytest.param(losses(lambda t: 3.0 * 0.97**t * WILD[t]), id="it swings and gets lower"),
    pytest.param(losses(lambda t: 1.5**t), id="it rises: another illness"),
    pytest.param(losses(lambda t: 2.3 if t < 10 else 0.001 * WILD[t]), id="a hundredth of its start"),
    pytest.param(losses(swings, 99), id="too short to tell"),
    pytest.param(losses(lambda t: swings(t) - 1), id="below zero"),
    pytest.param(losses(lambda t: None), id="unknown"),
    pytest.param(losses(lambda t: 3.0 if t % 10 == 0 else 0.5), id="a tenth of the steps"),
    pytest.param(losses(lambda t: 2.0 * 0.98**t * (1.1 if t % 2 else 0.9)), id="at the edge of stability"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_rewards_and_opponents_may_swing():
    reward, opponents = losses(swings), losses(swings)
    reward.add_reading(Listened(0))
    opponents.setup = Setup(optimizers=("Adam", "Adam"))
    assert RULE(reward) == RULE(opponents) == ()


def test_swings_from_step_to_step():
    (finding,) = RULE(losses(swings))
    assert (finding.severity, finding.since_step, finding.step, finding.parameters) == ("warning", 0, 119, ())
    assert (finding.value, finding.limit) == (1.0, 0.25)
    assert "its median of 1.75 from one step to the next" in finding.saw


def test_slow_swings_of_momentum_count_too():
    evidence = losses(slowly)
    (finding,) = RULE(evidence)
    last = evidence.losses[-100:]
    shares = [(np.abs(last[lag:] - last[:-lag]) > np.median(last)).mean() for lag in (1, 2, 4, 8, 16)]
    assert finding.value == pytest.approx(max(shares))
    assert shares[0] < 0.25 < finding.value
    assert f"within {2 ** int(np.argmax(shares))} steps" in finding.saw


def test_it_begins_where_the_swings_begin():
    (finding,) = RULE(losses(lambda t: swings(t) if t >= 60 else 1.7, 160))
    assert 40 <= finding.since_step <= 60


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [(0.06, ["warning"]), (0.04, ["info"]), (None, ["info"]), (0.02, [])],
    ids=["large steps", "not so large", "not known", "small steps"],
)
def test_the_size_of_the_steps_decides(ratio, severity):
    assert [f.severity for f in RULE(losses(swings, ratio=ratio))] == severity


def test_while_the_learning_rate_rises_it_is_worth_knowing_only():
    assert [f.severity for f in RULE(losses(swings, rate=lambda t: 0.001 * t))] == ["info"]


@pytest.mark.parametrize(("late", "told"), [(0.75, False), (0.85, True)])
def test_getting_lower_by_a_fifth_is_progress(late, told):
    assert bool(RULE(losses(lambda t: swings(t) * (late if t >= 50 else 1.0), 100))) is told


@pytest.mark.parametrize(("every", "told"), [(7, True), (9, False)])
def test_a_quarter_of_the_steps_must_swing(every, told):
    """Each leap makes two swings, up and down: 2 of 7 steps are more than a quarter, 2 of 9 are less."""
    evidence = losses(lambda t: 3.0 if t % every == 0 else 1.0)
    assert bool(RULE(evidence)) is told
