"""A gradient that holds NaN or Inf: silent cases first."""

import pytest

from lightning_weightwatch.rules.non_finite_gradients import RULE
from tests.helpers.runs import INF, MISSING, layers, run


def struck(*steps, row=(1.0, INF, INF, 1.0)):
    return lambda t: row if t in steps else (1.0, 1.0, 1.0, 1.0)


SILENT = [
    pytest.param(run(struck()), id="all finite"),
    pytest.param(run(lambda t: [0.0] * 3), id="zeros"),
    pytest.param(run(lambda t: [1e300, 1e-300, 1e38]), id="large and small are finite"),
    pytest.param(run(struck(), loss=lambda t: INF), id="the loss is not finite, gradients are"),
    pytest.param(run(lambda t: [MISSING] * 3), id="frozen"),
    pytest.param(run(struck(*range(7)), scaled_loss=True), id="AMP looks for its scale"),
    pytest.param(run(struck(*range(20)), scaled_loss=True), id="AMP: 20 skips in a row"),
    pytest.param(run(struck(*range(0, 60, 2)), scaled_loss=True), id="AMP: every other step, none in a row"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


@pytest.mark.parametrize("step", [0, 1, 59])
def test_one_step_is_enough_and_the_first_counts(step):
    (finding,) = RULE(run(struck(*range(step, 60))))
    assert (finding.severity, finding.parameters) == ("critical", layers(1, 2))
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (step, 59, 2.0, 0.0)


def test_one_step_long_ago_is_still_told():
    assert RULE(run(struck(3), steps=150))[0].since_step == 3


def test_the_first_step_names_the_place_though_later_all_are_struck():
    (finding,) = RULE(run(lambda t: [INF] * 4 if t > 5 else [1, INF, 1, 1] if t == 5 else [1] * 4))
    assert (finding.parameters, finding.since_step) == (layers(1), 5)


def test_21_skips_in_a_row_are_told_from_their_first_though_others_came_before():
    (finding,) = RULE(run(struck(0, 1, 2, *range(30, 51)), scaled_loss=True))
    assert finding.since_step == 30


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (2.3, "The loss of that step is finite (2.3), so it began in the backward pass, at or behind fc2."),
        (INF, "The loss of that step is not finite either, so it began in the forward pass."),
        (float("nan"), "The loss of that step is not finite either, so it began in the forward pass."),
        (None, "The backward pass reached fc2 first."),
    ],
)
def test_says_where_it_began(loss, words):
    (finding,) = RULE(run(struck(4), loss=lambda t: loss if t == 4 else 1.0))
    assert finding.saw == f"At step 4 the gradient of 2 of 4 parameters is not finite: fc1, fc2. {words}"
