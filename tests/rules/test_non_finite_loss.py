"""A loss that is NaN or Inf: silent cases first."""

import pytest

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


def test_one_illness_is_told_once():
    both = run(lambda t: [INF if t >= 7 else 1.0], loss=lambda t: NAN if t >= 7 else 0.5)
    assert (len(GRADIENTS(both)), len(RULE(both))) == (1, 0)


def test_under_a_grad_scaler_a_broken_loss_is_no_calibration():
    both = run(lambda t: [INF if t >= 50 else 1.0], loss=lambda t: NAN if t >= 50 else 0.5, scaled_loss=True)
    assert (len(GRADIENTS(both)), len(RULE(both))) == (0, 1)


def test_single_ones_can_be_allowed():
    evidence = run(lambda t: [1.0], loss=lambda t: INF if t in (3, 9) else 0.5)
    assert RULE(evidence)
    assert list(check(evidence, steps=3)) == []
