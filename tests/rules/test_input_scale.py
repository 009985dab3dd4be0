"""Inputs and targets that are not numbers, or far from unit scale: silent cases first."""

import dataclasses

import pytest

from lightning_weightwatch.evidence import InputScale, LossCall, Setup
from lightning_weightwatch.rules.input_scale import RULE
from tests.helpers.chains import chain, hear
from tests.helpers.runs import INF, falling, rising

UNIT = InputScale("batch[0]", 64, mean=0.0, std=1.0, abs_max=4.0, largest_std=1.1, spread=5.0, offset=0.5)
PIXELS = dataclasses.replace(UNIT, mean=33.0, std=78.0, abs_max=255.0, largest_std=110.0)


def seen(**fields):
    return dataclasses.replace(UNIT, **fields)


def regression(mean, std, function="mse_loss", chance=float("nan")):
    return LossCall(function, "head.weight", target_mean=mean, target_std=std, chance=chance)


def run(*passes, steps=30, target=None, **options):
    """Return a run in which these inputs were heard, one in each pass, every tenth step."""
    evidence = chain("a", "head", steps=steps, **options)
    for k, one in enumerate(passes):
        hear(evidence, 10 * k, inputs=(one,) if one else (), loss=target)
    return evidence


SILENT = [
    pytest.param(run(UNIT, UNIT, UNIT), id="unit scale"),
    pytest.param(run(*[seen(largest_std=10.0, abs_max=50.0, offset=10.0, spread=1e3)] * 3), id="at the limits"),
    pytest.param(run(*[seen(abs_max=16.0, largest_std=6.0, mean=4.0)] * 3), id="digits in 0 to 16"),
    pytest.param(run(PIXELS, UNIT, UNIT), id="one pass of three"),
    pytest.param(run(*[seen(offset=80.0, abs_max=1.0)] * 3), id="ones, and now and then a zero"),
    pytest.param(run(*[seen(spread=1e6)] * 3, loss=falling), id="rare features in a run that learns"),
    pytest.param(run(None, None, target=regression(90.0, 90.0)), id="targets below a hundred"),
    pytest.param(run(None, None, target=LossCall("cross_entropy", target_greatest=999.0)), id="class numbers"),
    pytest.param(chain("a", "head"), id="nothing heard"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


@pytest.mark.parametrize(
    ("fields", "value", "limit"),
    [
        ({"largest_std": 30.0}, 30.0, 10.0),
        ({"abs_max": 80.0}, 80.0, 50.0),
        ({"offset": 25.0, "abs_max": 300.0}, 300.0, 50.0),
        ({"offset": 90.0, "abs_max": 20.0}, 90.0, 10.0),
        ({"largest_std": 11.0, "abs_max": 500.0}, 500.0, 50.0),
    ],
    ids=str,
)
def test_the_measure_farthest_beyond_its_limit_is_told(fields, value, limit):
    (finding,) = RULE(run(*[seen(**fields)] * 3))
    assert (finding.severity, finding.value, finding.limit) == ("warning", value, limit)
    assert (finding.since_step, finding.step, finding.parameters) == (0, 29, ())
    assert finding.saw.startswith("batch[0]: ")


def test_it_is_told_by_the_twentieth_step():
    assert [f.severity for f in RULE(run(PIXELS, PIXELS, steps=20))] == ["warning"]
    assert [f.severity for f in RULE(run(PIXELS, PIXELS, steps=19))] == ["info"]
    assert [f.severity for f in RULE(run(PIXELS, steps=20))] == ["info"]


def test_it_is_dated_from_the_first_pass_that_shows_it():
    assert RULE(run(UNIT, PIXELS, PIXELS))[0].since_step == 10


NOT_KNOWN_TO_FAIL = [
    pytest.param({"loss": falling}, id="pixels in 0 to 255 in a run that trains well"),
    pytest.param({"loss": lambda t: None}, id="the loss is unknown"),
    pytest.param({"loss": lambda t: -1.0 + t}, id="the loss began below zero"),
    pytest.param({"rates": lambda t: t / 1000}, id="the learning rate still rises"),
    pytest.param({"loss": lambda t: 0.5}, id="a run that goes on where it stopped, below chance"),
]


@pytest.mark.parametrize("options", NOT_KNOWN_TO_FAIL)
def test_unless_the_loss_is_known_not_to_fall_it_is_worth_knowing_only(options):
    call = LossCall("cross_entropy", "head.weight", classes=10, chance=2.3)
    assert [f.severity for f in RULE(run(*[PIXELS] * 3, target=call, **options))] == ["info"]


def test_opponents_need_not_have_a_falling_loss():
    evidence = run(*[PIXELS] * 3)
    evidence.setup = Setup(optimizers=("Adam", "Adam"))
    assert [f.severity for f in RULE(evidence)] == ["info"]


def test_a_loss_that_came_to_rest_at_chance_has_not_fallen():
    """Pixels in 0 to 255 begin with a loss of hundreds, which falls to ln 10 by itself."""
    call = LossCall("cross_entropy", "head.weight", classes=10, chance=2.3)
    evidence = run(*[PIXELS] * 6, steps=60, target=call, loss=lambda t: 100.0 if t < 9 else 2.31)
    assert [f.severity for f in RULE(evidence)] == ["warning"]


def test_later_the_loss_must_have_fallen_farther():
    slow = lambda t: 2.3 if t < 9 else 0.8 * 2.3  # noqa: E731
    assert [f.severity for f in RULE(run(*[PIXELS] * 3, steps=99, loss=slow))] == ["info"]
    assert [f.severity for f in RULE(run(*[PIXELS] * 3, steps=100, loss=slow))] == ["warning"]


def test_a_normalisation_as_the_first_layer_makes_its_own_scale():
    evidence = chain("a", "head", steps=30, kinds=["norm", "linear"])
    for step in (0, 10):
        hear(evidence, step, inputs=(PIXELS,))
    assert [f.severity for f in RULE(evidence)] == ["info"]


def test_features_of_very_different_scale_are_never_more_than_worth_knowing():
    (finding,) = RULE(run(*[seen(spread=1e6)] * 3))
    assert (finding.severity, finding.value, finding.limit) == ("info", 1e6, 1e3)


def test_the_worst_of_several_inputs_is_told_and_the_others_are_named():
    other = dataclasses.replace(PIXELS, name="batch['table']", abs_max=1e4)
    evidence = chain("a", "head", steps=30)
    for step in (0, 10):
        hear(evidence, step, inputs=(PIXELS, other))
    (finding,) = RULE(evidence)
    assert finding.value == 1e4
    assert finding.saw.endswith("Also off scale: batch[0].")


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ({"loss": lambda t: INF if t >= 10 else 2.3}, "and so is the loss or a gradient"),
        ({"norm": lambda t, name: INF if t >= 10 else 0.1}, "and so is the loss or a gradient"),
        ({}, "the model masks them"),
    ],
    ids=["the loss broke", "a gradient broke", "the model masks them"],
)
def test_what_is_no_number_is_a_note_beside_what_it_broke(setup, words):
    """It was a critical finding of its own, and so the loss that it broke was not the first cause."""
    (finding,) = RULE(run(UNIT, seen(nonfinite=3.0), **setup))
    assert (finding.severity, finding.value, finding.limit) == ("info", 3.0, 0.0)
    assert (finding.since_step, finding.step) == (10, 29)
    assert words in finding.saw


def test_a_scaler_makes_gradients_that_are_not_finite_itself():
    evidence = run(UNIT, seen(nonfinite=3.0), norm=lambda t, name: INF)
    evidence.scaled_loss = True
    (finding,) = RULE(evidence)
    assert "the model masks them" in finding.saw


def test_the_loss_of_another_process_may_have_broken():
    evidence = run(UNIT, seen(nonfinite=3.0))
    evidence.broken_losses = {3: 10}
    (finding,) = RULE(evidence)
    assert "and so is the loss or a gradient" in finding.saw


@pytest.mark.parametrize(("mean", "std", "value"), [(0.0, 150.0, 150.0), (-2000.0, 30.0, 2000.0)])
@pytest.mark.parametrize("function", ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"])
def test_large_targets_of_a_regression_that_does_not_learn_are_told(function, mean, std, value):
    (finding,) = RULE(run(None, None, target=regression(mean, std, function), steps=60))
    assert (finding.severity, finding.value, finding.limit) == ("warning", value, 100.0)


@pytest.mark.parametrize(
    ("options", "severity"),
    [
        ({"steps": 59}, "info"),  # a bias that must move to 150 takes its time
        ({"steps": 30, "loss": lambda t: 2.3 * 1.1**t}, "warning"),
        ({"steps": 100, "loss": falling}, "info"),
        ({"steps": 100, "loss": lambda t: 1e4 if t < 9 else 5e3, "chance": 5e3}, "info"),  # it learnt their mean
        ({"steps": 100, "loss": rising}, "warning"),
    ],
)
def test_large_targets_may_be_learnt(options, severity):
    target = regression(150.0, 70.0, chance=options.pop("chance", float("nan")))
    assert [f.severity for f in RULE(run(None, None, target=target, **options))] == [severity]
