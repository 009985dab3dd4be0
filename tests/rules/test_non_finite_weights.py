"""NaN and Inf in weights: silent cases first."""

import json
from types import SimpleNamespace

import pytest

from lightning_weightwatch.evidence import Evidence, Watched
from lightning_weightwatch.rules import Finding
from lightning_weightwatch.rules.non_finite_weights import RULE, check
from tests.helpers.shots import train

NAN, INF = float("nan"), float("inf")
SOUND = {"weight_norm": 2.0, "update_norm": 0.1, "grad_norm": 1.0}
LAYERS = [Watched("fc0", 4, True), Watched("fc1", 4, True), Watched("mask", 4, False, kind="other")]


def trained(shots, *, broken_from=99, steps=30, layers=LAYERS, first=0, **options):
    """Return evidence whose gradients of the first two layers are not finite from some step on; the third has none."""

    def norms(step):
        return [INF if step >= broken_from else 1.0] * 2 + [NAN] * (len(layers) - 2)

    return train(Evidence(layers, **options), [1.0] * steps, shots=shots, norms=norms, first=first)


def shot(**columns):
    return SOUND | columns


def verdict(name, nonfinite, kind="linear", trainable=True):
    return SimpleNamespace(name=name, kind=kind, trainable=trainable, nonfinite=nonfinite)


@pytest.mark.parametrize(
    "verdicts",
    [
        pytest.param([], id="no parameters"),
        pytest.param([verdict("a", 0), verdict("b", 0, kind="bias")], id="all finite"),
        pytest.param([verdict("lazy", 0)], id="not measured, and counted as such elsewhere"),
    ],
)
def test_silent(verdicts):
    assert RULE(verdicts) == ()


@pytest.mark.parametrize("kind", ["linear", "convolution", "bias", "norm", "embedding", "other"])
def test_one_element_is_enough_in_a_parameter_of_any_kind(kind):
    (finding,) = RULE([verdict("a", 0), verdict("b", 1, kind)])
    assert (finding.severity, finding.parameters, finding.value) == ("critical", ("b",), 1.0)


def test_a_frozen_layer_is_no_better():
    assert RULE([verdict("backbone.weight", 5, trainable=False)])[0].severity == "critical"


def test_a_frozen_tensor_of_no_layer_may_be_a_mask():
    weights, masks = RULE([verdict("mask", 6, "other", trainable=False), verdict("fc.weight", 1)])
    assert (weights.severity, weights.parameters) == ("critical", ("fc.weight",))
    assert (masks.severity, masks.parameters) == ("warning", ("mask",))


def test_what_is_said():
    (finding,) = RULE([verdict("fc.weight", 3), verdict("fc.bias", 0)])
    assert str(finding) == (
        "CRITICAL at step 0: non_finite_weights. 3 elements of 1 of 2 parameters are NaN or Inf (limit 0) at the "
        "start: fc.weight. Try first: Initialise them, or load an earlier checkpoint."
    )
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding


def test_many_are_one_finding():
    (finding,) = RULE([verdict(f"layer{i}", 2) for i in range(300)])
    assert (len(finding.parameters), finding.value) == (300, 600.0)
    assert finding.saw.endswith("layer0, layer1, layer2, layer3 and 296 more.")


TRAINED_SILENT = [
    pytest.param(trained({}), id="no snapshot"),
    pytest.param(trained({0: SOUND, 10: SOUND}), id="all finite"),
    pytest.param(trained({10: shot(weight_norm=[2.0, NAN, NAN])}), id="not measured"),
    pytest.param(trained({10: shot(weight_norm=[INF, INF, 2.0])}, broken_from=9), id="gradients broke before"),
    pytest.param(
        trained({10: shot(update_norm=INF, grad_norm=[INF, 1.0, NAN])}, broken_from=10), id="with the gradient"
    ),
    pytest.param(trained({10: shot(weight_norm=[2.0, 2.0, INF])}), id="a mask of -Inf that never has a gradient"),
    pytest.param(trained({10: shot(weight_norm=[INF, 2.0, 2.0])}, window=5), id="what was before is forgotten"),
]


@pytest.mark.parametrize("evidence", TRAINED_SILENT)
def test_silent_in_training(evidence):
    assert RULE(evidence) == ()


@pytest.mark.parametrize("step", [0, 10])
def test_weights_that_broke_before_any_gradient_did_are_named(step):
    (finding,) = RULE(trained({step: shot(weight_norm=[2.0, INF, 2.0])}, broken_from=step))
    assert (finding.severity, finding.parameters) == ("critical", ("fc1",))
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (step, 29, 1.0, 0.0)
    assert finding.saw.startswith(f"At step {step} the weights of 1 of 3 parameters")


def test_the_first_such_snapshot_counts():
    shots = {0: SOUND, 10: shot(weight_norm=[INF, 2.0, 2.0]), 20: shot(weight_norm=[INF, INF, 2.0])}
    (finding,) = RULE(trained(shots, broken_from=10))
    assert (finding.since_step, finding.parameters) == (10, ("fc0",))


def test_a_step_that_writes_nan_from_sound_gradients_is_told():
    (finding,) = RULE(trained({10: shot(update_norm=[0.1, INF, 0.1])}, broken_from=11))
    assert (finding.since_step, finding.parameters) == (10, ("fc1",))
    assert finding.saw.startswith("After step 10")


def test_under_a_grad_scaler_broken_gradients_break_no_weight():
    shots = {10: shot(weight_norm=[INF, 2.0, 2.0])}
    assert RULE(trained(shots, broken_from=3, scaled_loss=True))[0].since_step == 10


def test_a_step_between_that_nobody_measured_may_have_broken_the_gradient():
    evidence = Evidence(LAYERS)
    for step in (0, 4, 8):
        train(evidence, [1.0], first=step, shots={8: shot(weight_norm=[INF, 2.0, 2.0])})
    assert RULE(evidence) == ()


def test_steps_are_those_of_the_run_and_training_can_be_silenced():
    evidence = trained({1000: shot(weight_norm=[INF, 2.0, 2.0])}, first=1000)
    assert RULE(evidence)[0].since_step == 1000
    assert list(check(evidence, elements=1)) == []
