"""A loss that is NaN or Inf: silent cases first."""

import pytest

from lightning_weightwatch.evidence import Evidence, Setup, Watched
from lightning_weightwatch.rules import cause_of, first_cause
from lightning_weightwatch.rules.non_finite_gradients import RULE as GRADIENTS
from lightning_weightwatch.rules.non_finite_loss import RULE, check
from tests.helpers.runs import INF, falling, run

NAN = float("nan")


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(run(lambda t: [1.0], loss=falling), id="a loss that falls"),
        pytest.param(run(lambda t: [1.0], loss=lambda t: 1e300), id="a loss that is huge"),
        pytest.param(run(lambda t: [1.0], loss=lambda t: -5.0), id="a loss below zero"),
        pytest.param(run(lambda t: [1.0], loss=lambda t: None), id="a loss nobody knows"),
        pytest.param(run(lambda t: [INF], loss=falling), id="broken gradients of a finite loss are another illness"),
    ],
)
def test_silent(evidence):
    assert RULE(evidence) == ()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_first_broken_step_is_named_though_the_gradients_are_finite(bad):
    (finding,) = RULE(run(lambda t: [1.0], loss=lambda t: bad if t >= 7 else 0.5))
    assert (finding.severity, finding.since_step, finding.step) == ("critical", 7, 59)


def test_a_loss_that_breaks_with_its_gradients_is_their_cause():
    """A loss of NaN was told as gradients of NaN only."""
    both = run(lambda t: [INF if t >= 7 else 1.0], loss=lambda t: NAN if t >= 7 else 0.5)
    found = [*GRADIENTS(both), *RULE(both)]
    assert [(f.rule, f.since_step) for f in found] == [("non_finite_gradients", 7), ("non_finite_loss", 7)]
    assert first_cause(found).rule == "non_finite_loss"
    assert cause_of(found[0], found) == "non_finite_loss"


def test_a_loss_that_breaks_after_its_gradients_is_no_illness_of_its_own():
    both = run(lambda t: [INF if t >= 7 else 1.0], loss=lambda t: NAN if t >= 8 else 0.5)
    assert (len(GRADIENTS(both)), len(RULE(both))) == (1, 0)


def test_under_a_grad_scaler_a_broken_loss_is_no_calibration():
    both = run(lambda t: [INF if t >= 50 else 1.0], loss=lambda t: NAN if t >= 50 else 0.5, scaled_loss=True)
    assert (len(GRADIENTS(both)), len(RULE(both))) == (0, 1)


def test_single_ones_can_be_allowed():
    evidence = run(lambda t: [1.0], loss=lambda t: INF if t in (3, 9) else 0.5)
    assert RULE(evidence)
    assert list(check(evidence, steps=3)) == []


def test_names_the_batch_and_the_process():
    evidence = Evidence([Watched("fc", 1, True)])
    for step in range(6):
        evidence.add(step, [1.0], loss=NAN if step == 4 else 0.5, batch=10 - step)
    assert (RULE(evidence)[0].rank, "process" in RULE(evidence)[0].saw) == (None, False)
    evidence.setup, evidence.broken_losses = Setup(processes=2), {1: 4}
    (finding,) = RULE(evidence)
    assert finding.rank == 1
    assert finding.saw == (
        "The loss of step 4 (batch_idx 6) is not finite; 1 of the last 6 steps have such a loss (limit 1). "
        "Only process 1 had such a loss."
    )
