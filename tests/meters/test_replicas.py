"""What processes differ in, from what each of several pretended ones lays out."""

import math

import numpy as np
import pytest
import torch

from lightning_weightwatch import reduce
from lightning_weightwatch.meters import ReplicaMeter
from lightning_weightwatch.meters.replicas import broken_losses, spread

NAN, INF = math.nan, math.inf


def merged(monkeypatch, lay_out, each):
    """Return what the processes lay out, added up as a SUM does it."""
    total = {}
    for rank, mine in enumerate(each):
        monkeypatch.setattr(reduce, "world_size", lambda: len(each))
        monkeypatch.setattr(reduce, "rank", lambda rank=rank: rank)
        for key, part in lay_out(ReplicaMeter(), mine).items():
            total[key] = total.get(key, 0) + part.double().numpy()
    return total


@pytest.mark.parametrize(
    ("losses", "broken"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], {}),
        ([[1.0, 2.0], [3.0, NAN]], {1: 8}),
        ([[INF, NAN], [1.0, -INF]], {0: 7, 1: 8}),
        ([[1.0, 1.0], [1.0, 1.0], [NAN, 1.0]], {2: 7}),
        ([[NAN, 1.0]], {0: 7}),
    ],
    ids=str,
)
def test_the_first_step_of_each_process_whose_loss_broke_is_known_to_all(monkeypatch, losses, broken):
    steps = torch.tensor([7.0, 8.0])
    found = merged(monkeypatch, lambda meter, mine: meter.losses(torch.tensor(mine), steps), losses)
    assert broken_losses(found["broken_loss"]) == broken


def test_a_loss_that_breaks_at_step_0_is_not_taken_for_none(monkeypatch):
    found = merged(monkeypatch, lambda m, mine: m.losses(torch.tensor([mine]), torch.zeros(1)), [1.0, NAN])
    assert broken_losses(found["broken_loss"]) == {1: 0}


def copies(monkeypatch, *norms):
    """Compare copies; what is ``None`` was not measured by that process."""

    def weights(meter, mine):
        known = torch.tensor([float(norm is not None) for norm in mine], dtype=torch.float64)
        return meter.weights(torch.tensor([(norm or 0.0) ** 2 for norm in mine], dtype=torch.float64), known)

    return spread(merged(monkeypatch, weights, norms))


def test_what_a_process_has_not_measured_has_not_drifted(monkeypatch):
    relative, odd = copies(monkeypatch, [1.0, 2.0], [None, 2.0], [1.0, 2.0])
    assert np.isnan(relative).tolist() == [True, False]
    assert (relative[1], odd) == (0.0, ())


@pytest.mark.parametrize("copy", [[3.0, 0.0, 1e-20, 1e15], [0.1, 0.7, 1 / 3, 7.7]], ids=str)
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_copies_that_are_the_same_have_no_spread_however_large_they_are(monkeypatch, processes, copy):
    relative, odd = copies(monkeypatch, *[copy] * processes)
    assert (relative.tolist(), odd) == ([0.0] * 4, ())


def test_the_spread_is_the_deviation_over_the_mean(monkeypatch):
    norms = np.array([[3.0, 1.0, 5.0], [3.0, 1.1, 5.0], [3.0, 1.3, 5.0]])
    relative, _ = copies(monkeypatch, *norms.tolist())
    assert relative.tolist() == pytest.approx((norms.std(axis=0) / norms.mean(axis=0)).tolist())


@pytest.mark.parametrize("drift", [1e-5, 1e-6])
def test_a_small_drift_is_seen(monkeypatch, drift):
    relative, _ = copies(monkeypatch, [1.0, 2.0], [1.0 + drift, 2.0])
    assert relative.tolist() == [pytest.approx(drift / 2, rel=0.01), 0.0]


@pytest.mark.parametrize(
    ("norms", "odd"),
    [
        ([[1.0], [1.0], [1.2]], (2,)),
        ([[1.3], [1.0], [1.0], [1.2], [1.0]], (0, 3)),
        ([[1.0], [1.2]], ()),
        ([[1.0], [1.0], [1.2], [1.2]], ()),
        ([[1.0], [1.1], [1.2], [1.3]], ()),
        ([[1.0], [NAN], [1.0]], (1,)),
        ([[INF], [1.0], [1.0]], (0,)),
        ([[NAN], [NAN], [1.0]], ()),
    ],
    ids=str,
)
def test_the_odd_ones_are_told_where_there_is_a_majority(monkeypatch, norms, odd):
    assert copies(monkeypatch, *norms)[1] == odd


def test_a_copy_that_broke_differs_without_bound_and_in_that_parameter_only(monkeypatch):
    relative, odd = copies(monkeypatch, [1.0, 2.0], [1.0, 2.0], [NAN, 2.0])
    assert (relative.tolist(), odd) == ([INF, 0.0], (2,))


def test_copies_that_all_broke_do_not_differ(monkeypatch):
    relative, odd = copies(monkeypatch, [NAN, 2.0], [NAN, 2.0])
    assert (relative.tolist(), odd) == ([0.0, 0.0], ())
