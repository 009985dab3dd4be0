"""Steps that half precision rounds away: silent cases first."""

import numpy as np
import pytest
import torch

from lightning_weightwatch.evidence import Evidence, Setup, Watched
from lightning_weightwatch.rules.lost_updates import RULE, check
from tests.helpers.runs import INF, falling
from tests.helpers.shots import SHOTS, train

LAYERS = [
    Watched("fc1.weight", 100, True),
    Watched("fc2.weight", 300, True),
    Watched("norm.weight", 10, False, kind="norm"),
    Watched("fc2.bias", 10, False, kind="bias"),
]
NAMES = tuple(p.name for p in LAYERS)
STUCK = [2.3] * 50
LOST = {"update_zero_share": 0.99, "grad_zero_share": 0.0}


def half(losses=STUCK, shots=None, *, setup=Setup(half=NAMES), layers=LAYERS, scaled_loss=False, **options):  # noqa: B008
    evidence = Evidence(layers, scaled_loss=scaled_loss)
    evidence.setup = setup
    return train(evidence, losses, shots=dict.fromkeys(SHOTS, LOST) if shots is None else shots, **options)


def shots(lost, zero=0.0):
    return {step: {"update_zero_share": lost, "grad_zero_share": zero} for step in SHOTS}


SILENT = [
    pytest.param(half(setup=Setup()), id="weights in float32, which dead units leave alone too"),
    pytest.param(half(shots={}), id="no snapshot"),
    pytest.param(half(shots={0: LOST}), id="one snapshot"),
    pytest.param(half(shots=shots(0.5)), id="half of the elements, as at a good rate in float16"),
    pytest.param(half(shots=shots(0.96, zero=0.95)), id="sparse gradients move what they reach"),
    pytest.param(half(shots=shots(0.9, zero=0.7)), id="most elements have no gradient"),
    pytest.param(half(shots=shots([0.2, 0.2, 0.2, 0.99])), id="a bias of few elements"),
    pytest.param(half(rate=lambda t: 0.0), id="no rate at all: another illness"),
    pytest.param(half(rate=lambda t: 1e-6 * t), id="a warm-up"),
    pytest.param(half(rate=lambda t: 1e-6 if t > 15 else 0.1), id="the end of a schedule"),
    pytest.param(half(norms=lambda t: [INF] * 4, scaled_loss=True), id="a GradScaler skipped the steps"),
    pytest.param(half(shots={0: LOST, 10: LOST, 20: shots(0.1)[0]}), id="it was so, and is no more"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_two_measured_steps_are_enough_and_name_the_weights():
    (finding,) = RULE(half([2.3] * 20, {0: LOST, 10: LOST}))
    assert (finding.severity, finding.parameters) == ("warning", NAMES[:3])
    assert (finding.since_step, finding.step, finding.limit) == (0, 19, 0.5)
    assert finding.value == pytest.approx(0.99)


def test_what_counts_is_the_share_of_the_elements_that_have_a_gradient():
    (finding,) = RULE(half(shots=shots(0.8, zero=0.4)))
    assert finding.value == pytest.approx(0.4 / 0.6)


def test_norm_gains_alone_are_a_note():
    (finding,) = RULE(half(shots=shots([0.1, 0.1, 1.0, 0.1])))
    assert (finding.severity, finding.parameters) == ("info", ("norm.weight",))


def test_the_few_elements_of_a_small_matrix_are_a_note_and_those_of_a_large_one_are_not():
    assert [f.severity for f in RULE(half(shots=shots([0.99, 0.1, 0.1, 0.1])))] == ["info"]
    assert [f.severity for f in RULE(half(shots=shots([0.1, 0.99, 0.1, 0.1])))] == ["warning"]


@pytest.mark.parametrize(("losses", "severity"), [([falling(t) for t in range(50)], "info"), ([None] * 50, "warning")])
def test_while_the_loss_falls_it_is_worth_knowing_only(losses, severity):
    assert [f.severity for f in RULE(half(losses))] == [severity]


def test_limits_can_be_moved():
    assert not list(check(half(), share=0.995))
    assert not list(check(half(), snapshots=6))
    assert [f.severity for f in check(half(), most=0.999)] == ["info"]


def trained(dtype, rate):
    """Train one layer and return what its snapshots say."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 64).to(dtype))
    optimizer, x = torch.optim.SGD([weight], lr=rate), torch.randn(128, 64).to(dtype)
    taken = {}
    for step in range(20):
        optimizer.zero_grad()
        (x @ weight).square().mean().backward()
        before = weight.detach().clone()
        optimizer.step()
        taken[step] = {
            "update_zero_share": float((weight.detach() == before).float().mean()),
            "grad_zero_share": float((weight.grad == 0).float().mean()),
        }
    evidence = Evidence([Watched("fc.weight", 4096, True)])
    evidence.setup = Setup(half=("fc.weight",))
    return train(evidence, [2.3] * 20, shots={step: taken[step] for step in (0, 10)})


def test_a_layer_in_bfloat16_is_told_at_a_low_rate_and_not_at_a_good_one():
    (finding,) = RULE(trained(torch.bfloat16, 1e-2))
    assert finding.parameters == ("fc.weight",)
    assert 0.9 < finding.value < 1
    assert RULE(trained(torch.bfloat16, 3.0)) == ()
    assert RULE(trained(torch.float32, 1e-2)) == ()


def test_a_weight_without_a_known_share_is_no_error():
    columns = {"update_zero_share": [0.99, np.nan, np.nan, np.nan], "grad_zero_share": 0.0}
    assert RULE(half(shots=dict.fromkeys(SHOTS, columns)))[0].parameters == ("fc1.weight",)
