"""A loss that stays where it is, with a reason: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import DeadUnits, Evidence, Listened, LossCall, Setup, Snapshot, Watched
from lightning_weightwatch.rules.no_learning import RULE
from tests.helpers.runs import MISSING

NOISE = np.random.default_rng(0).normal(size=2000)
LN10 = float(np.log(10))
CALL = LossCall("cross_entropy", classes=10, chance=LN10, same=0.2)


def stuck(step):
    return LN10 + 0.02 * NOISE[step]


def fell(step):
    return 1.0 + 1.3 * 0.97**step + 0.02 * NOISE[step]


def trained(
    loss=stuck, *, steps=120, norms=(1.0, 1.0, 1.0), ratio=1e-3, call=None, dead=None, rate=lambda t: 0.1, epoch=40
):
    evidence = Evidence([Watched(f"fc{i}", 1, True) for i in range(3)])
    for step in range(steps):
        row = np.array(norms(step) if callable(norms) else norms)
        evidence.add(step, row, measured=~np.isnan(row), loss=loss(step), learning_rate=rate(step), batch=step % epoch)
        if step % 20 == 0:
            statistics = {"update_ratio": np.full(3, ratio)}
            evidence.add_snapshot(Snapshot(step, ("fc0", "fc1", "fc2"), statistics))
            if call is not None:
                evidence.add_reading(Listened(step, losses=(call,)))
    if dead is not None:
        evidence.add_reading(DeadUnits(steps - 1, 20, np.array(dead)))
    return evidence


ZEROS = (0.0, 0.0, 1.0)

SILENT = [
    pytest.param(trained(), id="flat, but nothing is wrong: perhaps it is slow"),
    pytest.param(trained(fell, norms=ZEROS), id="it learns with what it has"),
    pytest.param(trained(lambda t: None, norms=ZEROS), id="the loss is not known"),
    pytest.param(trained(norms=ZEROS, steps=95), id="too short to tell"),
    pytest.param(trained(norms=(0.0, 1.0, 1.0)), id="one matrix of three"),
    pytest.param(trained(norms=lambda t: (0.0, 0.0, 1.0) if t % 8 else (0.1, 0.1, 1.0)), id="seldom used layers"),
    pytest.param(trained(norms=(MISSING, MISSING, 1.0)), id="frozen layers"),
    pytest.param(trained(norms=lambda t: ZEROS if t < 95 else (0.1, 0.1, 1.0)), id="a zero head that has woken"),
    pytest.param(trained(ratio=2e-6), id="small steps"),
    pytest.param(trained(ratio=0.09), id="large steps"),
    pytest.param(trained(dead=[MISSING, 0.3, 0.6]), id="some units are dead"),
    pytest.param(trained(call=CALL), id="at chance, and has hardly moved: a small learning rate"),
    pytest.param(trained(call=CALL, ratio=0.01, epoch=1000), id="at chance, and no sample was seen twice"),
    pytest.param(trained(lambda t: 0.6 + 0.02 * NOISE[t], norms=ZEROS, call=CALL), id="trained before"),
    pytest.param(trained(ratio=1e-7, rate=lambda t: 1e-6 * (t + 1)), id="a warm-up"),
    pytest.param(trained(lambda t: 0.1 * NOISE[t], norms=ZEROS), id="a loss around zero"),
    pytest.param(trained(lambda t: -3.0, norms=ZEROS), id="a loss below zero"),
    pytest.param(trained(lambda t: 2.3 if t < 20 else 0.0001, steps=300, norms=ZEROS), id="all margins are met"),
    pytest.param(
        trained(lambda t: 2.3 if t < 5 else 0.2 + 0.02 * NOISE[t], steps=1500, ratio=1e-8),
        id="it learnt all in its first hundredth, and the rate has decayed",
    ),
    pytest.param(trained(lambda t: 2.3 if t < 90 else 5.0, norms=ZEROS), id="the loss has just leapt"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_opponents_need_not_learn():
    evidence = trained(norms=ZEROS)
    evidence.setup = Setup(optimizers=("Adam", "Adam"))
    assert RULE(evidence) == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norms": ZEROS}, "2 of 3 weight matrices have a gradient of exactly 0"),
        ({"ratio": 1e-8}, "a typical step changes the weights by 1.0e-08 of them (limit 1e-06)"),
        ({"ratio": 0.3}, "a typical step changes the weights by 3.0e-01 of them (limit 0.1)"),
        ({"dead": [MISSING, 0.6, 0.7]}, "65% of the units of a typical layer are dead"),
        ({"call": CALL, "ratio": 0.01}, "a network that knows nothing of its input has 2.3, though"),
    ],
    ids=["zero gradients", "tiny steps", "huge steps", "dead units", "at chance though weights move"],
)
def test_a_flat_loss_with_a_reason(options, words):
    (finding,) = RULE(trained(**options))
    assert (finding.severity, finding.since_step, finding.step, finding.parameters) == ("warning", 0, 119, ())
    assert finding.limit == 0.5
    assert words in finding.saw
    values = [stuck(t) for t in range(120)]
    first, last = np.array(values[:30]), np.array(values[-30:])
    noise = 1.4826 * np.median(np.abs(last - np.median(last)))
    assert finding.value == pytest.approx((np.median(first) - np.median(last)) / noise)


def test_coming_down_to_chance_is_no_progress():
    """At first the outputs are wild; all that is learnt is not to say anything."""

    def wild(step):
        return LN10 + 0.05 * 0.9**step + 0.005 * NOISE[step]

    assert RULE(trained(wild, norms=ZEROS)) == ()
    (finding,) = RULE(trained(wild, norms=ZEROS, call=CALL))
    assert finding.value > 0.5


@pytest.mark.parametrize("share", [0.8, 1.2])
def test_chance_is_what_the_targets_allow(share):
    evidence = trained(lambda t: share * stuck(t), call=CALL, ratio=0.01)
    assert RULE(evidence) == ()


def test_a_run_that_broke_is_told_since_it_broke():
    def broke(step):
        return (max(2.3 * 0.95**step, 0.1) if step < 150 else 2.5) + 0.01 * NOISE[step]

    (finding,) = RULE(trained(broke, steps=260, norms=lambda t: ZEROS if t >= 150 else (1.0, 1.0, 1.0)))
    assert 145 <= finding.since_step <= 150


def test_a_loss_without_any_noise():
    (finding,) = RULE(trained(lambda t: 2.3, norms=ZEROS))
    assert finding.value == 0
