"""Units that no gradient reaches: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Activation, DeadUnits, Evidence, Setup, Watched
from lightning_weightwatch.rules.dead_units import RULE
from tests.helpers.chains import MISSING, chain, dead, hear, snapshot
from tests.helpers.runs import falling

LAYERS = ("a", "b", "c", "head")


def run(*, steps=60, at=59, heard=None, **shares):
    """Return a run with a reading of dead units at the end, and activations heard in the passes before it."""
    options = {key: shares.pop(key) for key in ("loss", "norm", "kinds", "rates") if key in shares}
    evidence = chain(*LAYERS, steps=steps, **options)
    for layer, silent in (heard or {}).items():
        hear(evidence, at - 5, activations=(Activation("relu", f"{layer}.weight", 64, dead=silent),))
    dead(evidence, at, **shares)
    return evidence


def too_early():
    evidence = chain(*LAYERS, steps=15)
    dead(evidence, 14, steps=15, b=1.0)
    return evidence


def behind_zeros():
    evidence = run(a=1.0, b=1.0)
    snapshot(evidence, 50, weight_norm={"c.weight": 0.0}, update_norm={"c.weight": 0.0})
    return evidence


def at_flat_ends():
    evidence = run(b=1.0)
    hear(evidence, 55, activations=(Activation("tanh", "b.weight", 64, saturated=0.9),))
    return evidence


def recovered():
    evidence = run(b=0.9, at=39)
    dead(evidence, 59, b=0.2)
    return evidence


def rows_of_an_embedding():
    evidence = Evidence([Watched("table", 640, False, kind="embedding"), Watched("fc.weight", 640, True, 1)])
    for step in range(40):
        evidence.add(step, [0.1, 0.1], loss=2.3)
    evidence.add_reading(DeadUnits(39, 20, np.array([0.9, 0.0])))
    return evidence


SILENT = [
    pytest.param(run(), id="all alive"),
    pytest.param(run(a=0.25, b=0.2), id="a quarter, the healthy most"),
    pytest.param(too_early(), id="15 steps are too few"),
    pytest.param(run(head=0.9), id="classes that are absent from the data"),
    pytest.param(run(b=0.9, heard={"b": 0.1}), id="its ReLUs speak: something else stops the gradient"),
    pytest.param(run(b=1.0, norm=lambda t, n: MISSING if n[0] == "b" else 0.1), id="frozen after it was counted"),
    pytest.param(behind_zeros(), id="behind a matrix of zeros"),
    pytest.param(at_flat_ends(), id="a saturated tanh is another illness"),
    pytest.param(recovered(), id="they came back"),
    pytest.param(run(c=1.0), id="an expert that is not asked, beside layers that learn"),
    pytest.param(rows_of_an_embedding(), id="words that do not occur"),
    pytest.param(chain(*LAYERS), id="not read yet"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


@pytest.mark.parametrize(
    ("share", "severity", "limit"), [(0.3, "info", 0.25), (0.6, "warning", 0.5), (0.95, "critical", 0.9)]
)
def test_the_severity_follows_from_the_share_while_the_loss_does_not_fall(share, severity, limit):
    (finding,) = RULE(run(b=share))
    assert (finding.severity, finding.value, finding.limit) == (severity, share, limit)
    assert finding.parameters == ("b.bias",)
    assert (finding.since_step, finding.step) == (40, 59)


@pytest.mark.parametrize(("share", "severity"), [(0.6, "info"), (0.95, "info")])
def test_while_the_loss_falls_it_is_worth_knowing_only(share, severity):
    """Sparse autoencoders, pruned layers."""
    assert [f.severity for f in RULE(run(b=share, loss=falling))] == [severity]


def test_nearly_all_dead_is_a_warning_unless_the_loss_has_halved():
    assert [f.severity for f in RULE(run(b=0.95, loss=lambda t: 2.3 if t < 9 else 1.7))] == ["warning"]


@pytest.mark.parametrize(
    "setup", [{"loss": lambda t: None}, {"loss": lambda t: -1.0}, {"rates": lambda t: t / 100}], ids=str
)
def test_where_the_loss_cannot_tell_it_is_a_warning_at_most(setup):
    assert [f.severity for f in RULE(run(b=0.95, **setup))] == ["warning"]


def test_opponents_need_not_have_a_falling_loss():
    evidence = run(b=0.95)
    evidence.setup = Setup(optimizers=("Adam", "Adam"))
    assert [f.severity for f in RULE(evidence)] == ["warning"]


def test_the_dead_layer_is_named_and_not_those_before_it_whose_relus_speak():
    """A dead layer takes the gradient of all before it."""
    (finding,) = RULE(run(a=1.0, b=1.0, norm=lambda t, n: 0.0 if n[0] in "ab" else 0.1, heard={"a": 0.1, "b": 1.0}))
    assert (finding.severity, finding.parameters) == ("critical", ("b.bias",))


def test_without_anything_heard_the_one_nearest_the_loss_is_named():
    (finding,) = RULE(run(a=1.0, b=1.0, norm=lambda t, n: 0.0 if n[0] in "ab" else 0.1))
    assert (finding.severity, finding.parameters) == ("critical", ("b.bias",))


def test_a_dead_branch_beside_layers_that_learn_is_a_warning():
    silent = run(c=1.0, heard={"c": 1.0}, norm=lambda t, n: 0.0 if n[0] == "c" else 0.1)
    assert [f.severity for f in RULE(silent)] == ["warning"]


def test_no_more_units_are_told_dead_than_were_ever_heard_silent():
    """Units that always speak have a bias gradient of exactly 0 in a critic whose output counts with both signs."""
    (finding,) = RULE(run(b=0.7, heard={"b": 0.4}))
    assert (finding.severity, finding.value) == ("info", 0.4)


def test_a_bias_whose_gradient_adds_up_to_nothing_is_not_dead():
    """A critic's output counts with a plus and a minus, so its bias has no gradient, but its weight has."""
    assert RULE(run(c=1.0, heard={"c": 1.0})) == ()


def test_the_last_layer_counts_where_a_silent_activation_follows_it():
    (finding,) = RULE(run(head=1.0, norm=lambda t, n: 0.0, heard={"head": 1.0}))
    assert (finding.severity, finding.parameters) == ("critical", ("head.bias",))


def test_a_pass_before_they_died_does_not_speak_for_them():
    evidence = chain(*LAYERS, steps=80)
    hear(evidence, 30, activations=(Activation("relu", "b.weight", 64, dead=0.1),))
    dead(evidence, 39)
    dead(evidence, 79, b=0.95)
    assert [f.severity for f in RULE(evidence)] == ["critical"]
    hear(evidence, 65, activations=(Activation("relu", "b.weight", 64, dead=0.1),))
    assert RULE(evidence) == ()


def test_it_goes_on_until_less_than_a_quarter_is_dead():
    evidence = chain(*LAYERS, steps=100)
    for step, share in ((39, 0.1), (59, 0.6), (79, 0.4), (99, 0.3)):
        dead(evidence, step, b=share)
    (finding,) = RULE(evidence)
    assert (finding.severity, finding.value, finding.since_step) == ("warning", 0.6, 40)


@pytest.mark.parametrize(("share", "severity"), [(0.68, "info"), (0.70, "warning")])
def test_from_the_first_step_on_half_may_be_silent_by_chance(share, severity):
    """Three standard deviations of tossing 64 coins: 0.5 + 3 * 0.5 / 8 = 0.6875."""
    (finding,) = RULE(run(b=share, steps=20, at=19))
    assert (finding.severity, finding.since_step) == (severity, 0)


def test_a_norms_bias_is_silent_where_the_activation_after_its_convolution_is():
    kinds = ["linear", "linear", "norm", "linear"]
    (finding,) = RULE(run(c=0.95, kinds=kinds, heard={"b": 0.9}))
    assert finding.parameters == ("c.bias",)
    assert RULE(run(c=0.95, kinds=kinds, heard={"b": 0.1})) == ()


def test_a_long_stride_dates_it_by_the_steps_that_were_measured():
    evidence = chain(*LAYERS, steps=0)
    for step in range(0, 400, 10):
        evidence.add(step, [0.1] * 8, loss=2.3)
    dead(evidence, 390, b=0.95)
    assert RULE(evidence)[0].since_step == 200
