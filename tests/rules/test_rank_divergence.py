"""Copies of one model that part: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Evidence, Replicas, Watched
from lightning_weightwatch.rules.rank_divergence import RULE, check

NAN, INF = float("nan"), float("inf")


def compared(*readings, odd=()):
    """Return evidence of three parameters with one comparison every ten steps."""
    evidence = Evidence([Watched(f"fc{i}", 4, True) for i in range(3)])
    for step in range(10 * len(readings) + 5):
        evidence.add(step, [1.0] * 3, loss=1.0)
    for i, spread in enumerate(readings):
        evidence.add_reading(Replicas(10 * i, np.array(spread), odd))
    return evidence


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(compared(), id="one process, or nothing compared"),
        pytest.param(compared([0.0, 0.0, 0.0]), id="equal copies"),
        pytest.param(compared([NAN, NAN, NAN]), id="nothing measured"),
        pytest.param(compared([1e-6, 0.0, NAN]), id="the digits that a norm is good to"),
        pytest.param(compared([0.1, 0.0, 0.0], [0.0, 0.0, 0.0]), id="averaged again, as local training does"),
    ],
)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_one_reading_is_enough_and_names_the_parameters():
    (finding,) = RULE(compared([0.0] * 3, [0.0, 2e-6, 0.5], odd=(1, 3)))
    assert (finding.severity, finding.parameters) == ("critical", ("fc1", "fc2"))
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (10, 24, 0.5, 1e-6)
    assert finding.rank is None
    assert "on processes 1, 3" in finding.saw


def test_the_first_of_those_in_a_row_is_the_onset():
    readings = [[0.1, 0, 0], [0.0, 0, 0], [1e-3, 0, 0], [1e-2, 0, 0]]
    assert RULE(compared(*readings))[0].since_step == 20


def test_a_single_odd_process_is_named():
    (finding,) = RULE(compared([0.5, 0.0, 0.0], odd=(2,)))
    assert finding.rank == 2
    assert "on process 2 " in finding.saw


def test_a_copy_that_is_not_finite_is_a_number_that_json_takes():
    (finding,) = RULE(compared([INF, 0.0, 0.0]))
    assert (finding.parameters, finding.value) == (("fc0",), np.finfo(float).max)


def test_the_limit_can_be_moved():
    assert not list(check(compared([1e-3, 0.0, 0.0]), relative=1e-2))


def test_a_comparison_without_any_step_is_no_error():
    evidence = Evidence([Watched("fc", 4, True)])
    evidence.add_reading(Replicas(7, np.array([0.1])))
    (finding,) = RULE(evidence)
    assert (finding.since_step, finding.step) == (7, 7)
