"""NaN and Inf in weights: silent cases first."""

import json
from types import SimpleNamespace

import pytest

from lightning_weightwatch.rules import Finding
from lightning_weightwatch.rules.non_finite_weights import RULE


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
