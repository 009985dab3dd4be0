"""Activations at the flat ends: silent cases first."""

import pytest

from lightning_weightwatch.evidence import Activation, InputScale, LossCall, Setup
from lightning_weightwatch.rules.saturated_units import RULE
from tests.helpers.chains import chain, hear, snapshot
from tests.helpers.runs import falling

LAYERS = ("a", "b", "head")


def at(after, share, function="tanh", std=9.0, **fields):
    return Activation(function, f"{after}.weight" if after else "", 64, saturated=share, std=std, **fields)


def run(*passes, steps=30, inputs=(), **options):
    """Return a run in which these activations were heard, every tenth step."""
    evidence = chain(*LAYERS, steps=steps, **options)
    for k, activations in enumerate(passes):
        hear(evidence, 10 * k, activations=tuple(activations), inputs=inputs)
    return evidence


PIXELS = (InputScale("batch[0]", 64, 33.0, 78.0, 255.0, 110.0, 9.0, 1.0),)
GATE, PLAIN = at("b", 0.9, "sigmoid"), Activation("relu", "a.weight", 64, dead=0.1)
SILENT = [
    pytest.param(run([at("b", 0.6)], [at("b", 0.6)]), id="six tenths"),
    pytest.param(run([at("b", 0.9)]), id="heard once"),
    pytest.param(run([at("b", 0.9)], [at("b", 0.1)]), id="not in the last pass"),
    pytest.param(run([at("b", 0.1)], [at("b", 0.9)]), id="in the last pass only"),
    pytest.param(run(*[[at("head", 0.9)]] * 2), id="the last layer"),
    pytest.param(run(*[[at("b", 0.9, feeds_loss=True)]] * 2), id="a loss takes it"),
    pytest.param(run(*[[at("", 0.9)]] * 2), id="nobody knows where"),
    pytest.param(run(*[[Activation("softmax", "b.weight", 64, std=99.0)]] * 2), id="a softmax is not judged"),
    pytest.param(run([at("b", 0.2, "sigmoid"), PLAIN], [GATE, PLAIN], [GATE, PLAIN]), id="a gate that learnt to close"),
    pytest.param(run(*[[at("b", 0.9), at("b", 0.1), at("b", 0.1)]] * 2), id="one call of three"),
    pytest.param(chain(*LAYERS), id="nothing heard"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_a_saturated_layer_is_told_after_two_passes():
    (finding,) = RULE(run([at("b", 0.7)], [at("b", 0.8)], steps=20))
    assert (finding.severity, finding.parameters) == ("warning", ("b.weight",))
    assert (finding.value, finding.limit) == (0.8, 0.6)
    assert (finding.since_step, finding.step) == (0, 19)
    assert "deviation of 9" in finding.saw


def test_all_ill_layers_are_named_in_forward_order():
    (finding,) = RULE(run(*[[at("b", 0.7), at("a", 0.9)]] * 2))
    assert finding.parameters == ("a.weight", "b.weight")


def test_it_is_dated_from_the_first_pass_in_a_row():
    assert RULE(run([at("b", 0.9)], [at("b", 0.1)], [at("b", 0.9)], [at("b", 0.9)]))[0].since_step == 20


@pytest.mark.parametrize(
    "setup", [{"loss": falling}, {"loss": lambda t: None}, {"rates": lambda t: t / 100}], ids=["falls", "?", "warm-up"]
)
def test_unless_the_loss_is_known_not_to_fall_it_is_worth_knowing_only(setup):
    assert [f.severity for f in RULE(run(*[[at("b", 0.9)]] * 2, **setup))] == ["info"]


def test_a_generators_tanh_is_worth_knowing_only():
    evidence = run(*[[at("b", 0.9)]] * 2)
    evidence.setup = Setup(optimizers=("Adam", "Adam"))
    assert [f.severity for f in RULE(evidence)] == ["info"]


def test_a_first_layer_saturated_by_its_inputs_is_another_illness():
    (finding,) = RULE(run(*[[at("a", 0.9)]] * 2, inputs=PIXELS))
    assert (finding.severity, finding.try_first[:20]) == ("info", "Normalise the inputs")
    (finding,) = RULE(run(*[[at("a", 0.9), at("b", 0.9)]] * 2, inputs=PIXELS))
    assert (finding.severity, finding.parameters) == ("warning", ("b.weight",))


def test_a_first_layer_on_inputs_of_unit_scale_is_its_own_fault():
    assert [f.severity for f in RULE(run(*[[at("a", 0.9)]] * 2))] == ["warning"]


def test_a_gate_that_was_closed_from_the_first_pass_is_told():
    assert RULE(run([GATE, PLAIN], [GATE, PLAIN]))[0].parameters == ("b.weight",)


def test_sigmoids_alone_are_no_gates():
    assert RULE(run([at("b", 0.2, "sigmoid")], [GATE], [GATE]))[0].since_step == 10


@pytest.mark.parametrize(
    ("share", "before", "severity"), [(0.9, 9e-4, "critical"), (0.9, 2e-3, "warning"), (0.8, 9e-4, "warning")]
)
def test_it_is_critical_where_gradients_before_it_are_a_hundredth_of_those_behind(share, before, severity):
    norm = lambda step, name: before if name[0] == "a" else 0.1  # noqa: E731
    assert [f.severity for f in RULE(run(*[[at("b", share)]] * 2, norm=norm))] == [severity]


@pytest.mark.parametrize(("first", "severity"), [(11.0, "critical"), (9.0, "warning")])
def test_it_is_critical_where_a_gradient_is_a_hundredth_of_its_first(first, severity):
    evidence = run(*[[at("b", 0.9)]] * 2)
    snapshot(evidence, 0, grad_norm={"b.weight": first})
    assert [f.severity for f in RULE(evidence)] == [severity]


def test_a_single_loss_function_of_several_is_enough_to_know_the_output():
    evidence = chain("a", "b", "c", steps=30)
    for step in (0, 10):
        hear(evidence, step, loss=LossCall("mse_loss", "b.weight"), activations=(at("b", 0.9),))
    assert RULE(evidence) == ()
