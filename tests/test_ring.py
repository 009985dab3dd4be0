"""The block of device memory that waits between two flushes, against a dictionary."""

import numpy as np
import pytest
import torch

from lightning_weightwatch.ring import Ring


def ring(rows=3, columns=4):
    return Ring(rows, columns, torch.device("cpu"), torch.float64)


def put(ring, columns, numbers):
    ring.put(torch.tensor(columns), np.array(columns), torch.tensor(numbers))


def test_hands_out_what_was_put_and_marks_the_rest_as_not_measured():
    held = ring()
    held.begin(7)
    put(held, [3, 0], [5.0, 2.0])
    held.begin(9)
    held.put(1, 1, torch.tensor(4.0))
    rows = held.drain()
    assert (rows.steps, rows.places) == ([7, 9], [1, 0])
    assert rows.numbers[rows.places].tolist() == [[2.0, 0.0, 0.0, 5.0], [0.0, 4.0, 0.0, 0.0]]
    assert rows.measured[rows.places].tolist() == [[True, False, False, True], [False, True, False, False]]
    assert not rows.numbers[2].any()
    assert not rows.measured[2].any()


def test_a_step_begun_twice_is_one_row():
    held = ring()
    for column in (0, 1):
        held.begin(5)
        put(held, [column], [1.0])
    assert held.drain().numbers[2].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_step_has_the_same_row_whatever_steps_were_left_out():
    """Rows were given out one after another: once a process had left out a step, losses of two steps were mixed."""
    places = []
    for steps in ([20, 21, 22, 23], [21, 22, 23], [23]):
        held = ring(rows=5)
        for step in steps:
            held.begin(step)
        rows = held.drain()
        places.append(dict(zip(rows.steps, rows.places, strict=True)))
    assert places[0] == {20: 0, 21: 1, 22: 2, 23: 3}
    assert all(place.items() <= places[0].items() for place in places)


def test_steps_that_would_share_a_row_have_rows_of_their_own():
    held = ring(rows=3)
    for step, number in ((0, 1.0), (4, 2.0), (3, 3.0)):
        held.begin(step)
        put(held, [0], [number])
    rows = held.drain()
    assert rows.steps == [0, 3, 4]
    assert rows.numbers[rows.places, 0].tolist() == [1.0, 3.0, 2.0]


def test_is_empty_after_a_drain_and_does_not_touch_what_it_handed_out():
    held = ring()
    held.begin(1)
    put(held, [0], [8.0])
    rows = held.drain()
    held.begin(1)
    put(held, [1], [9.0])
    again = held.drain()
    assert (rows.steps, rows.numbers[1].tolist(), rows.measured[1].tolist()) == (
        [1],
        [8, 0, 0, 0],
        [True, *[False] * 3],
    )
    assert (again.steps, again.numbers[1].tolist(), again.measured[1].tolist()[:2]) == (
        [1],
        [0, 9, 0, 0],
        [False, True],
    )


def test_refuses_a_step_it_has_no_row_for_and_loses_nothing():
    held = ring(rows=2)
    held.begin(1)
    assert held.has_room(2)
    held.begin(2)
    assert not held.has_room(3)
    held.begin(2)
    with pytest.raises(BufferError, match=r"Ring of 2 rows is full\. Drain it before step 3\."):
        held.begin(3)
    assert held.drain().steps == [1, 2]


def test_nothing_begun_is_nothing_measured_in_a_block_of_the_usual_shape():
    """Processes merge their blocks, so the shape must not depend on what one of them measured."""
    rows = ring().drain()
    assert (rows.steps, tuple(rows.numbers.shape), rows.measured.shape) == ([], (3, 4), (3, 4))


def test_of_numbers_put_twice_the_larger_is_kept_where_it_is_asked_for_and_nan_above_all():
    held, columns = ring(), np.arange(4)
    held.begin(0)
    held.mark(3)
    for numbers in ([1.0, 5.0, float("nan"), 2.0], [3.0, 4.0, 7.0, 1.0]):
        held.put(torch.from_numpy(columns), columns, torch.tensor(numbers), keep_largest=True)
    assert held.drain().numbers[0].nan_to_num(-1.0).tolist() == [3.0, 5.0, -1.0, 2.0]


def test_of_numbers_put_in_several_groups_each_is_held_against_its_own():
    held = ring()
    held.begin(0)
    for columns, numbers in (([0, 1], [2.0, 9.0]), ([1, 2], [4.0, 5.0])):
        held.put(torch.tensor(columns), np.array(columns), torch.tensor(numbers), keep_largest=True)
    assert held.drain().numbers[0].tolist() == [2.0, 9.0, 5.0, 0.0]


def test_non_finite_and_large_numbers_pass_unchanged():
    held = ring()
    held.begin(0)
    put(held, [0, 1, 2], [float("inf"), 1e300, 1e-300])
    assert held.drain().numbers[0].tolist()[:3] == [float("inf"), float(torch.tensor(1e300)), 0.0]
    held.begin(1)
    held.put(torch.tensor([0]), np.array([0]), torch.tensor([1e300], dtype=torch.float64))
    assert held.drain().numbers[1, 0] == 1e300
