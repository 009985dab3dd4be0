"""Matrices of zeros that stay so: silent cases first."""

import pytest

from lightning_weightwatch.evidence import Setup
from lightning_weightwatch.rules.zero_blocked_signal import RULE
from tests.helpers.chains import MISSING, chain, snapshot
from tests.helpers.runs import falling

LAYERS = ("a", "b", "c")


def weights(**norms):
    return {f"{layer}.weight": norms.get(layer, 1.0) for layer in LAYERS}


def seen(norm, *, zero=(), moved=(), steps=20, at=10, **options):
    """Return a run in which matrices are zero at a snapshot, and some of these were moved by its step."""
    evidence = chain(*LAYERS, steps=steps, norm=norm, **options)
    updates = {f"{layer}.weight": 0.1 if layer in moved else 0.0 for layer in LAYERS}
    snapshot(evidence, at, weight_norm=weights(**dict.fromkeys(zero, 0.0)), update_norm=updates)
    return evidence


def blocked(*layers, after=0):
    """Return gradients of exactly zero for the matrices of these layers, from a step on."""
    return lambda step, name: 0.0 if step >= after and name in {f"{layer}.weight" for layer in layers} else 0.1


SILENT = [
    pytest.param(seen(blocked()), id="nothing is zero"),
    pytest.param(seen(blocked("a", "b"), zero=()), id="gradients of zero, but no matrix of zeros"),
    pytest.param(seen(blocked("a"), zero=("c",), moved=("c",)), id="a head that begins at zero and moves"),
    pytest.param(seen(lambda t, n: 0.1, zero=("c",)), id="a matrix of zeros that lets everything pass"),
    pytest.param(seen(lambda t, n: 0.0 if t < 2 and n != "c.weight" else 0.1, zero=("c",), at=0), id="two steps"),
    pytest.param(seen(blocked("a", "b"), zero=("c",), steps=9, at=0), id="9 steps are too few"),
    pytest.param(seen(blocked("a", after=5), zero=("c",), steps=34), id="29 steps, later in a run, are too few"),
    pytest.param(seen(blocked("c"), zero=("a",), moved=("a",)), id="what lies behind it is not blocked by it"),
    pytest.param(seen(lambda t, n: MISSING if n[0] == "a" else 0.1, zero=("a",)), id="a frozen layer of zeros"),
    pytest.param(chain(*LAYERS, norm=blocked("a", "b")), id="no snapshot yet"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_all_zeros_from_the_start_are_told_after_ten_steps():
    (finding,) = RULE(seen(blocked(*LAYERS), zero=LAYERS, steps=10, at=0))
    assert (finding.severity, finding.since_step, finding.step) == ("critical", 0, 9)
    assert finding.parameters == ("a.weight", "b.weight", "c.weight")
    assert (finding.value, finding.limit) == (10.0, 10.0)


def test_the_matrix_of_zeros_comes_before_what_it_blocks():
    (finding,) = RULE(seen(blocked("a", "b"), zero=("c",)))
    assert finding.parameters == ("c.weight", "a.weight", "b.weight")


def test_what_comes_behind_the_matrix_of_zeros_is_not_named():
    (finding,) = RULE(seen(blocked("a", "b"), zero=("b",)))
    assert finding.parameters == ("b.weight", "a.weight")


def test_two_matrices_of_zeros_in_a_row_block_each_other():
    """Both of LoRA's matrices: neither gets a gradient, and no other matrix lies before them."""
    (finding,) = RULE(seen(blocked("a", "b"), zero=("a", "b"), loss=falling))
    assert (finding.severity, finding.parameters) == ("warning", ("a.weight", "b.weight"))


@pytest.mark.parametrize(("loss", "severity"), [(falling, "warning"), (lambda t: 2.3, "critical")])
def test_it_is_critical_unless_the_loss_falls(loss, severity):
    assert [f.severity for f in RULE(seen(blocked("a"), zero=("b",), loss=loss))] == [severity]


def test_opponents_need_not_have_a_falling_loss_but_no_gradient_is_none():
    evidence = seen(blocked("a"), zero=("b",), loss=falling)
    evidence.setup = Setup(optimizers=("Adam", "Adam"))
    assert [f.severity for f in RULE(evidence)] == ["critical"]


def test_a_matrix_that_was_zeroed_later_is_told_after_thirty_steps():
    (finding,) = RULE(seen(blocked("a", after=25), zero=("b",), steps=55, at=40))
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (25, 54, 30.0, 30.0)


def test_a_step_without_measurement_does_not_break_the_row():
    (finding,) = RULE(seen(lambda t, n: MISSING if t % 2 else 0.0, zero=LAYERS, steps=20))
    assert finding.since_step == 0


def test_in_a_resumed_run_the_first_step_is_not_zero():
    (finding,) = RULE(seen(blocked("a"), zero=("b",), first=1000, at=1000))
    assert (finding.since_step, finding.step) == (1000, 1019)
