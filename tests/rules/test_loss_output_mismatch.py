"""Output activations that do not fit the loss: silent cases first."""

import math

import pytest

from lightning_weightwatch.evidence import LossCall
from lightning_weightwatch.rules.loss_output_mismatch import RULE
from tests.helpers.chains import chain, hear
from tests.helpers.runs import STUCK, falling

BCE, LOGITS = "binary_cross_entropy", "binary_cross_entropy_with_logits"


def call(function, fed_by="", **fields):
    return LossCall(function, "head.weight", fed_by, **fields)


def targets(function, fed_by, least, greatest, mean, std, **fields):
    span = {"target_least": least, "target_greatest": greatest, "target_mean": mean, "target_std": std}
    return call(function, fed_by, **span | fields)


def run(*calls, steps=10, loss=STUCK):
    """Return a run that called these loss functions, one in each pass that was listened to."""
    evidence = chain("a", "head", steps=steps, loss=loss)
    for k, one in enumerate(calls):
        hear(evidence, min(10 * k, steps - 1), loss=one)
    return evidence


SILENT = [
    pytest.param(run(call("cross_entropy", classes=10)), id="logits"),
    pytest.param(run(call("cross_entropy", "log_softmax", classes=10)), id="log_softmax twice is log_softmax"),
    *[pytest.param(run(call("cross_entropy", f, classes=10)), id=f"CE after {f}") for f in ("gelu", "silu", "elu")],
    pytest.param(run(call("nll_loss", "log_softmax", classes=10)), id="log probabilities"),
    pytest.param(run(call("nll_loss", classes=10), loss=falling), id="log probabilities written out by hand"),
    pytest.param(run(call(LOGITS, target_least=0.0, target_greatest=1.0)), id="a single logit"),
    pytest.param(run(call(LOGITS, "hardtanh")), id="a clamp whose range nobody knows"),
    *[pytest.param(run(call(BCE, f)), id=f"BCE after {f}") for f in ("sigmoid", "softmax", "hardsigmoid", "hardtanh")],
    pytest.param(run(call(BCE), steps=200), id="a clamped sigmoid"),
    pytest.param(run(targets("mse_loss", "", -9.0, 9.0, 0.0, 3.0)), id="a linear output"),
    pytest.param(run(targets("mse_loss", "sigmoid", 0.0, 1.0, 0.3, 0.4)), id="pixels in 0 to 1"),
    pytest.param(run(targets("mse_loss", "softmax", 0.0, 1.0, 0.1, 0.3)), id="a Brier score"),
    pytest.param(run(targets("l1_loss", "tanh", -1.1, 1.05, 0.0, 0.5)), id="slightly beyond the range of tanh"),
    pytest.param(run(targets("mse_loss", "relu", 0.0, 900.0, 200.0, 90.0)), id="prices after a ReLU"),
    pytest.param(run(targets("mse_loss", "hardtanh", -5.0, 5.0, 0.0, 3.0)), id="ReLU6 is a hardtanh too"),
    pytest.param(run(call("mse_loss", "sigmoid")), id="targets that are not known"),
    pytest.param(chain("a", "head"), id="nothing heard"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


@pytest.mark.parametrize("fed_by", ["softmax", "sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_logits_from_0_to_1_have_a_floor_that_the_loss_cannot_undercut(fed_by, classes):
    (finding,) = RULE(run(call("cross_entropy", fed_by, classes=classes)))
    best = -math.log(math.e / (math.e + classes - 1))  # 1 for the right class, 0 for all others
    assert (finding.severity, finding.parameters, finding.since_step) == ("warning", ("head.weight",), 0)
    assert (finding.value, finding.limit) == (pytest.approx(best), 0.0)


def test_the_floor_of_ten_classes_is_the_known_one():
    assert RULE(run(call("cross_entropy", "softmax", classes=10)))[0].value == pytest.approx(1.4612, abs=1e-4)


def test_tanh_has_a_lower_floor():
    (finding,) = RULE(run(call("cross_entropy", "tanh", classes=10)))
    assert finding.value == pytest.approx(math.log(1 + 9 * math.exp(-2)))


@pytest.mark.parametrize(
    ("fed_by", "floor"),
    [
        ("sigmoid", (math.log(1 + math.exp(-1)) + math.log(2)) / 2),
        ("softmax", (math.log(1 + math.exp(-1)) + math.log(2)) / 2),
        ("tanh", math.log(1 + math.exp(-1))),
        ("relu", math.log(2) / 2),
        ("log_softmax", math.log(2) / 2),
    ],
)
def test_a_squashed_logit_has_a_floor(fed_by, floor):
    (finding,) = RULE(run(call(LOGITS, fed_by)))
    assert (finding.severity, finding.value) == ("warning", pytest.approx(floor))


@pytest.mark.parametrize(
    ("options", "severity"),
    [({}, "info"), ({"steps": 60, "loss": falling}, "info"), ({"steps": 49}, "info"), ({"steps": 50}, "warning")],
    ids=str,
)
def test_a_relu_before_cross_entropy_is_worth_knowing_until_nothing_is_learnt(options, severity):
    assert [f.severity for f in RULE(run(call("cross_entropy", "relu", classes=10), **options))] == [severity]


@pytest.mark.parametrize(
    "one",
    [call(BCE, "softmax", one_unit=True), call("mse_loss", "softmax", one_unit=True), call("cross_entropy", classes=1)],
)
def test_a_softmax_over_one_unit_is_critical(one):
    (finding,) = RULE(run(one))
    assert (finding.severity, finding.value, finding.limit) == ("critical", 1.0, 2.0)


@pytest.mark.parametrize("fed_by", ["softmax", "sigmoid", "relu", "tanh"])
def test_what_is_no_log_probability_is_told(fed_by):
    (finding,) = RULE(run(call("nll_loss", fed_by, classes=10)))
    assert finding.severity == "warning"
    assert f"fed by {fed_by}" in finding.saw


def test_a_negative_loss_tells_that_raw_outputs_are_no_log_probabilities():
    (finding,) = RULE(run(call("nll_loss", classes=10), loss=lambda t: 0.1 - t))
    assert finding.severity == "warning"


@pytest.mark.parametrize("fed_by", ["relu", "tanh", "log_softmax"])
def test_what_is_no_probability_is_told(fed_by):
    assert [f.severity for f in RULE(run(call(BCE, fed_by)))] == ["warning"]


@pytest.mark.parametrize(("least", "greatest", "away"), [(-1.0, 1.0, 1.0), (0.0, 9.0, 8.0), (1.0, 2.0, 1.0)])
@pytest.mark.parametrize(("function", "fed_by"), [(LOGITS, ""), (BCE, "sigmoid")])
def test_binary_targets_must_lie_from_0_to_1(function, fed_by, least, greatest, away):
    (finding,) = RULE(run(call(function, fed_by, target_least=least, target_greatest=greatest)))
    assert (finding.severity, finding.value) == ("warning", away)


@pytest.mark.parametrize(
    ("fed_by", "least", "greatest", "mean", "severity", "value"),
    [
        ("relu", -2.0, 2.0, 0.1, "warning", 2.0),
        ("relu", -2.0, 2.0, -0.1, "critical", 2.0),
        ("sigmoid", 0.0, 255.0, 33.0, "critical", 254.0),
        ("tanh", -3.0, 4.0, 0.0, "warning", 3.0),
        ("log_softmax", 0.0, 1.0, 0.1, "critical", 1.0),
        ("softplus", -9.0, -5.0, -7.0, "critical", 9.0),
    ],
)
def test_targets_beyond_the_range_of_the_output_are_told(fed_by, least, greatest, mean, severity, value):
    (finding,) = RULE(run(targets("mse_loss", fed_by, least, greatest, mean, 1.0)))
    assert (finding.severity, finding.value, finding.limit) == (severity, value, 0.5)


def test_targets_out_of_reach_are_a_warning_while_something_is_learnt():
    evidence = run(targets("mse_loss", "relu", -2.0, 2.0, -0.1, 1.0), steps=60, loss=falling)
    assert [f.severity for f in RULE(evidence)] == ["warning"]


def test_a_few_targets_out_of_reach_do_not_matter_where_nearly_all_is_explained():
    one = targets("mse_loss", "tanh", -2.0, 2.0, 0.0, 1.0, chance=1.0)
    assert [f.severity for f in RULE(run(one, loss=lambda t: 0.09))] == ["info"]
    assert [f.severity for f in RULE(run(one, loss=lambda t: 0.11))] == ["warning"]


def test_a_single_odd_batch_of_three_is_not_told():
    good, odd = (targets("mse_loss", "relu", least, 5.0, 1.0, 1.0) for least in (0.0, -4.0))
    assert RULE(run(good, odd, good, steps=30)) == ()
    assert RULE(run(good, odd, odd, steps=30))[0].since_step == 10


def test_each_loss_of_several_is_judged():
    evidence = chain("a", "head", steps=10)
    hear(evidence, 0, loss=call("cross_entropy", "softmax", classes=3))
    hear(evidence, 9, loss=call("mse_loss", "softmax", one_unit=True))
    assert [f.severity for f in RULE(evidence)] == ["warning", "critical"]
