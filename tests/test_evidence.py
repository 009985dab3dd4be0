"""What is remembered, against brute force."""

import math

import numpy as np
import pytest

from lightning_weightwatch.evidence import Evidence, History, Watched

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
