"""Each label of the ward is true by plain measurements, in which nothing of the package takes part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import median

import pytest
import torch
from torch import Tensor

from lightning_weightwatch.rules import all_rules
from tests.helpers.strategies import FORKING_IS_FINE
from tests.ward import runner
from tests.ward.case import Case
from tests.ward.cases import healthy_cases, sick_cases
from tests.ward.chart import Chart

pytestmark = [*FORKING_IS_FINE, pytest.mark.long]

SIGNS: dict[str, Callable[[Case, Chart], None]] = {}


def sign_of(rule: str) -> Callable[[Callable[[Case, Chart], None]], Callable[[Case, Chart], None]]:
    def register(sign: Callable[[Case, Chart], None]) -> Callable[[Case, Chart], None]:
        SIGNS[rule] = sign
        return sign

    return register


def fall(losses: Sequence[float]) -> float:
    """Return the last losses as a share of the first ones."""
    return median(losses[-20:]) / (sum(losses[:5]) / 5)


def first_broken(numbers: Sequence[float]) -> int:
    """Return the place of the first number that is not finite; the length if all are."""
    return next((i for i, number in enumerate(numbers) if not math.isfinite(number)), len(numbers))


def first_broken_weights(chart: Chart) -> int:
    """Return the batch after which weights were not finite; -1 if they were not from the start."""
    if not all(bool(tensor.isfinite().all()) for tensor in chart.before.values()):
        return -1
    return min(first_broken(norms) for norms in chart.weights.values())


def broken_gradients(chart: Chart) -> list[bool]:
    """Return for each step whether a gradient that is there is not finite."""
    there = [norms for name, norms in chart.gradients.items() if name in chart.last_gradients]
    return [not all(map(math.isfinite, norms)) for norms in zip(*there, strict=True)]


def changed(chart: Chart, name: str) -> Tensor:
    return chart.before[name] != chart.after[name]


def cured(case: Case, seed: int) -> Chart:
    """Train the same with a learning rate that is right."""

    def make() -> torch.nn.Module:
        model = case.make()
        model.cure_rate()
        return model

    return runner.plain(dataclasses.replace(case, make=make), seed)


@sign_of("vanishing_gradients")
def fades(case: Case, chart: Chart) -> None:
    """The layers' gradients are a thousandth of the largest, all the while, and nothing is learned."""
    typical = {name: float(chart.rms(name).median()) for name in chart.before}
    for name in chart.named(case.layers):
        assert typical[name] < 1e-3 * max(typical.values()), name
    assert fall(chart.losses) > 0.9


@sign_of("exploding_gradients")
def explodes(case: Case, chart: Chart) -> None:
    """Within ten steps a gradient is in the thousands, and from then on the loss is worse than ever."""
    norms = chart.global_norms()[case.onset : case.onset + 10]
    assert norms[norms.isfinite()].max() > 1e3
    assert not chart.losses[-1] < 1.5 * min(chart.losses[: case.onset + 1])


@sign_of("non_finite_gradients")
def breaks_backwards(case: Case, chart: Chart) -> None:
    """Loss and weights are finite in the step whose gradients are not."""
    assert broken_gradients(chart).index(True) == case.onset
    assert first_broken(chart.losses) > case.onset
    assert first_broken_weights(chart) >= case.onset
    for name in chart.named(case.layers):
        assert not math.isfinite(chart.gradients[name][case.onset]), name


@sign_of("non_finite_loss")
def breaks_forwards(case: Case, chart: Chart) -> None:
    """The loss is the first thing that is not finite."""
    assert first_broken(chart.losses) == case.onset
    assert first_broken_weights(chart) >= case.onset
    assert not any(broken_gradients(chart)[: case.onset])


@sign_of("non_finite_weights")
def breaks_at_rest(case: Case, chart: Chart) -> None:
    """Weights are not finite before any loss or gradient is."""
    broken = first_broken_weights(chart)
    assert broken == case.onset or (broken == -1 and case.onset == 0)
    assert first_broken(chart.losses) > broken
    assert not any(broken_gradients(chart)[: broken + 1])


@sign_of("gradient_spike")
def gradient_leaps(case: Case, chart: Chart) -> None:
    """One step's gradient is twenty times any of the fifty before."""
    norms = chart.global_norms()
    assert norms[case.onset] > 20 * norms[case.onset - 50 : case.onset].max()


@sign_of("loss_spike")
def loss_leaps(case: Case, chart: Chart) -> None:
    """One step's loss is twice any of the fifty before."""
    assert chart.losses[case.onset] > 2 * max(chart.losses[case.onset - 50 : case.onset])


@sign_of("diverging_loss")
def climbs(case: Case, chart: Chart) -> None:
    """The loss ends at more than twice its best, and climbs slowly enough to be seen doing it."""
    finite = [loss for loss in chart.losses if math.isfinite(loss)]
    assert len(finite) > 30
    assert median(finite[-10:]) > max(2 * min(finite), 1.5 * finite[0])


@sign_of("oscillating_loss")
def swings(case: Case, chart: Chart) -> None:
    """In the second half the loss goes up and down threefold and does not get better by it."""
    half = torch.tensor(chart.losses[len(chart.losses) // 2 :])
    assert half.quantile(0.9) > 3 * half.quantile(0.1)
    a, b = half.chunk(2)
    assert b.mean() > 0.6 * a.mean()


@sign_of("no_learning")
def stays(case: Case, chart: Chart) -> None:
    """The loss ends where it began."""
    assert 0.9 < fall(chart.losses) < 1.1


@sign_of("dead_units")
def never_fires(case: Case, chart: Chart) -> None:
    """More than half of the units of a layer give 0 for every sample of a batch."""
    assert max((last == 0).all(0).float().mean() for kind, _, last in chart.outputs.values() if "ReLU" in kind) > 0.5


@sign_of("saturated_units")
def at_the_ends(case: Case, chart: Chart) -> None:
    """Most outputs of a layer lie at the flat ends, from the start."""
    ends = {"Tanh": lambda x: x.abs() > 0.97, "Sigmoid": lambda x: (x - 0.5).abs() > 0.47}
    assert max(ends[kind](first).float().mean() for kind, first, _ in chart.outputs.values() if kind in ends) > 0.6


@sign_of("symmetric_units")
def alike(case: Case, chart: Chart) -> None:
    """Most rows of the layers' weights are copies of one another, and stay so."""
    for name in chart.named(case.layers):
        for weights in (chart.before[name], chart.after[name]):
            rows = weights.flatten(1)
            scale = rows.abs().max().clamp(min=1e-30)
            assert len((rows / scale).mul(1e4).round().unique(dim=0)) <= len(rows) / 2, name


@sign_of("zero_blocked_signal")
def blocked(case: Case, chart: Chart) -> None:
    """Weights are all zero, and the gradients of the layers are exactly 0 in every step."""
    assert any(not chart.before[name].any() for name in chart.matrices())
    for name in chart.named(case.layers):
        assert not any(chart.gradients[name]), name


@sign_of("untrained_parameters")
def left_out(case: Case, chart: Chart) -> None:
    """No optimizer holds the layers, or no gradient ever came to them, and they are what they were."""
    names = chart.named(case.layers)
    assert names
    for name in names:
        assert name in chart.outside or all(map(math.isnan, chart.gradients[name])), name
        assert not changed(chart, name).any(), name


@sign_of("stale_gradients")
def piles_up(case: Case, chart: Chart) -> None:
    """Gradients are there before the first backward pass of nearly every step but the first."""
    after_the_first = chart.stale[case.onset :]
    assert sum(after_the_first) > 0.9 * len(after_the_first)


@sign_of("learning_rate_too_high")
def too_fast(case: Case, chart: Chart) -> None:
    """It ends worse than with a learning rate that is right, a tenth or less."""
    right = cured(case, 0)
    assert fall(right.losses) < 0.8
    assert max(chart.rates) >= 10 * max(right.rates)
    assert not median(chart.losses[-20:]) < 1.15 * median(right.losses[-20:])


@sign_of("learning_rate_too_low")
def too_slow(case: Case, chart: Chart) -> None:
    """Weights hardly move although their gradients are fine; with a larger learning rate it trains."""
    right = cured(case, 0)
    assert fall(right.losses) < 0.8
    assert max(chart.rates) <= 0.01 * max(right.rates)
    assert fall(chart.losses) > 0.95
    for name in chart.matrices():
        moved = (chart.after[name] - chart.before[name]).norm() / chart.before[name].norm()
        assert moved < 1e-3, name


@sign_of("lost_updates")
def rounded_away(case: Case, chart: Chart) -> None:
    """Most elements of half precision weights are what they were, although they had gradients."""
    for name in chart.named(case.layers):
        assert chart.before[name].element_size() == 2, name
        assert changed(chart, name).float().mean() < 0.5, name
        assert (chart.last_gradients[name] != 0).float().mean() > 0.5, name


@sign_of("overflow_skips")
def skips(case: Case, chart: Chart) -> None:
    """From the onset on nearly every gradient is not finite, and the weights stand still."""
    broken = broken_gradients(chart)[case.onset :]
    assert sum(broken) > 0.9 * len(broken)
    assert all(len(set(norms[case.onset :])) == 1 for norms in chart.weights.values())
    assert all(map(math.isfinite, chart.losses))


@sign_of("weight_collapse")
def wastes_away(case: Case, chart: Chart) -> None:
    """Most weight matrices end at less than a tenth of their norm."""
    names = chart.matrices()
    small = [name for name in names if chart.after[name].norm() < 0.1 * chart.before[name].norm()]
    assert len(small) > len(names) / 2


@sign_of("layer_scale_outlier")
def stands_out(case: Case, chart: Chart) -> None:
    """A layer's weights are more than ten times as large, or as small, as those of its peers, of the same shape."""
    for name in chart.named(case.layers):
        shape = chart.before[name].shape
        peers = [t for other, t in chart.before.items() if t.shape == shape and other != name]
        typical = median(float(tensor.norm()) for tensor in peers)
        assert abs(math.log10(float(chart.before[name].norm()) / typical)) > 1, name


@sign_of("loss_output_mismatch")
def cannot_fit(case: Case, chart: Chart) -> None:
    """The loss has a floor that a right output would not have, or falls below one that a right output does have."""
    late = median(chart.losses[-20:])
    assert late > 0.98 * chart.floor > 0 or late < 0 == chart.floor


def entropy(labels: Tensor) -> float:
    """Return the loss of the best answer that does not look at the inputs."""
    shares = torch.bincount(labels) / len(labels)
    return -float((shares * shares.clamp(min=1e-9).log()).sum())


@sign_of("input_scale")
def far_from_one(case: Case, chart: Chart) -> None:
    """Inputs are more than ten times as large as usual, and the loss gets hardly below chance."""
    x, y = chart.batch
    assert x.abs().max() > 10
    assert median(chart.losses[-20:]) > 0.8 * entropy(y)


@sign_of("label_signal")
def says_nothing(case: Case, chart: Chart) -> None:
    """Either a batch has one label only, or the loss does not get below chance."""
    chance = entropy(chart.batch[1])
    assert chance < 0.01 or median(chart.losses[-20:]) > 0.9 * chance


@sign_of("overfitting")
def learns_by_heart(case: Case, chart: Chart) -> None:
    """The training loss falls to less than half, and the validation loss climbs by a fifth above its best."""
    assert fall(chart.losses) < 0.5
    assert sum(chart.validations[-3:]) / 3 > 1.2 * min(chart.validations)
    assert chart.validations.index(min(chart.validations)) < 0.6 * len(chart.validations)


@sign_of("dropout_range")
def drops_nearly_all(case: Case, chart: Chart) -> None:
    """A dropout keeps at most a tenth."""
    assert max(chart.dropout) >= 0.9


@sign_of("rank_divergence")
def drifts_apart(case: Case, chart: Chart) -> None:
    """The processes end with different weights."""
    (other,) = chart.others
    for name in chart.named(case.layers):
        assert (chart.after[name] - other.after[name]).norm() > 1e-3 * chart.after[name].norm(), name


def test_every_illness_has_its_case() -> None:
    named = {case.sick for case in sick_cases()}
    assert named == SIGNS.keys()
    assert all_rules("training").keys() - {"constant_weights"} <= named


@pytest.mark.parametrize("case", sick_cases(), ids=str)
def test_the_sick_are_sick(case: Case) -> None:
    chart = runner.plain(case)
    assert all(chart.named([pattern]) for pattern in case.layers)
    SIGNS[case.sick](case, chart)


@pytest.mark.parametrize("case", healthy_cases(), ids=str)
def test_the_healthy_are_healthy(case: Case) -> None:
    chart = runner.plain(case)
    assert all(bool(tensor.isfinite().all()) for tensor in chart.after.values())
    if case.goal is None:
        assert fall(chart.losses) < case.falls_to
    else:
        before, after = chart.scores
        assert after >= case.goal > before
