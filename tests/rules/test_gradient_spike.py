"""A gradient far larger than those before it: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import DeadUnits, Evidence, Setup, Watched
from lightning_weightwatch.rules.gradient_spike import RULE, check
from tests.helpers.runs import INF, MISSING, STUCK, layers, run


def MILD(evidence):  # noqa: N802 - it stands for the rule
    """Judge what a spike does, whatever its size."""
    return tuple(check(evidence, times=np.inf))


NOISE = np.exp(0.2 * np.random.default_rng(0).normal(size=(2000, 3)))


def usual(step):
    return list(NOISE[step])


def spiky(*spikes, times=50.0):
    return lambda t: [times * n if t in spikes else n for n in NOISE[t]]


def down_and_up(back):
    """Return a loss that falls to 0.5 and leaps to 2.3 after step 60, for ``back`` steps."""
    return lambda t: 2.3 if t < 10 else 2.3 + 0.01 * NOISE[t, 0] if 60 < t <= 60 + back else 0.5 + 0.01 * NOISE[t, 0]


SILENT = [
    pytest.param(run(usual, steps=200), id="noise"),
    pytest.param(run(lambda t: [1e-6 * n for n in NOISE[t]], steps=200), id="a loss divided by a constant"),
    pytest.param(run(lambda t: [1.0, 1.0], steps=200), id="no noise at all"),
    pytest.param(run(lambda t: [1.02 if t == 150 else 1.0], steps=160), id="a tiny change in a run without noise"),
    pytest.param(run(lambda t: [0.99**t * n for n in NOISE[t]], steps=200), id="gradients shrink as it learns"),
    pytest.param(run(lambda t: [1.05**t * n for n in NOISE[t]], steps=200), id="they grow steadily: another illness"),
    pytest.param(run(spiky(20), steps=40), id="in the first steps"),
    pytest.param(run(spiky(31), steps=40), id="after 31 steps"),
    pytest.param(run(spiky(60), steps=82), id="22 steps ago, and without a mark"),
    pytest.param(run(spiky(90), steps=100, loss=lambda t: 2.3 * 0.95**t), id="a converged run flickers"),
    pytest.param(run(lambda t: [INF] * 3 if t == 90 else usual(t), steps=100, scaled_loss=True), id="AMP skips a step"),
    pytest.param(run(lambda t: [INF] * 3 if t == 90 else usual(t), steps=100), id="not finite: another illness"),
    pytest.param(run(lambda t: [MISSING] * 3, steps=100), id="nothing measured"),
    pytest.param(run(lambda t: [0.0] * 3, steps=100), id="nothing but zeros"),
    pytest.param(
        run(lambda t: [NOISE[t, 0], MISSING] if t % 6 else [MISSING, 500 * NOISE[t, 0]], steps=200),
        id="a network whose turn is every sixth step has larger gradients",
    ),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert MILD(evidence) == ()


def by_hand(norms, row, window=100):
    logs = np.log(norms)
    before = logs[max(row - window, 0) : row]
    mad = np.median(np.abs(before - np.median(before)))
    return (logs[row] - np.median(before)) / (1.4826 * max(mad, 0.05))


def test_a_spike_is_told_with_its_step_size_and_layers():
    evidence = run(lambda t: [200.0 if t == 155 else 1.0, NOISE[t, 1], 100.0 if t == 155 else 1.0], steps=160)
    (finding,) = MILD(evidence)
    assert (finding.severity, finding.since_step, finding.step) == ("info", 155, 159)
    assert finding.parameters == layers(0, 2)  # 0.8 and 0.2 of the squared norm
    assert finding.value == pytest.approx(by_hand(evidence.global_norm, 155))
    assert finding.limit == 8.0
    assert "the first 80%" in finding.saw


def test_one_layer_that_makes_nine_tenths_stands_alone():
    (finding,) = MILD(run(lambda t: [1.0, 300.0 if t == 50 else 1.0, 90.0 if t == 50 else 1.0], steps=60))
    assert finding.parameters == layers(1)  # 300² / (300² + 90² + 1) is 0.917


def test_it_names_the_batch_where_that_is_known():
    evidence = Evidence([Watched("fc", 1, True)])
    for step in range(60):
        evidence.add(step, [90.0 if step == 55 else 1.0], batch=step % 40)
    assert "at step 55 (batch 15 of its epoch)" in MILD(evidence)[0].saw
    assert "of its epoch" not in MILD(run(spiky(55)))[0].saw


@pytest.mark.parametrize(("times", "told"), [(1.8, False), (1.85, True)])
def test_its_limit_is_8_robust_deviations_above_a_floor(times, told):
    """Without noise the floor counts: 8 times 1.4826 times 0.05 is the logarithm of 1.81."""
    assert bool(MILD(run(lambda t: [times if t == 50 else 1.0]))) is told


def test_32_steps_before_it_are_enough():
    assert MILD(run(spiky(32), steps=40))


@pytest.mark.parametrize(("steps", "told"), [(80, True), (81, False)])
def test_it_is_news_for_20_steps(steps, told):
    assert bool(MILD(run(spiky(60), steps=steps))) is told


def test_one_nan_neither_blinds_nor_jams():
    def norms(t):
        return [INF] * 3 if t == 100 else spiky(110)(t)

    assert MILD(run(norms, steps=115))[0].since_step == 110
    assert MILD(run(norms, steps=105)) == ()


def test_several_spikes_in_a_row_are_one():
    (finding,) = MILD(run(spiky(60, 61, 63), steps=70))
    assert finding.since_step == 60


@pytest.mark.parametrize(
    ("back", "steps", "severity"),
    [(100, 90, "warning"), (100, 80, "info"), (5, 80, "info")],
    ids=["stays", "too early to tell", "came back"],
)
def test_a_loss_that_jumps_with_it_and_stays_makes_it_a_warning(back, steps, severity):
    (finding,) = MILD(run(spiky(60), steps=steps, loss=down_and_up(back)))
    assert (finding.severity, finding.since_step) == (severity, 60)


def test_a_loss_that_jumps_with_it_and_is_on_its_way_back_is_no_warning():
    """New data make gradients and loss jump; the network learns them."""
    evidence = run(spiky(60), steps=90, loss=lambda t: 2.3 if t < 10 else 0.3 if t < 60 else 0.3 + 5 * 0.96 ** (t - 60))
    assert MILD(evidence) == ()


@pytest.mark.parametrize(("share", "severity"), [(0.6, ["warning"]), (0.4, [])])
def test_units_that_die_of_it_make_it_a_warning(share, severity):
    evidence = run(spiky(60), steps=90)
    for step in range(9, 90, 10):
        evidence.add_reading(DeadUnits(step, 20, np.array([np.nan, 0.1 if step < 70 else share + 0.1, 0.0])))
    found = MILD(evidence)
    assert [f.severity for f in found] == severity
    assert all("60% of the units" in f.saw for f in found)


def more_and_more(t):
    return spiky(120, 150, 160, 170, 180, 190)(t)


@pytest.mark.parametrize(
    ("norms", "loss", "severity"),
    [
        (more_and_more, STUCK, "warning"),
        (more_and_more, lambda t: 2.3 * 0.995**t, "info"),
        (more_and_more, lambda t: None, "info"),
        (spiky(*range(50, 200, 15)), STUCK, "info"),
        (spiky(180, 190), STUCK, "info"),
    ],
    ids=["more often", "but the loss falls", "but the loss is not known", "as often as ever", "two"],
)
def test_spikes_that_become_frequent_are_a_warning(norms, loss, severity):
    assert [f.severity for f in MILD(run(norms, steps=200, loss=loss))] == [severity]


def test_the_loss_of_opponents_makes_no_warning():
    evidence = run(spiky(60), steps=80, loss=down_and_up(100))
    evidence.setup = Setup(optimizers=("Adam", "Adam"))
    assert [f.severity for f in MILD(evidence)] == ["info"]


@pytest.mark.parametrize(("times", "severity"), [(5.0, "info"), (50.0, "warning")])
def test_a_spike_of_ten_times_the_usual_is_a_warning_by_itself(times, severity):
    """One batch of absurd values went by as a note, while nobody could say yet what it had done."""
    (finding,) = RULE(run(spiky(60, times=times), steps=70))
    assert (finding.severity, finding.since_step) == (severity, 60)
    assert RULE(run(spiky(60, times=times), steps=82)) == ()


def test_a_spike_among_others_of_its_kind_is_no_warning_by_itself():
    def norms(t):
        return [(50.0 if t == 80 else 8.0 if t == 65 else 1.0) * n for n in NOISE[t]]

    (finding,) = RULE(run(norms, steps=85))
    assert (finding.severity, finding.since_step) == ("info", 80)
