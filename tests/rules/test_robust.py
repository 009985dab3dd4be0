"""What rules share about jumps and losses, against NumPy by hand."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Evidence, Listened, LossCall, Setup, Snapshot, Watched
from lightning_weightwatch.rules import _robust
from tests.helpers.runs import MISSING, STUCK, falling, run

RNG = np.random.default_rng(0)
CALL = LossCall("cross_entropy", classes=10, chance=2.3, same=0.2)


def losses(values, **options):
    return run(lambda t: [1.0], steps=len(values), loss=lambda t: values[t], **options)


def heard(evidence, *calls, steps=range(0, 60, 10)):
    for step in steps:
        evidence.add_reading(Listened(step, losses=calls))
    return evidence


def by_hand(values, i, window, floor):
    before = values[max(i - window, 0) : i]
    middle = np.median(before)
    return (values[i] - middle) / (1.4826 * max(np.median(np.abs(before - middle)), floor))


@pytest.mark.parametrize("window", [7, 20, 100])
def test_jumps_are_those_above_the_window_before(window):
    values = RNG.normal(size=60)
    found = _robust.jumps(values, window=window, least=7, floor=0.05)
    assert np.isnan(found[:7]).all()
    assert found[7:] == pytest.approx([by_hand(values, i, window, 0.05) for i in range(7, 60)])


def test_values_that_do_not_count_are_as_if_they_were_not_there():
    values = RNG.normal(size=40)
    holes = np.insert(values, [5, 20, 39], [np.nan, np.inf, np.nan])
    found = _robust.jumps(holes, window=16, least=8, floor=0.05)
    assert np.isnan(found[~np.isfinite(holes)]).all()
    plain = _robust.jumps(values, window=16, least=8, floor=0.05)
    assert found[np.isfinite(holes)] == pytest.approx(plain, nan_ok=True)


def test_an_outlier_hides_no_other_and_a_level_that_stays_becomes_usual():
    values = np.zeros(100)
    values[[50, 52, 54]] = 5.0
    found = _robust.jumps(values, window=20, least=10, floor=0.05)
    assert (found > 8).nonzero()[0].tolist() == [50, 52, 54]
    values = np.where(np.arange(100) < 60, 0.0, 5.0)
    found = _robust.jumps(values, window=20, least=10, floor=0.05)
    assert (found > 8).nonzero()[0].tolist() == list(range(60, 70))


def test_a_run_without_noise_is_measured_by_the_floor():
    values = np.array([1.0] * 20 + [1.1])
    assert _robust.jumps(values, window=20, least=10, floor=0.05)[-1] == pytest.approx(0.1 / (1.4826 * 0.05))


@pytest.mark.parametrize("known", [0, 8])
def test_nothing_is_said_of_too_few(known):
    values = np.array([np.nan, *range(known)])
    assert np.isnan(_robust.jumps(values, window=20, least=8, floor=0.05)).all()


def test_logarithms_are_of_what_has_one():
    found = _robust.logs(np.array([np.e, 0.0, -1.0, np.inf, np.nan]))
    assert found == pytest.approx([1.0, np.nan, np.nan, np.nan, np.nan], nan_ok=True)


def test_no_flag_starts_nothing():
    assert _robust.starts(np.zeros(5, dtype=bool)) == []
    assert _robust.starts(np.array([False, True, True])) == [1]


def test_levels_are_medians_of_five_and_before_the_window_those_of_the_curve():
    evidence = Evidence([Watched("fc", 1, True)], window=20)
    values = RNG.normal(size=60) + 9
    for step, loss in enumerate(values):
        evidence.add(step, [1.0], loss=loss)
    steps, found = _robust.levels(evidence)
    assert steps.tolist() == [*range(0, 40, 5), *range(40, 56)]
    assert found == pytest.approx([np.median(values[s : s + 5]) for s in map(int, steps)])


def test_levels_of_less_than_five_losses_are_none():
    assert [len(part) for part in _robust.levels(losses([1.0] * 4))] == [0, 0]


def test_progress_is_the_fall_between_quarters_over_the_noise_of_the_last():
    values = np.linspace(3, 1, 80) + 0.1 * RNG.normal(size=80)
    last = values[-20:]
    noise = 1.4826 * np.median(np.abs(last - np.median(last)))
    expected = (np.median(values[:20]) - np.median(last)) / noise
    assert _robust.progress(losses(values)) == pytest.approx(expected)


def test_progress_of_a_long_run_is_that_of_its_curve():
    values = 5.0 * 0.99 ** np.arange(900)
    evidence = losses(values)
    curve = evidence.curve.losses
    quarter = len(curve) // 4
    last = curve[-quarter:]
    noise = 1.4826 * np.median(np.abs(last - np.median(last)))
    assert _robust.progress(evidence) == pytest.approx((np.median(curve[:quarter]) - np.median(last)) / noise)


def test_progress_without_noise():
    assert _robust.progress(losses([2.3] * 40)) == 0
    assert _robust.progress(losses([2.3] * 20 + [1.0] * 20)) == np.inf
    assert np.isnan(_robust.progress(losses([2.3] * 7)))


def test_which_losses_must_fall():
    assert _robust.must_fall(losses([2.3] * 20))
    assert _robust.must_fall(heard(losses([2.3] * 20), CALL))
    assert not _robust.must_fall(heard(losses([2.3] * 20)))  # a policy gradient calls no loss function
    assert not _robust.must_fall(losses([2.3] * 10 + [-0.1] + [2.3] * 9))
    opponents = losses([2.3] * 20)
    opponents.setup = Setup(optimizers=("Adam", "Adam"))
    assert not _robust.must_fall(opponents)


def test_a_loss_that_was_below_zero_before_the_window_is_remembered():
    assert not _robust.must_fall(losses([-1.0] * 10 + [1.0] * 300))


@pytest.mark.parametrize(
    ("before", "after", "start", "is_jump"),
    [
        (0.3, 1.4, 2.3, True),  # more than half of the 2.0 learnt
        (0.3, 1.2, 2.3, False),
        (2.3, 3.5, 2.3, True),  # nothing learnt: more than half of where it stood
        (2.3, 3.4, 2.3, False),
        (-100.0, -40.0, -10.0, True),
        (-100.0, -60.0, -10.0, False),
        (1.0, 1.6, float("nan"), True),
    ],
)
def test_a_jump_is_half_of_what_was_learnt_and_of_where_it_stood(before, after, start, is_jump):
    assert _robust.jumped(before, after, start) is is_jump


def test_what_takes_turns_is_kept_apart_unless_there_are_too_many():
    two = run(lambda t: [1.0, MISSING] if t % 3 else [MISSING, 1.0], steps=9)
    assert [rows.tolist() for rows in _robust.turns(two)] == [[0, 3, 6], [1, 2, 4, 5, 7, 8]]
    experts = run(lambda t: [1.0 if t % 6 == i else MISSING for i in range(6)], steps=12)
    assert [rows.tolist() for rows in _robust.turns(experts)] == [list(range(12))]


@pytest.mark.parametrize(("last", "growth"), [(10.0, 100.0), (0.1, 1.0)])
def test_targets_that_grow(last, growth):
    evidence = losses([1.0] * 60)
    for step, size in zip(range(0, 60, 10), [1.0] * 3 + [last] * 3, strict=True):
        evidence.add_reading(Listened(step, losses=(LossCall("mse_loss", target_mean=size, target_std=0.0),)))
    assert _robust.target_growth(evidence) == pytest.approx(growth)
    assert _robust.target_growth(losses([1.0])) == 1.0


def at_chance(level, *, steps=150, epoch=50, chance=2.3, classes=10, noise=0.02, function="cross_entropy", rate=0.1):
    rng = np.random.default_rng(1)
    evidence = Evidence([Watched("fc", 1, True)])
    for step in range(steps):
        loss = (level(step) if callable(level) else level) + noise * rng.normal()
        evidence.add(step, [1.0], loss=loss, learning_rate=rate(step) if callable(rate) else rate, batch=step % epoch)
    return heard(evidence, LossCall(function, classes=classes, chance=chance))


LN10 = float(np.log(10))


@pytest.mark.parametrize(
    ("evidence", "found"),
    [
        pytest.param(at_chance(LN10), LN10, id="ten classes"),
        pytest.param(at_chance(0.5, chance=0.5, classes=2, noise=0.005), 0.5, id="two classes of which one is rare"),
        pytest.param(at_chance(4.0, chance=4.0, classes=0, function="mse_loss", noise=0.3), 4.0, id="a regression"),
        pytest.param(at_chance(LN10, steps=90), None, id="too short"),
        pytest.param(at_chance(LN10, epoch=1000), None, id="no sample was seen twice"),
        pytest.param(at_chance(LN10, steps=1000, epoch=2000), LN10, id="a thousand steps in a large set"),
        pytest.param(at_chance(0.97 * LN10), None, id="clearly below"),
        pytest.param(at_chance(1.05 * LN10), None, id="above: another illness"),
        pytest.param(at_chance(LN10, noise=0.5), None, id="too noisy to tell"),
        pytest.param(at_chance(lambda t: LN10 if t > 60 else 1.0), None, id="it was better before"),
        pytest.param(at_chance(LN10, rate=lambda t: 1e-3 * (t + 1)), None, id="a warm-up is going on"),
        pytest.param(at_chance(lambda t: LN10 + 3 * 0.9**t, steps=110), None, id="has come down lately"),
        pytest.param(at_chance(float(np.log(2)), chance=float("nan"), classes=2), None, id="chance is not known"),
    ],
)
def test_a_loss_at_the_level_of_chance(evidence, found):
    told = _robust.at_chance(evidence, 100)
    assert told == (None if found is None else pytest.approx(found, rel=0.01))


def test_chance_is_not_known_where_a_pass_calls_several_losses_or_different_ones():
    assert _robust.only_calls(heard(losses([1.0]), CALL, CALL)) == []
    mixed = heard(heard(losses([1.0]), CALL), LossCall("mse_loss", chance=1.0))
    assert _robust.only_calls(mixed) == []
    assert len(_robust.only_calls(heard(losses([1.0]), CALL))) == 6


def test_the_entropy_of_all_targets_is_found_from_that_of_few():
    """Of 2.3 nats, so many samples lack a part in their number: 0.3, 0.15, 0.1..."""
    calls = [LossCall("cross_entropy", classes=20, chance=2.3 - 0.3 / k) for k in range(1, 8)]
    evidence = at_chance(2.3, classes=20)
    evidence.listened.clear()
    for step, call in enumerate(calls):
        evidence.add_reading(Listened(10 * step, losses=(call,)))
    assert _robust.at_chance(evidence, 100) == pytest.approx(2.3)


def with_ratios(*rows, matrices=(True, True)):
    evidence = Evidence([Watched(f"fc{i}", 1, m) for i, m in enumerate(matrices)])
    for step, row in enumerate(rows):
        evidence.add_snapshot(Snapshot(step, ("fc0", "fc1"), {"update_ratio": np.array(row)}))
    return evidence


def test_updates_are_medians_of_the_last_statistics_but_the_first_of_all():
    evidence = with_ratios([9.0, 9.0], [0.1, 0.2], [0.3, 0.2], [0.5, 0.2])
    assert _robust.matrix_updates(evidence).tolist() == [0.3, 0.2]
    assert _robust.matrix_updates(with_ratios([9.0, 9.0])).size == 0
    assert _robust.matrix_updates(with_ratios([0.0, 0.0], [0.1, np.nan])).tolist() == [0.1]


def test_without_a_matrix_every_parameter_counts():
    assert _robust.matrix_updates(with_ratios([0.0, 0.0], [0.1, 0.2], matrices=(True, False))).tolist() == [0.1]
    assert _robust.matrix_updates(with_ratios([0.0, 0.0], [0.1, 0.2], matrices=(False, False))).tolist() == [0.1, 0.2]


def test_who_knows_something_of_the_input():
    known = heard(losses([1.0] * 50), CALL)
    assert _robust.knows(known, 2.0)  # 0.87 of chance
    assert not _robust.knows(known, 2.1)
    assert _robust.knows(run(lambda t: [1.0], loss=falling), 0.4)
    assert not _robust.knows(run(lambda t: [1.0], loss=STUCK), 2.3)
