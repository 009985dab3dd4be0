"""Weights that shrink to nothing: silent cases first."""

import pytest

from lightning_weightwatch.evidence import Evidence, Setup, Watched
from lightning_weightwatch.rules.weight_collapse import RULE, check
from tests.helpers.runs import falling
from tests.helpers.shots import SHOTS, train

LAYERS = [Watched(f"fc{i}.weight", 4, True) for i in range(3)] + [Watched("norm.weight", 4, False, kind="norm")]
STUCK = [2.3] * 50
NAN, INF = float("nan"), float("inf")


def norms(*rows, steps=SHOTS):
    """Return snapshots of weight norms, by step."""
    return {step: {"weight_norm": row} for step, row in zip(steps, rows, strict=False)}


def shrunk(*rows, losses=STUCK, setup=None):
    evidence = Evidence(LAYERS)
    evidence.setup = setup or Setup()
    return train(evidence, losses, shots=norms(*rows))


SILENT = [
    pytest.param(shrunk(), id="no snapshot"),
    pytest.param(shrunk([2.0] * 4), id="one snapshot has nothing to be held against"),
    pytest.param(shrunk([2.0] * 4, [1.0] * 4, [0.2] * 4), id="a tenth is left"),
    pytest.param(shrunk([2.0] * 4, [0.1, 2.0, 2.0, 0.1]), id="one matrix of three, and a norm"),
    pytest.param(shrunk([2.0] * 4, [0.01] * 4, losses=[falling(t) for t in range(50)]), id="before a normalisation"),
    pytest.param(shrunk([0.0] * 4, [0.0] * 4), id="all began at zero"),
    pytest.param(shrunk([2.0] * 4, [NAN] * 4), id="not measured"),
    pytest.param(shrunk([2.0] * 4, [INF] * 4), id="broken weights are another illness"),
    pytest.param(shrunk([2.0] * 4, [0.01] * 4, [1.0] * 4), id="they came back"),
    pytest.param(shrunk([2.0] * 4, [20.0] * 4), id="they grow"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_most_matrices_below_a_tenth_are_told_since_they_were_last_whole():
    (finding,) = RULE(shrunk([2.0] * 4, [1.9] * 4, [1.0] * 4, [0.5] * 4, [0.1, 0.5, 0.1, 2.0]))
    assert (finding.severity, finding.parameters) == ("warning", ("fc0.weight", "fc2.weight"))
    assert (finding.since_step, finding.step, finding.limit) == (10, 49, 0.1)
    assert finding.value == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("losses", "kept", "severity"),
    [(STUCK, 0.0, "critical"), (STUCK, 0.011, "warning"), ([None] * 50, 0.001, "warning")],
)
def test_next_to_nothing_left_is_critical_where_the_loss_is_known_not_to_fall(losses, kept, severity):
    assert [f.severity for f in RULE(shrunk([2.0] * 4, [2.0 * kept] * 4, losses=losses))] == [severity]


def test_opponents_may_clamp_their_weights():
    (finding,) = RULE(shrunk([2.0] * 4, [0.01] * 4, setup=Setup(optimizers=("Adam", "Adam"))))
    assert finding.severity == "info"


def test_a_matrix_that_began_at_zero_is_neither_counted_nor_named():
    (finding,) = RULE(shrunk([0.0, 2.0, 2.0, 1.0], [0.1, 0.1, 0.1, 1.0]))
    assert finding.parameters == ("fc1.weight", "fc2.weight")


def test_the_first_snapshot_counts_though_it_is_no_longer_among_the_last():
    evidence = Evidence(LAYERS)
    steps = range(0, 1200, 40)
    shots = norms(*([2.0 * 0.9**i] * 4 for i in range(30)), steps=steps)
    train(evidence, [2.3] * 1200, shots=shots)
    assert evidence.snapshots[0].step > 0
    (finding,) = RULE(evidence)
    assert finding.value == pytest.approx(0.9**29)
    assert finding.since_step == 0


def test_limits_can_be_moved():
    evidence = shrunk([2.0] * 4, [0.1] * 4)
    assert not list(check(evidence, left=0.04))
    assert [f.severity for f in check(evidence, gone=0.06)] == ["critical"]
