"""Matrices of zeros that stay so: silent cases first."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_weightwatch.audit import audit_init
from lightning_weightwatch.evidence import Initial, Layer, Setup, Signal
from lightning_weightwatch.rules.zero_blocked_signal import RULE, check
from tests.helpers.chains import MISSING, chain, snapshot
from tests.helpers.runs import falling
from tests.helpers.verdicts import parameter, zeros

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


# --- before the first step --------------------------------------------------------------------------------------------

NONE, SOME = (0.0, 0.0, 0.0), (0.1, 0.1, 0.1)


def passed(zero="", *, frozen="", optimizers=("SGD",), layers=None, **gradients):
    """Return layers a, b, c... with the gradients of their passes; by default each output is asked for a gradient."""
    names = [name for name in "abcdef" if name in gradients or name in frozen]
    parameters = [
        (zeros if name in zero else parameter)(f"{name}.weight", trainable=name not in frozen) for name in names
    ]
    heard = {name: {"gradient": 0.1, "came_in": 1.0} | (layers or {}).get(name, {}) for name in names}
    signal = Signal(
        tuple(Layer(f"{name}.weight", **numbers) for name, numbers in heard.items()),
        {f"{name}.weight": passes for name, passes in gradients.items()},
        optimizers=optimizers,
    )
    return Initial([*parameters, parameter("a.bias", kind="bias", shape=(64,))], signal)


@pytest.mark.parametrize(
    "initial",
    [
        pytest.param([zeros("a.weight")], id="parameters alone"),
        pytest.param(Initial([zeros("a.weight")], Signal()), id="no backward pass"),
        pytest.param(passed(a=SOME, b=SOME), id="nothing is zero"),
        pytest.param(passed(a=NONE, b=SOME), id="no gradient, but no matrix of zeros"),
        pytest.param(passed("b", a=(0.0, 0.1, 0.1), b=SOME), id="a head that begins at zero"),
        pytest.param(passed("bc", a=(0.0, 0.0, 0.1), b=(0.0, 0.1, 0.1), c=SOME), id="a head and a branch"),
        pytest.param(passed("b", a=NONE, b=SOME), id="one that got a gradient blocks nobody for long"),
        pytest.param(passed("b", a=NONE[:2], b=NONE[:2], c=SOME[:2]), id="two passes confirm nothing"),
        pytest.param(passed("a", frozen="a", b=SOME), id="a frozen matrix of zeros with nothing before it"),
        pytest.param(
            passed("a", frozen="a", b=NONE, layers={"a": {"gradient": 0.0}}), id="what lies behind it has no gradient"
        ),
        pytest.param(
            passed("b", frozen="b", a=NONE, c=SOME, layers={"b": {"gradient": 0.0}}),
            id="a frozen matrix of zeros that nothing is asked of",
        ),
        pytest.param(passed("bd", a=NONE, b=NONE, c=NONE, d=SOME), id="no step was made yet: a GradScaler, a warm-up"),
        pytest.param(passed("b", a=NONE, b=NONE, optimizers=("Adam", "Adam")), id="optimizers that take turns"),
        pytest.param(
            passed("c", a=SOME, b=NONE, c=NONE, layers={"c": {"gradient": 0.0, "feeds_loss": True}}),
            id="a head of zeros that this loss leaves out",
        ),
        pytest.param(
            passed("b", a=NONE, b=NONE, c=NONE, d=SOME, layers={"c": {"dead": 1.0}}), id="what is dead behind it blocks"
        ),
    ],
)
def test_silent_at_the_start(initial):
    assert RULE(initial) == ()


def test_all_zeros_are_critical_from_the_start():
    (finding,) = RULE(passed("abc", a=NONE, b=NONE, c=NONE))
    assert (finding.severity, finding.step, finding.since_step) == ("critical", 0, 0)
    assert finding.parameters == ("a.weight", "b.weight", "c.weight")
    assert (finding.value, finding.limit) == (3.0, 3.0)
    assert finding.unit == "backward passes without a gradient, behind a matrix of zeros"


def test_what_lies_before_it_is_named_and_what_lies_behind_is_not():
    (finding,) = RULE(passed("b", a=NONE, b=NONE, c=NONE, d=SOME))
    assert finding.parameters == ("b.weight", "a.weight")
    assert "No gradient reaches a.weight before it." in finding.saw


@pytest.mark.parametrize(("others", "severity"), [("cd", "warning"), ("c", "critical")])
def test_it_is_critical_where_most_of_the_trained_matrices_are_blocked(others, severity):
    found = RULE(passed("ab", a=NONE, b=NONE, **dict.fromkeys(others, SOME)))
    assert [(f.severity, f.parameters) for f in found] == [(severity, ("a.weight", "b.weight"))]


def test_a_head_of_zeros_that_moved_proves_that_steps_were_made():
    """Two zeros in a branch, behind a head that is zero as well: no gradient comes back to them in the first pass."""
    silent = {"a": (0.0, 0.1, 0.1), "b": NONE, "c": NONE, "d": SOME}
    (finding,) = RULE(passed("bcd", **silent, layers={name: {"gradient": 0.0} for name in "abc"}))
    assert finding.parameters == ("b.weight", "c.weight")


def test_a_frozen_matrix_of_zeros_blocks_for_ever():
    (finding,) = RULE(passed("b", frozen="b", a=NONE, c=SOME))
    assert finding.parameters == ("b.weight", "a.weight")


def test_a_layer_that_is_dead_for_want_of_input_is_no_excuse():
    layers = {"c": {"dead": 1.0, "came_in": 0.0}, "b": {"dead": 1.0}}
    assert len(RULE(passed("b", a=NONE, b=NONE, c=NONE, layers=layers))) == 1


def test_a_layer_that_is_dead_because_it_is_zero_is_none_either():
    (finding,) = RULE(passed("bd", a=SOME, b=NONE, c=SOME, d=NONE, layers={"d": {"dead": 1.0}}))
    assert finding.parameters == ("b.weight", "d.weight")


def test_limits_move_the_start_as_well():
    assert not list(check(passed("ab", a=NONE, b=NONE), passes=4))
    assert list(check(passed("ab", a=NONE[:2], b=NONE[:2]), passes=2))
    assert [f.severity for f in check(passed("ab", a=NONE, b=NONE, c=SOME), most=0.7)] == ["warning"]


class Branch(nn.Module):
    """A residual branch whose last matrices may be zero, behind a gate that is."""

    def __init__(self, zero):
        super().__init__()
        self.up, self.down, self.gate = nn.Linear(8, 8), nn.Linear(8, 8), nn.Parameter(torch.zeros(8))
        for layer in zero:
            nn.init.zeros_(getattr(self, layer).weight)
            nn.init.zeros_(getattr(self, layer).bias)

    def forward(self, x):
        return x + self.gate * self.down(functional.relu(self.up(x)))


@pytest.mark.parametrize(
    ("zero", "parameters"), [((), ()), (("down",), ("1.down.weight", "1.up.weight", "2.down.weight", "2.up.weight"))]
)
@pytest.mark.parametrize("head", [True, False], ids=["head of zeros", "head"])
def test_a_gate_may_be_zero_and_so_may_a_head_but_not_what_lies_behind_the_gate(zero, parameters, head):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Branch(zero), Branch(zero), nn.Linear(8, 3))
    if head:
        nn.init.zeros_(model[-1].weight)
    batch = (torch.randn(16, 4), torch.randint(3, (16,)))
    found = [f for f in audit_init(model, batch, functional.cross_entropy).findings if f.rule == "zero_blocked_signal"]
    assert {name for f in found for name in f.parameters} == set(parameters)
