"""Parameters that nobody wrote: silent cases first."""

import pytest
import torch
from torch import nn

from lightning_weightwatch.audit import audit_init
from lightning_weightwatch.evidence import Initial
from lightning_weightwatch.rules.never_initialised import RULE, check
from tests.helpers.verdicts import parameter, zeros


def unseen(why, name="a.weight", **fields):
    return parameter(name, unmeasurable=why, abs_max=None, std=None, mean=None, content="", **fields)


def nowhere(name, **fields):
    return unseen("on the meta device, without values", name, **fields)


def gain(name, constant):
    return parameter(name, kind="norm", shape=(64,), constant=constant, abs_max=constant)


SOUND = [parameter(f"{i}.weight") for i in range(3)]
SILENT = [
    pytest.param([], id="no parameters"),
    pytest.param(SOUND, id="drawn"),
    pytest.param([unseen("uninitialised lazy parameter")], id="a lazy parameter waits for the first batch"),
    pytest.param([unseen("flattened into one tensor with others")], id="not measured for another reason"),
    pytest.param([parameter("a.weight", abs_max=1e8)], id="at the limit"),
    pytest.param([parameter("a.weight", abs_max=1e-20)], id="tiny, at the limit"),
    pytest.param([parameter("sam.weight", std=1e-10, abs_max=5e-10)], id="a library's std of 1e-10"),
    pytest.param([parameter("mask", kind="other", trainable=False, abs_max=3.4e38)], id="a frozen mask"),
    pytest.param(
        [parameter("modulus", kind="other", shape=(3,), abs_max=2e11)], id="physical constants that are fitted"
    ),
    pytest.param([parameter("mask.weight", constant=-1e9, abs_max=1e9)], id="somebody wrote that constant"),
    pytest.param([parameter("b", kind="bias", shape=(64,), abs_max=1e-30)], id="a tiny bias does no harm"),
    pytest.param([parameter("a.weight", abs_max=None)], id="largest magnitude unknown"),
    pytest.param([*SOUND, gain("n.weight", 0.0)], id="the last gain of a branch is zero"),
    pytest.param([*SOUND[:2], zeros("b"), zeros("c"), gain("n.weight", 0.0)], id="half of the matrices are zero"),
    pytest.param(
        [parameter("a.weight"), zeros("b"), zeros("n.weight", kind="norm")], id="gains of several dimensions are none"
    ),
    pytest.param([parameter("a.weight"), zeros("b"), zeros("c"), gain("n.weight", 1.0)], id="most, but no leftovers"),
    pytest.param([zeros("a.weight"), zeros("b.weight")], id="zeros without norms may be meant"),
    pytest.param(Initial([parameter("a.weight", abs_max=1e30)], resumed=True), id="what was loaded was written"),
]


@pytest.mark.parametrize("initial", SILENT)
def test_silent(initial):
    assert RULE(initial) == ()


@pytest.mark.parametrize(("trainable", "severity"), [(True, "warning"), (False, "info")])
def test_parameters_on_the_meta_device_are_told(trainable, severity):
    (finding,) = RULE([*SOUND, nowhere("a.weight", trainable=trainable), nowhere("b.weight", trainable=False)])
    assert (finding.severity, finding.parameters) == (severity, ("a.weight", "b.weight"))
    assert (finding.value, finding.limit) == (2.0, 0.0)
    assert finding.saw.startswith("2 of 5 parameters are still on the meta device (limit 0)")


def test_on_the_meta_device_they_are_told_after_a_resume_too():
    assert [f.severity for f in RULE(Initial([nowhere("a.weight")], resumed=True))] == ["warning"]


@pytest.mark.parametrize(
    "ill",
    [
        parameter("a.weight", abs_max=1.1e8),
        parameter("a.weight", kind="embedding", abs_max=3e38),
        parameter("a.weight", kind="other", abs_max=2e10),
        parameter("a.weight", kind="bias", shape=(64,), abs_max=2e10),
        parameter("a.weight", kind="norm", shape=(64,), abs_max=2e10),
        parameter("a.weight", trainable=False, abs_max=2e10),
    ],
    ids=lambda v: f"{v.kind} {v.abs_max:g}",
)
def test_a_magnitude_that_nothing_draws_is_critical(ill):
    (finding,) = RULE([*SOUND, ill])
    assert (finding.severity, finding.parameters) == ("critical", ("a.weight",))
    assert (finding.value, finding.limit) == (ill.abs_max, 1e8)


def test_a_matrix_of_next_to_nothing_is_a_warning():
    (finding,) = RULE([*SOUND, parameter("a.weight", abs_max=2e-38), parameter("b.weight", abs_max=1e-40)])
    assert (finding.severity, finding.parameters) == ("warning", ("a.weight", "b.weight"))
    assert (finding.value, finding.limit) == (2e-38, 1e-20)


def test_zero_gains_beside_zero_matrices_are_fresh_memory():
    (finding,) = RULE([parameter("a.weight"), zeros("b.weight"), gain("n.weight", 0.0), zeros("c.weight")])
    assert (finding.severity, finding.parameters) == ("critical", ("b.weight", "n.weight", "c.weight"))
    assert (finding.value, finding.limit) == (pytest.approx(2 / 3), 0.5)


def test_zero_matrices_are_told_with_leftovers_beside_them():
    bias = parameter("c.bias", kind="bias", shape=(64,), abs_max=9e14)
    (finding,) = RULE([zeros("a.weight"), zeros("b.weight"), parameter("c.weight", abs_max=1e-39), bias])
    assert str(finding) == (
        "CRITICAL at step 0: never_initialised. Of 4 parameters there are 1 with magnitudes up to 9e+14 (limit 1e+08), "
        "2 of zeros, whose share of all matrices is 0.667 (limit 0.5), 1 with nothing above 1e-39 (limit 1e-20); so "
        "looks memory that nobody wrote: a.weight, b.weight, c.weight, c.bias. Try first: Call reset_parameters() of "
        "their modules, or initialise what torch.empty or to_empty made."
    )


def test_limits_can_be_moved():
    assert list(check([parameter("a.weight", abs_max=50.0)], huge=10.0))
    assert list(check([parameter("a.weight", abs_max=1e-6)], tiny=1e-5))
    assert list(check([parameter("a.weight"), zeros("b"), gain("n", 0.0)], most=0.4))


# --- real memory ------------------------------------------------------------------------------------------------------


def network():
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4))


def test_a_network_on_the_meta_device():
    with torch.device("meta"):
        model = network()
    (finding,) = audit_init(model).findings
    assert (finding.rule, finding.value) == ("never_initialised", 8.0)


@pytest.mark.parametrize("left", [3.4e38, 4.6e-41, 0.0])
def test_what_lay_in_memory_is_told_and_gone_after_a_reset(left):
    with torch.device("meta"):
        model = network()
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_().flatten()[0] = left
    assert {"never_initialised"} == {f.rule for f in audit_init(model).findings}
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert audit_init(model).findings == ()
