"""A gradient that holds NaN or Inf: silent cases first."""

import pytest

from lightning_weightwatch.evidence import Evidence, Setup, Watched
from lightning_weightwatch.rules.non_finite_gradients import RULE, check
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
    pytest.param(run(struck(*range(60)), scaled_loss=True), id="AMP: no step is ever taken, another illness"),
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


def test_single_ones_can_be_allowed():
    evidence = run(struck(3, 9))
    assert RULE(evidence)
    assert list(check(evidence, steps=3)) == []


def broken(loss, **where):
    """Return evidence of two layers whose gradients break at step 4."""
    evidence = Evidence([Watched("fc0", 1, True), Watched("fc1", 1, True)])
    for step in range(6):
        evidence.add(step, [1.0, INF if step == 4 else 1.0], loss=loss if step == 4 else 1.0, batch=step + 30)
    for name, value in where.items():
        setattr(evidence, name, value)
    return evidence


def test_names_the_batch_of_the_step():
    assert RULE(broken(0.5))[0].saw.startswith("At step 4 (batch_idx 34) the gradient of 1 of 2 parameters")


def test_names_the_process_whose_loss_broke():
    (finding,) = RULE(broken(INF, setup=Setup(processes=4), broken_losses={2: 4}))
    assert finding.rank == 2
    assert finding.saw.endswith(" Only process 2 had such a loss.")


def test_names_several_processes_but_belongs_to_none():
    (finding,) = RULE(broken(INF, setup=Setup(processes=4), broken_losses={3: 4, 0: 2, 1: 5}))
    assert finding.rank is None
    assert finding.saw.endswith(" Only processes 0, 3 had such a loss.")


@pytest.mark.parametrize(
    ("loss", "where"),
    [
        pytest.param(INF, {}, id="nothing known"),
        pytest.param(INF, {"broken_losses": {0: 4}}, id="the only process there is"),
        pytest.param(INF, {"setup": Setup(processes=2), "broken_losses": {0: 4, 1: 3}}, id="all of them"),
        pytest.param(INF, {"setup": Setup(processes=2), "broken_losses": {1: 5}}, id="one that broke later"),
        pytest.param(0.5, {"setup": Setup(processes=2), "broken_losses": {1: 3}}, id="the loss of this step is sound"),
    ],
)
def test_names_no_process(loss, where):
    (finding,) = RULE(broken(loss, **where))
    assert finding.rank is None
    assert "process" not in finding.saw
