"""What is read of the numbers that a flush sends, laid out by hand."""

import math

import numpy as np
import pytest
import torch

from lightning_weightwatch.evidence import DeadUnits, Replicas
from lightning_weightwatch.flight import Flight, read
from lightning_weightwatch.listening import Listener
from lightning_weightwatch.meters.targets import Targets
from lightning_weightwatch.parameters import Parameter
from lightning_weightwatch.parcel import Parcel
from lightning_weightwatch.ring import Rows
from lightning_weightwatch.snapshot import SnapshotMeter

NAN, INF = math.nan, math.inf
PARAMETERS = [
    Parameter("fc.weight", (4, 3), "fc", "Linear", "linear", 0),
    Parameter("fc.bias", (4,), "fc", "Linear", "bias", 1),
]
ROWS, BEGUN, PLACES = 4, [7, 8, 10], [3, 0, 2]  # row 1 was not begun


def sent(changes=None, *, host=None, clipping=False, **options):
    """Return what is read of a flight in which nothing was measured, but for the changes."""
    width = 2 * (2 if clipping else 1)
    step = np.zeros(ROWS)
    step[PLACES] = BEGUN
    found = {
        "numbers": np.zeros((ROWS, width)),
        "broken": np.zeros((ROWS, width)),
        "measured": np.zeros((ROWS, width)),
        "losses": np.zeros(ROWS),
        "has_loss": np.zeros(ROWS),
        "stale": np.zeros(ROWS),
        "has_stale": np.zeros(ROWS),
        "step": step,
        "dead": np.array([NAN, 0.0]),
    }
    found |= {key: np.asarray(value, dtype=np.float64) for key, value in (changes or {}).items()}
    parcel = Parcel({key: torch.from_numpy(part) for key, part in found.items()}, torch.float64)
    rows = Rows(BEGUN, PLACES, np.zeros((ROWS, width), dtype=bool), torch.zeros(0))
    host = {step: (0.1 * step, float(step % 4)) for step in BEGUN} if host is None else host
    return read(Flight(rows, parcel, {}, host, **options), PARAMETERS, clipping=clipping)


def by_row(*values):
    """Lay out one value for each step begun, in its row; rubbish where no step was begun."""
    out = np.full((ROWS, *np.shape(values[0])), 77.0)
    out[PLACES] = values
    return out


def equal(found, expected):
    np.testing.assert_array_equal(found, expected)


def test_norms_are_roots_and_not_finite_where_a_process_said_so():
    found = sent(
        {
            "numbers": by_row([4.0, 9.0], [0.0, 1.0], [16.0, NAN]),
            "broken": by_row([0, 0], [0, 0], [0, 1]),
            "measured": by_row([1, 1], [0, 1], [1, 2]),
        }
    )
    assert found.steps == BEGUN
    equal(found.norms, [[2, 3], [0, 1], [4, INF]])
    equal(found.measured, [[True, True], [False, True], [True, True]])
    equal(found.clipped, np.full((3, 2), NAN))


def test_norms_after_clipping_stand_in_a_block_of_their_own():
    found = sent(
        {
            "numbers": by_row([4, 9, 1, 4], [4, 9, 0, 0], [4, 9, 1, NAN]),
            "broken": by_row([0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]),
            "measured": by_row([1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]),
        },
        clipping=True,
    )
    equal(found.norms, [[2, 3]] * 3)
    equal(found.clipped, [[1, 2], [NAN, NAN], [1, INF]])


def test_a_loss_is_known_where_all_processes_know_one_of_the_same_step():
    found = sent(
        {
            "losses": by_row(0.5, NAN, 3.0),
            "has_loss": by_row(1.0, 1.0, 0.5),
        }
    )
    equal(found.losses, [0.5, INF, NAN])
    mixed = sent({"losses": by_row(0.5, 0.5, 0.5), "has_loss": by_row(1, 1, 1), "step": by_row(7.0, 8.5, 10.0)})
    equal(mixed.losses, [0.5, NAN, 0.5])


def test_a_third_of_three_processes_is_a_whole_in_spite_of_rounding():
    third = 1 / 3
    found = sent({"losses": by_row(1.0, 1.0, 1.0), "has_loss": by_row(*[third + third + third] * 3)})
    equal(found.losses, [1.0] * 3)


def test_stale_is_yes_no_or_unknown():
    found = sent({"stale": by_row(3.0, 0.0, 5.0), "has_stale": by_row(1, 2, 0)})
    equal(found.stale, [1, 0, NAN])


def test_learning_rates_and_batches_are_those_of_their_steps():
    found = sent(host={10: (0.3, 2.0), 7: (0.1, NAN), 8: (NAN, 1.0)})
    equal(found.learning_rates, [0.1, NAN, 0.3])
    equal(found.batches, [NAN, 1, 2])


def test_a_step_that_was_broken_off_has_no_learning_rate():
    """It raised when what was left was read, and that was lost with it."""
    found = sent(host={7: (0.1, 1.0)})
    equal(found.learning_rates, [0.1, NAN, NAN])


def test_units_are_told_as_shares_of_those_there_are():
    reading = sent({"dead": [NAN, 3.0]}).dead
    assert (type(reading), reading.step, reading.steps) == (DeadUnits, 10, 20)
    equal(reading.share, [NAN, 0.75])


def test_what_was_not_taken_is_not_there():
    found = sent()
    assert found.snapshot is found.listened is found.replicas is None
    assert (found.broken_losses, found.notes) == ({}, {})


def test_nothing_begun_is_nothing_read():
    rows = Rows([], [], np.zeros((2, 2), dtype=bool), torch.zeros(0))
    empty = {key: torch.zeros(2, 2) for key in ("numbers", "broken", "measured")}
    empty |= {key: torch.zeros(2) for key in ("losses", "has_loss", "stale", "has_stale", "step", "dead")}
    found = read(Flight(rows, Parcel(empty, torch.float64), {}, {}), PARAMETERS, clipping=False)
    assert (found.steps, found.dead) == ([], None)
    assert found.norms.shape == (0, 2)
    assert found.learning_rates.shape == found.losses.shape == found.stale.shape == (0,)


def test_a_snapshot_has_its_step():
    partials = SnapshotMeter(8, 2, torch.device("cpu"), torch.float64).partials
    found = sent({key: part.numpy() for key, part in partials.items()}, snapshot_step=8)
    assert (found.snapshot.step, found.snapshot.parameters) == (8, ("fc.weight", "fc.bias"))


def test_copies_are_compared_where_there_was_a_snapshot():
    copies = {"copy_norm": [1.0, 2.0], "copy_square": [1.0, 4.01], "copy_sum": [3.0, 3.0, 3.2]}
    copies |= {"copy_known": [1.0, 1.0], "copy_count": [2.0, 2.0, 2.0]}
    found = sent(copies | {key: part.numpy() for key, part in SNAPSHOT.items()}, snapshot_step=8).replicas
    assert (type(found), found.step, found.odd) == (Replicas, 8, (2,))
    assert found.spread.tolist() == [0.0, pytest.approx(0.05)]
    assert sent(copies).replicas is None


SNAPSHOT = SnapshotMeter(8, 2, torch.device("cpu"), torch.float64).partials


def test_broken_losses_and_notes_are_handed_on():
    found = sent({"broken_loss": [0.0, 9.0], "note/failed": 2.0, "note/own": 0.25})
    assert (found.broken_losses, found.notes) == ({1: 8}, {"failed": 2.0, "own": 0.25})


def test_what_was_heard_gets_its_numbers():
    layer, batch = torch.nn.Linear(3, 2), torch.tensor([[1.0, 2.0, 6.0]])
    listener = Listener(8, {id(layer.weight): "fc.weight"}, batch, Targets())
    with listener:
        torch.relu(layer(batch))
    listener.close()
    heard = sent({"heard": listener.numbers.numpy()}, listener=listener).listened
    assert (heard.step, [a.after for a in heard.activations]) == (8, ["fc.weight"])
    assert (heard.inputs[0].mean, heard.inputs[0].abs_max) == (3.0, 6.0)
