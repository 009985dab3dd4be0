"""How often a callback may work, decided from made-up seconds."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_weightwatch.callbacks import _governor
from lightning_weightwatch.callbacks._governor import GRACE, Governor, timed


class Clock:
    """Shows the time that it is set to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_governor, "time", SimpleNamespace(perf_counter=clock))
    return clock


# --- measuring --------------------------------------------------------------------------------------------------------


def test_time_within_is_work_and_all_time_passes(clock: Clock) -> None:
    governor = Governor(0.01)
    clock.passes(3)
    for seconds in (1, 2):
        with governor:
            clock.passes(seconds)
        clock.passes(10)
    assert governor.take() == (3.0, 26.0)


def test_what_was_taken_is_not_taken_again(clock: Clock) -> None:
    governor = Governor(0.01)
    with governor:
        clock.passes(1)
    governor.take()
    clock.passes(5)
    assert governor.take() == (0.0, 5.0)


def test_a_hook_within_a_hook_counts_once(clock: Clock) -> None:
    governor = Governor(0.01)
    with governor:
        clock.passes(1)
        with governor, governor:
            clock.passes(2)
        clock.passes(4)
    assert governor.take() == (7.0, 7.0)


def test_waiting_for_the_training_is_no_work(clock: Clock) -> None:
    governor = Governor(0.01)
    with governor:
        clock.passes(1)
        with governor.waiting():
            clock.passes(30)
        clock.passes(2)
    assert governor.take() == (3.0, 33.0)


def test_work_that_is_interrupted_counts(clock: Clock) -> None:
    governor = Governor(0.01)

    def work() -> None:
        with governor:
            clock.passes(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    with governor:
        clock.passes(1)
    assert governor.take() == (3.0, 3.0)


def test_work_under_way_is_taken_when_it_is_done(clock: Clock) -> None:
    governor = Governor(0.01)
    with governor:
        clock.passes(1)
        assert governor.take() == (0.0, 1.0)
        clock.passes(2)
    assert governor.take() == (3.0, 2.0)


@dataclass
class Works:
    """Stands in for a callback."""

    clock: Clock
    _fit: Any = field(default_factory=lambda: SimpleNamespace(governor=Governor(0.01)))

    @timed
    def hook(self, seconds: float, *, fails: bool = False) -> str:
        """Take time."""
        self.clock.passes(seconds)
        if fails:
            raise ZeroDivisionError
        return "done"


def test_a_timed_hook_counts_gives_back_what_it_returns_and_keeps_its_name(clock: Clock) -> None:
    works = Works(clock)
    assert works.hook(2) == "done"
    with pytest.raises(ZeroDivisionError):
        works.hook(3, fails=True)
    assert works._fit.governor.take() == (5.0, 5.0)
    assert (works.hook.__name__, works.hook.__doc__) == ("hook", "Take time.")


# --- deciding ---------------------------------------------------------------------------------------------------------


def stretches(seed: int) -> Iterator[tuple[float, float]]:
    """Yield seconds of work and seconds passed, cheap and expensive, long and short."""
    stream = random.Random(seed)
    for _ in range(200):
        whole = 10 ** stream.uniform(-2, 3)
        yield whole * 10 ** stream.uniform(-4, 0), whole


def told(governor: Governor, seed: int) -> list[tuple[bool, int, float, bool]]:
    return [(governor.learn(*s), governor.stride, governor.share, governor.is_paid) for s in stretches(seed)]


@pytest.mark.parametrize("seed", range(5))
def test_the_same_numbers_give_the_same_decisions_whatever_the_clock_says(seed: int, clock: Clock) -> None:
    one = told(Governor(0.01), seed)
    other = Governor(0.01)
    with other:
        clock.passes(1e6)
    assert told(other, seed) == one


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [0.001, 0.01, 0.2, 1.0])
def test_strides_are_powers_of_two_up_to_128_and_never_become_narrower(limit: float, seed: int) -> None:
    decisions = told(Governor(limit), seed)
    strides = [1, *(stride for _, stride, _, _ in decisions)]
    assert strides == sorted(strides)
    assert set(strides) <= {2**i for i in range(8)}
    assert [wider for wider, *_ in decisions] == [b > a for a, b in itertools.pairwise(strides)]


@pytest.mark.parametrize("seed", range(5))
def test_without_a_limit_it_measures_and_never_thins(seed: int) -> None:
    governor = Governor(None)
    decisions = told(governor, seed)
    assert {(wider, stride, paid) for wider, stride, _, paid in decisions} == {(False, 1, True)}
    own, whole = map(sum, zip(*stretches(seed), strict=True))
    assert governor.share == pytest.approx(own / whole)


@pytest.mark.parametrize(
    ("share", "stride"),
    [(0.0101, 2), (0.02, 2), (0.021, 4), (0.04, 4), (0.09, 16), (0.5, 64), (1.0, 128), (0.7, 128)],
)
def test_the_stride_is_the_least_that_brings_the_share_below_the_limit(share: float, stride: int) -> None:
    governor = Governor(0.01)
    assert governor.learn(share * 1e6, 1e6)
    assert governor.stride == stride
    assert share / stride <= 0.01


def test_the_widest_stride_is_kept_however_expensive() -> None:
    governor = Governor(1e-6)
    assert governor.learn(100.0, 100.0)
    assert [governor.learn(100.0, 100.0) for _ in range(3)] == [False] * 3
    assert governor.stride == 128


def test_seconds_within_the_grace_are_let_pass_however_short_the_run() -> None:
    governor = Governor(0.01)
    assert not governor.learn(GRACE, 0.0)
    assert not governor.learn(0.0, 1.0)
    assert governor.stride == 1
    assert governor.learn(0.5, 1.0)


def test_the_excess_adds_up_over_many_stretches() -> None:
    governor = Governor(0.01)
    decisions = [governor.learn(1.0, 50.0) for _ in range(11)]  # each half a second too much
    assert decisions == [False] * 10 + [True]
    assert governor.stride == 2


def test_cheap_stretches_pay_for_expensive_ones_but_not_in_advance() -> None:
    governor = Governor(0.01)
    governor.learn(0.0, 1e6)
    governor.learn(4.0, 4.0)
    assert not governor.is_paid
    governor.learn(0.0, 395.0)
    assert not governor.is_paid
    governor.learn(0.0, 2.0)
    assert governor.is_paid
    assert governor.stride == 1


def test_an_excess_within_a_share_that_is_small_on_the_whole_thins_nothing() -> None:
    governor = Governor(0.01)
    governor.learn(1.0, 1e6)
    assert not governor.learn(100.0, 100.0)


def test_after_a_change_the_share_is_that_of_the_new_stride() -> None:
    governor = Governor(0.01)
    assert math.isnan(governor.share)
    governor.learn(20.0, 1000.0)
    assert governor.stride == 2
    governor.learn(9.0, 1000.0)
    assert governor.share == pytest.approx(0.009)
    assert governor.is_paid


def test_the_grace_is_given_anew_after_a_change() -> None:
    governor = Governor(0.01)
    assert governor.learn(20.0, 1000.0)
    assert not governor.learn(4.0, 4.0)
    assert governor.learn(4.0, 4.0)


def test_nothing_worked_in_no_time_is_no_failure() -> None:
    governor = Governor(0.01)
    assert not governor.learn(0.0, 0.0)
    assert math.isnan(governor.share)
    assert governor.is_paid


def test_the_notice_says_what_was_measured_and_what_changes() -> None:
    governor = Governor(0.01)
    governor.learn(34.0, 1000.0)
    words = "took 3.4% of the time, more than max_overhead=1.0%. From step 120 on one step in 4 is measured."
    assert governor.notice(120) == words
