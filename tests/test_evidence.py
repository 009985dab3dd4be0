"""What is remembered, against brute force."""

import math

import numpy as np
import pytest
import torch

from lightning_weightwatch.callbacks._state import packed, unpacked
from lightning_weightwatch.evidence import (
    FIRST,
    SNAPSHOTS,
    DeadUnits,
    Evidence,
    History,
    Listened,
    LossCurve,
    Replicas,
    Setup,
    Snapshot,
    Validation,
    Watched,
)

INF, NAN = math.inf, math.nan
LAYERS = [Watched("a", 4, True), Watched("b", 1, False), Watched("c", 9, True)]


def test_keeps_the_last_window_of_steps():
    evidence = Evidence(LAYERS, window=3)
    for step in (1, 4, 5, 9):
        evidence.add(step, [step, 0, 0], loss=float(step))
    assert (len(evidence), evidence.steps) == (3, [4, 5, 9])
    assert evidence.norms[:, 0].tolist() == evidence.losses.tolist() == [4.0, 5.0, 9.0]


def test_missing_is_nan_and_not_finite_is_inf_so_that_neither_passes_for_the_other():
    evidence = Evidence(LAYERS)
    evidence.add(0, [NAN, -INF, 3.0], measured=[True, True, False], loss=NAN)
    evidence.add(1, [1.0, 2.0, 3.0])
    assert evidence.norms[0].tolist() == [INF, INF, pytest.approx(NAN, nan_ok=True)]
    assert evidence.norms[1].tolist() == [1.0, 2.0, 3.0]
    assert (evidence.losses[0], math.isnan(evidence.losses[1])) == (INF, True)


def test_root_mean_square_is_the_norm_over_the_root_of_the_size():
    evidence = Evidence([*LAYERS, Watched("empty", 0, False)])
    evidence.add(0, [2.0, 2.0, 6.0, 0.0])
    assert evidence.rms.tolist() == [[1.0, 2.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("norms", "measured", "total"),
    [
        ([3.0, 4.0, 0.0], None, 5.0),
        ([3.0, 9.0, 4.0], [True, False, True], 5.0),
        ([3.0, NAN, 4.0], None, INF),
        ([1.0, 1.0, 1.0], [False, False, False], NAN),
    ],
)
def test_the_global_norm_is_over_what_was_measured(norms, measured, total):
    evidence = Evidence(LAYERS)
    evidence.add(0, norms, measured=measured)
    assert evidence.global_norm.tolist() == [pytest.approx(total, nan_ok=True)]


def test_nothing_added_is_empty_and_no_error():
    for evidence in (Evidence([]), Evidence(LAYERS)):
        assert evidence.norms.shape == evidence.rms.shape == (0, len(evidence.parameters))
        assert evidence.global_norm.shape == evidence.losses.shape == (0,)
        assert math.isnan(evidence.loss_ratio())


def test_a_network_without_parameters_has_no_norm():
    evidence = Evidence([])
    evidence.add(0, [])
    assert evidence.norms.shape == (1, 0)
    assert np.isnan(evidence.global_norm).all()


def test_the_depth_profile_is_made_of_matrices_in_order():
    assert Evidence(LAYERS).matrices == [0, 2]


@pytest.mark.parametrize(
    ("losses", "ratio"),
    [
        ([4.0] * 5 + [2.0] * 5, 0.5),
        ([4.0] * 5 + [2.0, 2.0, 2.0, 99.0, NAN], 0.5),
        ([4.0] * 5 + [None, 8.0, None, 8.0, 8.0, None], 2.0),
        ([4.0, 4.0, NAN, INF, 4.0], 1.0),
        ([4.0, 4.0, 4.0, 4.0], NAN),
        ([None] * 9, NAN),
        ([-1.0] * 9, NAN),
        ([0.0] * 9, NAN),
        ([4.0] * 5 + [INF] * 5, INF),
    ],
    ids=str,
)
def test_the_loss_ratio_is_median_now_over_median_at_the_start(losses, ratio):
    evidence = Evidence(LAYERS)
    for step, loss in enumerate(losses):
        evidence.add(step, [1, 1, 1], loss=loss)
    assert evidence.loss_ratio() == pytest.approx(ratio, nan_ok=True)


def test_what_is_asked_once_is_asked_again_after_the_next_step_also_if_it_adds_to_the_last():
    evidence, asked = Evidence(LAYERS), []
    for step in (0, 0, 1):
        evidence.add(step, [1.0, 1.0, 1.0])
        counts = [evidence.once(("how often", 5), lambda: asked.append(None) or len(asked)) for _ in range(3)]
        assert counts == [len(asked)] * 3
    assert len(asked) == 3


def test_the_start_of_the_run_is_remembered_after_it_left_the_window():
    evidence = Evidence(LAYERS, window=5)
    for step in range(100):
        evidence.add(step, [1, 1, 1], loss=100.0 - step)
    assert evidence.loss_ratio() == pytest.approx(3.0 / 98.0)


def history(values, columns=8, losses=None):
    kept = History(rows=values.shape[1], columns=columns)
    for step, row in enumerate(values):
        kept.add(step, row, loss=1.0 if losses is None else losses[step])
    return kept


def noise(steps, rows=5):
    return np.random.default_rng(steps).normal(size=(steps, rows))


LENGTHS = [1, 7, 8, 9, 16, 17, 63, 64, 65, 1000]


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("columns", [2, 8])
def test_a_history_stays_bounded_ascending_and_covers_every_step(steps, columns):
    kept = history(noise(steps), columns)
    assert kept.values.shape == (len(kept.steps), 5)
    assert len(kept.steps) == len(kept.losses) <= columns
    assert kept.steps[0] == 0
    strides = set(np.diff(kept.steps))
    assert len(strides) <= 1
    assert steps - kept.steps[-1] <= next(iter(strides), steps)


@pytest.mark.parametrize("bad", [INF, 1e3, -1e3, -INF], ids=str)
@pytest.mark.parametrize("when", [0, 1, 6, 37, 130, 298, 299])
def test_one_odd_cell_in_one_step_stays_visible_in_its_column_for_ever(bad, when):
    values = noise(300)
    values[when, 3] = bad
    kept = history(values)
    hits = np.argwhere(kept.values == bad).tolist()
    column = max(i for i, step in enumerate(kept.steps) if step <= when)
    assert hits == [[column, 3]]


@pytest.mark.parametrize("steps", LENGTHS)
def test_the_farthest_of_several_outliers_wins_its_column(steps):
    """Brute force: what a column keeps of a layer is the value farthest from zero, around which all layers lie."""
    values = np.tile([0.0, 0.0, 0.0, 0.0, 1.0], (steps, 1))
    values[:, 4] = np.random.default_rng(0).permutation(np.arange(1, steps + 1))
    kept = history(values)
    for begin, end, cell in zip(kept.steps, [*kept.steps[1:], steps], kept.values[:, 4], strict=True):
        assert cell == values[begin:end, 4].max()


def test_not_finite_beats_every_outlier_and_missing_loses_to_everything():
    values = np.zeros((16, 3))
    values[::2, 0], values[1::2, 0] = NAN, 5.0
    values[3, 1], values[4, 1] = INF, 1e9
    values[:, 2] = NAN
    kept = history(values, columns=4)
    assert (kept.values[:, 0] == 5.0).all()
    assert kept.values[0, 1] == INF
    assert np.isnan(kept.values[:, 2]).all()


def test_the_largest_loss_of_a_column_is_kept_and_an_unknown_one_hides_nothing():
    losses = np.random.default_rng(0).normal(size=100)
    losses[::7] = NAN
    kept = history(noise(100), losses=losses)
    ends = [*kept.steps[1:], 100]
    truth = [np.nanmax(losses[begin:end]) for begin, end in zip(kept.steps, ends, strict=True)]
    assert kept.losses.tolist() == truth


def test_nothing_added_is_an_empty_history():
    kept = History(rows=3)
    assert (kept.values.shape, kept.losses.shape) == ((0, 3), (0,))


def test_a_row_that_is_changed_afterwards_does_not_rewrite_history():
    row = np.zeros(3)
    kept = History(rows=3)
    kept.add(0, row, loss=1.0)
    row[:] = 7.0
    assert (kept.values == 0).all()


def test_what_was_seen_before_parameters_came_and_went_is_taken_over_by_name():
    earlier = Evidence([Watched("gone", 1, True), Watched("stays", 4, True)])
    earlier.add(0, [1.0, 2.0], loss=0.5)
    earlier.add(1, [3.0, INF], measured=[True, True], loss=None)
    later = Evidence([Watched("stays", 4, True), Watched("new", 1, True)])
    later.take_over(earlier)
    later.add(1, [9.0, 7.0], measured=[False, True], loss=0.25)
    assert later.steps == [0, 1]
    np.testing.assert_array_equal(later.norms, [[2.0, np.nan], [INF, 7.0]])
    assert later.losses.tolist() == [0.5, 0.25]
    assert later.first_losses == [0.5, 0.25]


# --- numbers of steps -------------------------------------------------------------------------------------------------


def test_learning_rates_batches_and_stale_gradients_are_kept_with_their_steps():
    evidence = Evidence(LAYERS, window=2)
    evidence.add(0, [1, 1, 1], learning_rate=9.0, stale=1.0, batch=9.0)
    evidence.add(1, [1, 1, 1], learning_rate=0.5, stale=0.0)
    evidence.add(2, [1, 1, 1], batch=3.0)
    np.testing.assert_array_equal(evidence.learning_rates, [0.5, NAN])
    np.testing.assert_array_equal(evidence.stale, [0.0, NAN])
    np.testing.assert_array_equal(evidence.batches, [NAN, 3.0])
    assert np.isnan(evidence.losses).all()
    assert np.isnan(evidence.clipped_norm).all()


def test_norms_after_clipping_are_taken_together():
    evidence = Evidence(LAYERS)
    evidence.add(0, [3.0, 4.0, 12.0], clipped=[0.3, NAN, 0.4])
    evidence.add(1, [3.0, 4.0, 12.0], clipped=[NAN, NAN, NAN])
    assert evidence.clipped_norm.tolist() == [0.5, pytest.approx(NAN, nan_ok=True)]


def test_what_is_added_to_the_last_step_leaves_the_rest_of_it():
    evidence = Evidence(LAYERS)
    evidence.add(4, [1.0, 2.0, 3.0], loss=2.0, learning_rate=0.5, stale=1.0, batch=7.0)
    evidence.add(4, [NAN, 9.0, NAN], measured=[False, True, False])
    assert evidence.norms.tolist() == [[1.0, 9.0, 3.0]]
    assert [row.tolist() for row in (evidence.losses, evidence.learning_rates, evidence.stale, evidence.batches)] == [
        [2.0],
        [0.5],
        [1.0],
        [7.0],
    ]


def test_the_loss_of_a_step_that_is_told_twice_counts_once_for_the_start_of_the_run():
    """A step read in two parts was two of the first losses, and two of the curve."""
    evidence = Evidence(LAYERS)
    for step in range(6):
        for loss in (9.0 - step, 8.0 - step):
            evidence.add(step, [1, 1, 1], loss=loss)
    assert evidence.losses.tolist() == [8.0, 7.0, 6.0, 5.0, 4.0, 3.0]
    assert evidence.first_losses == [9.0, 8.0, 7.0, 6.0, 5.0]
    assert (evidence.curve.steps, evidence.curve.losses.tolist()) == ([0], [7.0])


def test_the_rows_of_a_long_run_are_those_of_its_end_whatever_the_window():
    for window in (1, 7, 50):
        evidence, truth = Evidence(LAYERS, window=window), noise(123, 3) ** 2
        for step, row in enumerate(truth):
            evidence.add(2 * step, row, loss=float(step), learning_rate=step / 2)
        assert evidence.steps == list(range(0, 246, 2))[-window:]
        np.testing.assert_array_equal(evidence.norms, truth[-window:])
        np.testing.assert_array_equal(evidence.losses, np.arange(123.0)[-window:])
        np.testing.assert_array_equal(evidence.learning_rates, np.arange(123)[-window:] / 2)


# --- the curve of all losses ------------------------------------------------------------------------------------------


def points_of(losses, most, stride):
    """Return the points of a whole run: one after the other, merged in pairs whenever there are too many."""
    made, place = [], 0
    while place + stride <= len(losses):
        made.append(float(np.median(losses[place : place + stride])))
        place += stride
        if len(made) == most:
            made, stride = [(one + other) / 2 for one, other in zip(made[::2], made[1::2], strict=True)], 2 * stride
    return made, stride


@pytest.mark.parametrize("count", [0, 4, 5, 19, 20, 21, 39, 40, 41, 1000])
def test_the_curve_is_bounded_and_each_point_covers_as_many_steps_as_it_says(count):
    curve, losses = LossCurve(points=4, steps=5), np.random.default_rng(0).normal(size=count)
    for step, loss in enumerate(losses):
        curve.add(step, loss)
    made, stride = points_of(losses, 4, 5)
    assert (curve.losses.tolist(), curve.stride) == (pytest.approx(made), stride)
    assert curve.steps == [i * stride for i in range(len(curve))]
    assert len(curve) < 4
    assert count - len(curve) * stride < stride


def test_the_curve_leaves_out_what_is_not_finite_and_begins_a_point_with_its_first_loss():
    curve = LossCurve(points=10, steps=2)
    for step, loss in [(0, NAN), (3, 1.0), (4, INF), (5, -INF), (9, 3.0), (11, 7.0)]:
        curve.add(step, loss)
    assert (curve.steps, curve.losses.tolist(), len(curve)) == ([3], [2.0], 1)


def test_the_curve_of_a_run_with_gaps_tells_where_its_points_began():
    evidence = Evidence(LAYERS)
    for step in range(0, 100, 10):
        evidence.add(step, [1, 1, 1], loss=float(step))
    assert (evidence.curve.steps, evidence.curve.losses.tolist()) == ([0, 50], [20.0, 70.0])


def test_a_curve_that_goes_on_after_a_checkpoint_has_the_same_points():
    whole, first, second = LossCurve(points=6, steps=2), LossCurve(points=6, steps=2), LossCurve(points=6, steps=2)
    losses = np.random.default_rng(1).normal(size=96)
    for step, loss in enumerate(losses):
        whole.add(step, loss)
        (first if step < 64 else second).add(step, loss)
        if step == 63:
            second.load_state_dict(first.state_dict())
    assert (second.steps, second.stride, second.losses.tolist()) == (whole.steps, whole.stride, whole.losses.tolist())


# --- readings ---------------------------------------------------------------------------------------------------------


def snapshot(step, names=("a", "b"), **columns):
    return Snapshot(step, tuple(names), {name: np.array(column) for name, column in columns.items()})


def test_a_column_of_a_snapshot_is_what_was_measured_by_name():
    taken = snapshot(3, weight_norm=[1.0, NAN], update_norm=[INF, 0.0])
    assert taken.column("weight_norm") == {"a": 1.0}
    assert taken.column("update_norm") == {"a": INF, "b": 0.0}
    assert taken.column("twin_rows") == {}
    assert taken.of("b") == {"weight_norm": pytest.approx(NAN, nan_ok=True), "update_norm": 0.0}


def test_the_first_snapshot_is_kept_and_of_the_others_the_last():
    evidence = Evidence(LAYERS)
    for step in range(SNAPSHOTS + 5):
        evidence.add_snapshot(snapshot(step))
    assert evidence.first_snapshot.step == 0
    assert [one.step for one in evidence.snapshots] == list(range(5, SNAPSHOTS + 5))


def test_readings_are_kept_by_their_kind_and_no_more_than_the_last():
    evidence = Evidence(LAYERS)
    for step in range(60):
        evidence.add_reading(DeadUnits(step, 20, np.array([NAN, 0.5, NAN])))
        if step < 3:
            evidence.add_reading(Listened(step))
            evidence.add_reading(Validation(step, 0.5))
            evidence.add_reading(Replicas(step, np.zeros(3)))
    assert [one.step for one in evidence.dead] == list(range(10, 60))
    for kind in (evidence.listened, evidence.validations, evidence.replicas):
        assert [one.step for one in kind] == [0, 1, 2]


def test_several_optimizers_may_play_against_each_other():
    evidence = Evidence(LAYERS)
    assert not evidence.has_opponents
    evidence.setup = Setup(optimizers=("Adam", "Adam"))
    assert evidence.has_opponents


# --- what a checkpoint holds ------------------------------------------------------------------------------------------


def eventful(window=20, steps=33, layers=LAYERS):
    """Return evidence of everything, with numbers that are missing, not finite, and beyond single precision."""
    evidence, rng = Evidence(layers, window=window), np.random.default_rng(3)
    for step in range(steps):
        norms = rng.normal(size=len(layers)) ** 2
        if step % 5 == 0:
            norms[0], norms[-1] = INF, 1e60
        measured = rng.random(len(layers)) > 0.2
        loss = None if step % 7 == 1 else INF if step % 7 == 2 else 3.0 / (step + 1)
        optional = {} if step % 3 == 0 else {"learning_rate": 0.1, "stale": float(step % 2), "batch": float(step % 4)}
        evidence.add(step, norms, measured=measured, loss=loss, **optional)
        if step % 10 == 0:
            evidence.add_snapshot(snapshot(step, [p.name for p in layers], weight_norm=[1.0 + step, NAN, 2.0]))
            evidence.add_reading(Validation(step, 0.25 * step, "val/loss"))
    evidence.broken_losses = {1: 12}
    return evidence


def same(one, other):
    assert one.steps == other.steps
    assert one.first_losses == other.first_losses
    assert (one.curve.steps, one.curve.losses.tolist()) == (other.curve.steps, other.curve.losses.tolist())
    assert (one.validations, one.broken_losses) == (other.validations, other.broken_losses)
    for column in ("losses", "learning_rates", "stale", "batches", "clipped_norm"):
        np.testing.assert_array_equal(getattr(one, column), getattr(other, column))


def test_evidence_that_went_through_a_checkpoint_is_the_same(tmp_path):
    earlier, later = eventful(), Evidence(LAYERS, window=20)
    torch.save(packed(earlier.state_dict()), tmp_path / "state.pt")
    later.load_state_dict(unpacked(torch.load(tmp_path / "state.pt", weights_only=True)))
    same(later, earlier)
    finite = np.isfinite(earlier.norms)
    small = finite & (earlier.norms < 1e30)
    np.testing.assert_allclose(later.norms[small], earlier.norms[small], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(later.norms), np.isnan(earlier.norms))
    assert (
        later.first_snapshot.column("weight_norm") == earlier.first_snapshot.column("weight_norm") == {"a": 1, "c": 2}
    )
    assert later.first_snapshot.step == 0
    assert (later.snapshots, later.dead, later.listened, later.replicas) == ([], [], [], [])


def test_a_finite_norm_beyond_single_precision_does_not_come_back_as_broken():
    """It came back as Inf, and numpy warned of it in the middle of a checkpoint."""
    earlier, later = eventful(), Evidence(LAYERS, window=20)
    assert (earlier.norms == 1e60).any()
    later.load_state_dict(earlier.state_dict())
    np.testing.assert_array_equal(np.isinf(later.norms), np.isinf(earlier.norms))
    assert (later.norms[earlier.norms == 1e60] > 1e38).all()


def test_what_is_saved_does_not_change_with_the_run():
    evidence = eventful()
    state = evidence.state_dict()
    before = [state["norms"].copy(), *(column.copy() for column in state["numbers"].values())]
    steps = list(state["steps"])
    for step in range(33, 90):
        evidence.add(step, [0, 0, 0], loss=0.0, learning_rate=0.0, stale=0.0, batch=0.0, clipped=[0, 0, 0])
    for saved, held in zip(before, [state["norms"], *state["numbers"].values()], strict=True):
        np.testing.assert_array_equal(saved, held)
    assert state["steps"] == steps
    assert len(state["first_losses"]) == FIRST


@pytest.mark.parametrize("window", [5, 20, 64])
def test_a_run_that_goes_on_looks_back_as_far_as_its_own_window(window):
    earlier, later = eventful(), Evidence(LAYERS, window=window)
    later.load_state_dict(earlier.state_dict())
    assert later.steps == earlier.steps[-window:]
    np.testing.assert_array_equal(later.losses, earlier.losses[-window:])
    later.add(33, [1, 1, 1], loss=1.0)
    assert later.steps[-1] == 33
    assert len(later) == min(window, 21)


def test_a_run_that_goes_on_with_other_parameters_keeps_those_of_the_same_name():
    earlier = eventful()
    later = Evidence([Watched("new", 1, True), LAYERS[2], LAYERS[0]], window=20)
    later.load_state_dict(earlier.state_dict())
    assert np.isnan(later.norms[:, 0]).all()
    truth = np.clip(earlier.norms, None, 3e38)
    np.testing.assert_allclose(np.clip(later.norms[:, 1:], None, 3e38), truth[:, [2, 0]], rtol=1e-6)


def test_nothing_that_went_through_a_checkpoint_is_nothing():
    later = Evidence(LAYERS)
    later.load_state_dict(Evidence(LAYERS).state_dict())
    assert (len(later), later.first_snapshot, later.first_losses, len(later.curve)) == (0, None, [], 0)


def test_what_is_remembered_of_the_whole_run_is_taken_over_too():
    earlier, later = eventful(), Evidence(LAYERS, window=20)
    earlier.setup = Setup(optimizers=("Adam", "Adam"))
    earlier.add_reading(Listened(4))
    earlier.add_reading(DeadUnits(4, 20, np.zeros(3)))
    later.take_over(earlier)
    same(later, earlier)
    np.testing.assert_array_equal(later.norms, earlier.norms)
    assert (later.setup, later.listened) == (earlier.setup, earlier.listened)
    assert [one.step for one in later.snapshots] == [one.step for one in earlier.snapshots]
    assert later.dead == []  # one number for each of other parameters
    later.add_reading(Listened(5))
    later.broken_losses[0] = 3
    assert (len(earlier.listened), earlier.broken_losses) == (1, {1: 12})
