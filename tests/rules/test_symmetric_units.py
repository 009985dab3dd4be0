"""Units that are copies of one another: silent cases first."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_weightwatch.audit import audit_init
from lightning_weightwatch.evidence import Initial, Layer, Signal
from lightning_weightwatch.rules.symmetric_units import RULE, check
from tests.helpers.chains import chain, snapshot
from tests.helpers.runs import falling
from tests.helpers.verdicts import parameter, zeros

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


# --- before the first step --------------------------------------------------------------------------------------------


def drawn(shares, *, zero=(), order=LAYERS):
    """Return layers, registered in one order, that a batch passed in another and found to have so many twins."""
    parameters = [(zeros if layer in zero else parameter)(f"{layer}.weight") for layer in LAYERS]
    passed = tuple(Layer(f"{layer}.weight") for layer in order)
    twins = {f"{layer}.weight": shares.get(layer, 0.0) for layer in LAYERS}
    return Initial([*parameters, parameter("a.bias", kind="bias", shape=(64,))], Signal(passed, twins=twins))


@pytest.mark.parametrize(
    "initial",
    [
        pytest.param([parameter("a.weight")], id="parameters alone"),
        pytest.param(Initial([parameter("a.weight")], Signal()), id="nothing was counted"),
        pytest.param(drawn({}), id="none are equal"),
        pytest.param(drawn({"a": 1.0}), id="one of three hidden matrices: the next tells its units apart"),
        pytest.param(drawn({"a": 1.0, "head": 1.0}), id="an output is not hidden"),
        pytest.param(drawn({"a": 0.5, "b": 0.5}), id="half of their rows"),
        pytest.param(drawn(ALL, zero=LAYERS), id="zeros"),
        pytest.param(drawn({"b": 1.0, "c": 1.0}, order=("head", "a", "b", "c")), id="c makes the output"),
    ],
)
def test_silent_at_the_start(initial):
    assert RULE(initial) == ()


def test_copies_in_most_hidden_layers_are_critical_from_the_start():
    (finding,) = RULE(drawn({"a": 0.9, "b": 0.6, "head": 0.1}))
    assert (finding.severity, finding.step, finding.since_step) == ("critical", 0, 0)
    assert finding.parameters == ("a.weight", "b.weight", "head.weight")
    assert (finding.value, finding.limit) == (0.9, 0.05)
    assert (
        "90% of the rows of a.weight (limit 5%) equal another one in weight and in gradient at the start" in finding.saw
    )


def test_one_matrix_is_enough_where_it_is_the_only_hidden_one():
    two = [parameter("a.weight"), parameter("head.weight")]
    assert len(RULE(Initial(two, Signal(twins={"a.weight": 1.0, "head.weight": 0.0})))) == 1
    assert RULE(Initial(two[:1], Signal(twins={"a.weight": 1.0}))) == ()


def test_limits_move_the_start_as_well():
    assert list(check(drawn({"a": 0.5, "b": 0.5}), most=0.4))
    assert not list(check(drawn({"a": 0.9, "b": 0.9}), twins=0.95))


@pytest.mark.parametrize(("constant", "ill"), [((0, 2), True), ((0,), False), ((), False)])
def test_a_real_network_bears_it_out(constant, ill):
    """Constant matrices in a row have equal gradients in the first pass; one between random ones has not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    for layer in constant:
        nn.init.constant_(model[layer].weight, 0.1)
        nn.init.zeros_(model[layer].bias)
    if ill:
        nn.init.constant_(model[4].weight, 0.1)
    batch = (torch.randn(32, 8), torch.randint(3, (32,)))
    found = [f for f in audit_init(model, batch, functional.cross_entropy).findings if f.rule == "symmetric_units"]
    assert [f.parameters for f in found] == [("0.weight", "2.weight")] * ill
