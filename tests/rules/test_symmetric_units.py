"""Units that are copies of one another: silent cases first."""

import pytest

from lightning_weightwatch.rules.symmetric_units import RULE
from tests.helpers.chains import chain, snapshot
from tests.helpers.runs import falling

LAYERS = ("a", "b", "c", "head")


def run(*taken, loss=lambda step: 2.3, steps=30):
    """Return a run with snapshots: for each its step and the share of twins by layer, or ``None`` if not counted."""
    evidence = chain(*LAYERS, steps=steps, loss=loss)
    for step, shares, *zero in taken:
        twins = {} if shares is None else {f"{layer}.weight": shares.get(layer, 0.0) for layer in LAYERS}
        norms = {f"{layer}.weight": 0.0 if layer in zero else 1.0 for layer in LAYERS}
        snapshot(evidence, step, twin_rows=twins, weight_norm=norms)
    return evidence


ALL = {"a": 1.0, "b": 1.0, "c": 1.0}
SILENT = [
    pytest.param(run((0, {}), (10, {})), id="none are equal"),
    pytest.param(run((0, {"a": 0.05}), (10, {"a": 0.05})), id="a twentieth"),
    pytest.param(run((0, {"a": 1.0}), (10, {})), id="equal in the first step only"),
    pytest.param(run((0, {"a": 1.0})), id="one matrix, one snapshot: it may part yet"),
    pytest.param(run((0, {"head": 1.0}, "head"), (10, {"head": 1.0}, "head")), id="a head of zeros"),
    pytest.param(run((0, {"a": 1.0}, *LAYERS)), id="nothing but zeros"),
    pytest.param(run((0, {}), (10, {"b": 0.5})), id="in the last snapshot only"),
    pytest.param(run((0, None), (10, None)), id="not counted"),
    pytest.param(run(), id="no snapshot yet"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_copies_in_most_hidden_layers_are_told_at_the_first_snapshot():
    (finding,) = RULE(run((0, ALL), steps=10))
    assert (finding.severity, finding.since_step, finding.step) == ("critical", 0, 9)
    assert finding.parameters == ("a.weight", "b.weight", "c.weight")
    assert (finding.value, finding.limit) == (1.0, 0.05)


def test_some_copies_are_told_when_they_are_still_there():
    (finding,) = RULE(run((0, {"b": 0.4}), (10, {"b": 0.5})))
    assert (finding.severity, finding.parameters, finding.value) == ("warning", ("b.weight",), 0.5)
    assert finding.since_step == 0


@pytest.mark.parametrize(
    ("shares", "severity"),
    [({"a": 1.0, "b": 1.0}, "critical"), ({"a": 1.0}, "warning"), ({"a": 0.5, "b": 0.5}, "warning")],
)
def test_it_is_critical_where_most_rows_of_most_hidden_matrices_are(shares, severity):
    assert [f.severity for f in RULE(run((0, shares), (10, shares)))] == [severity]


def test_while_the_loss_falls_it_is_a_warning():
    """A layer as wide as one unit learns something."""
    assert [f.severity for f in RULE(run((0, ALL), (10, ALL), loss=falling))] == ["warning"]


def test_matrices_of_zeros_that_became_equal_rows_are_dated_from_then():
    """Zeros, and sigmoids between the layers: they move in the first step, all rows alike."""
    (finding,) = RULE(run((0, {"a": 1.0}, *LAYERS), (10, ALL)))
    assert (finding.severity, finding.since_step) == ("critical", 10)


def test_later_snapshots_that_do_not_count_change_nothing():
    assert RULE(run((0, ALL), (10, ALL), (20, None))) == RULE(run((0, ALL), (10, ALL)))
