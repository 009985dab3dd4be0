"""How a signal changes with depth, against brute force."""

from itertools import pairwise

import numpy as np
import pytest

from lightning_weightwatch.evidence import Layer, Signal
from lightning_weightwatch.rules._propagation import backwards, forwards, own_decades, responsible
from tests.helpers.first_batch import NAN, passed


def slope(logs):
    return np.polyfit(np.linspace(0.0, 1.0, len(logs)), logs, 1)[0]


@pytest.mark.parametrize("length", [4, 5, 12, 40])
@pytest.mark.parametrize("way", [1.0, -1.0])
def test_the_largest_step_is_counted_as_the_median_of_the_others(length, way):
    draw = np.random.default_rng(length)
    logs = np.r_[0.0, np.cumsum(way * (0.3 + 0.1 * draw.normal(size=length - 1)))]
    place = length // 2
    odd = logs + np.where(np.arange(length) >= place, 5.0 * way, 0.0)
    others = [b - a for i, (a, b) in enumerate(pairwise(logs)) if i != place - 1]
    mended = logs + np.where(np.arange(length) >= place, np.median(others) - (logs[place] - logs[place - 1]), 0.0)
    course = forwards(passed(list(10.0**odd)).signal)
    assert course.decades == pytest.approx(slope(mended))
    assert abs(slope(odd)) > abs(course.decades)


def test_a_course_never_claims_more_than_the_line():
    draw = np.random.default_rng(0)
    for _ in range(200):
        signal = passed(list(10.0 ** draw.normal(size=8))).signal
        course = forwards(signal)
        assert 0 <= course.decades / signal.forward_decades <= 1 + 1e-9


def test_the_way_back_begins_at_the_last_layer():
    course = backwards(passed([1.0] * 5, [1e-4, 1e-3, 1e-2, 1e-1, 1.0]).signal)
    assert (course.decades, course.way) == (pytest.approx(-4.0), "backwards")
    assert [layer.name for layer in course.layers] == [f"{i}.weight" for i in (4, 3, 2, 1, 0)]
    assert course.sizes.tolist() == [1.0, 1e-1, 1e-2, 1e-3, 1e-4]


def test_what_was_not_measured_has_no_course():
    signal = passed([NAN] * 5, [NAN, 0.0, 1.0, 1.0, 1.0]).signal
    assert forwards(signal) is backwards(signal) is None
    assert forwards(Signal()) is None


@pytest.mark.parametrize(
    ("layer", "decades"),
    [
        (Layer("a", spread=0.5, came_in=5.0), -1.0),
        (Layer("a", spread=2**0.5 * 5, came_in=5.0, activation="relu"), 0.0),
        (Layer("a", spread=40.0, came_in=1.0, activation="sigmoid"), 1.0),
        (Layer("a", spread=10.0, came_in=1.0, activation="sigmoid", feeds_loss=True), 1.0),
        (Layer("a", spread=0.0, came_in=1.0), NAN),
        (Layer("a", spread=1.0, came_in=0.0), NAN),
        (Layer("a", spread=1.0, came_in=float("inf")), NAN),
        (Layer("a", spread=1.0), NAN),
    ],
)
def test_what_a_layer_does_itself_is_more_than_what_follows_makes_up_for(layer, decades):
    assert own_decades(Signal((layer,)), layer) == pytest.approx(decades, nan_ok=True, abs=1e-12)


def test_layers_that_do_little_or_the_opposite_are_not_responsible():
    own = [1.0, 0.1, 0.1, 0.9, 0.1, 1.5, 0.1, 0.1]
    signal = passed(list(np.cumprod(own))).signal
    assert [layer.name for layer in responsible(signal, forwards(signal))] == [f"{i}.weight" for i in (1, 2, 4, 6, 7)]


def test_one_that_does_far_more_does_not_hide_the_others():
    own = [0.3] * 8 + [1e-6]
    signal = passed(list(np.cumprod(own))).signal
    assert len(responsible(signal, forwards(signal))) == 9


@pytest.mark.parametrize(("each", "count"), [(0.0, 0), (0.49, 0), (0.51, 5)])
def test_nobody_is_responsible_for_what_layers_do_not_account_for_by_half(each, count):
    """Of four powers of ten that are lost between five layers, each loses so much of a fifth itself."""
    sizes = 10.0 ** -np.arange(5.0)
    signal = passed(list(sizes), came_in=list(sizes * 10 ** (each * 4 / 5))).signal
    assert len(responsible(signal, forwards(signal))) == count
