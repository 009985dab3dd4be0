"""Gradients that shrink on their way back: silent cases first."""

import pytest
import torch
from torch import nn

from lightning_weightwatch.evidence import Evidence, Watched
from lightning_weightwatch.rules.vanishing_gradients import RULE
from tests.helpers.runs import INF, MISSING, falling, layers, run

LEVEL = [0.3, 0.5, 0.2, 0.4, 0.3, 0.6]
STEEP = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]


def odd(place, value=1e-9, width=6):
    return [value if i == place else 1.0 for i in range(width)]


SILENT = [
    pytest.param(run(lambda t: LEVEL), id="a level profile"),
    pytest.param(run(lambda t: [10 ** (-1.8 * (1 - i / 5)) for i in range(6)]), id="1.8 decades, the healthy most"),
    pytest.param(run(lambda t: [g * 0.8**t for g in LEVEL], loss=falling), id="converged: all fell alike"),
    pytest.param(run(lambda t: [g * 1e-9 for g in LEVEL]), id="a loss divided by a constant"),
    pytest.param(run(lambda t: [g * 65536 for g in LEVEL]), id="gradients still scaled"),
    pytest.param(run(lambda t: [g * 390 for g in LEVEL], loss=lambda t: 1e6), id="large regression targets"),
    pytest.param(run(lambda t: [0, 0, *LEVEL] if t < 2 else [0.1, 0.1, *LEVEL]), id="zero-init residual, two steps"),
    pytest.param(run(lambda t: [0.0 if t == 0 else 0.1, 0.5]), id="LoRA: A waits one step for B"),
    pytest.param(run(lambda t: [MISSING, MISSING, *LEVEL]), id="frozen layers"),
    pytest.param(run(lambda t: [1e-9, 1.0]), id="two layers make no profile"),
    *[pytest.param(run(lambda t, i=i: odd(i)), id=f"one odd layer of six, at {i}") for i in range(6)],
    pytest.param(run(lambda t: [1e-9, *LEVEL], matrices=[False] + [True] * 6), id="an embedding is no matrix"),
    pytest.param(run(lambda t: [*LEVEL, 0.0], matrices=[True] * 6 + [False]), id="a bias at exactly zero"),
    pytest.param(
        run(lambda t: [MISSING] * 3 + LEVEL[:3] if t % 2 else LEVEL[3:] + [MISSING] * 3), id="GAN: every other step"
    ),
    pytest.param(
        run(lambda t: [0.0, *LEVEL] if t % 10 else [0.1, *LEVEL]), id="an expert that is asked every tenth step"
    ),
    pytest.param(run(lambda t: [INF] * 6 if t < 8 else LEVEL, scaled_loss=True), id="AMP looks for its scale"),
    pytest.param(run(lambda t: STEEP if t == 30 else LEVEL), id="one bad batch"),
    pytest.param(run(lambda t: [g**2 for g in STEEP] if t % 5 < 2 else LEVEL), id="two bad batches of five"),
    pytest.param(run(lambda t: [MISSING if t % 4 else 1e-9, 1.0, 1.0]), id="a layer that is seldom used"),
    pytest.param(run(lambda t: STEEP, steps=19), id="too few steps to tell"),
    pytest.param(run(lambda t: [0.0] * 4), id="nothing learns: not this rule's business"),
    pytest.param(run(lambda t: [0.0, *LEVEL], steps=30), id="zero for 30 steps, but some while it settles"),
    pytest.param(run(lambda t: [0.0 if t > 30 else 0.1, *LEVEL]), id="zero for 29 steps"),
    pytest.param(run(lambda t: STEEP[::-1]), id="growing towards the first layer is another illness"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_a_steep_profile_names_the_layers_that_hardly_learn():
    (finding,) = RULE(run(lambda t: STEEP, steps=50))
    assert (finding.severity, finding.parameters) == ("warning", layers(0, 1))
    assert (finding.since_step, finding.step) == (30, 49)
    assert finding.value == pytest.approx(5.0)
    assert finding.limit == 3.0


def test_steps_are_those_of_the_run_and_not_of_the_window():
    (finding,) = RULE(run(lambda t: STEEP, first=1000, steps=20))
    assert (finding.since_step, finding.step) == (1000, 1019)


def test_the_first_20_steps_are_enough():
    assert RULE(run(lambda t: STEEP, steps=20))


@pytest.mark.parametrize(
    ("loss", "severity"), [(falling, "info"), (lambda t: None, "warning"), (lambda t: 2.3, "warning")]
)
def test_while_the_loss_falls_a_steep_profile_is_worth_knowing_only(loss, severity):
    assert [f.severity for f in RULE(run(lambda t: STEEP, loss=loss))] == [severity]


def test_frozen_and_skipped_gradients_do_not_hide_the_profile():
    def norms(t):
        return [INF] * 7 if t % 9 == 0 else [MISSING, *STEEP]

    (finding,) = RULE(run(norms))
    assert finding.parameters == layers(1, 2)


@pytest.mark.parametrize(
    "profile", [[1e-6] * 3 + [1.0] * 3, [1e-6] * 5 + [1e-2] * 5, [1e-4, 1.0, 1.0, 1.0, 1.0]], ids=str
)
def test_two_levels_are_not_told_as_a_trend(profile):
    """Two healthy networks side by side were told as one whose gradients fade: R² of a step is 0.75."""
    assert RULE(run(lambda t: profile)) == ()


def test_one_odd_layer_of_few_is_not_told_as_a_trend():
    """Three layers of which the last had a larger gradient were told as vanishing: R² of such a line is 0.75."""
    for width in (3, 4, 5):
        for place in (0, width - 1):
            assert RULE(run(lambda t, w=width, p=place: odd(p, 1e-4, w))) == ()
            assert RULE(run(lambda t, w=width, p=place: odd(p, 1e4, w))) == ()


def test_networks_that_take_turns_are_told_too():
    """A matrix measured in half of the steps was left out of the profile."""
    (finding,) = RULE(run(lambda t: STEEP + [MISSING] * 6 if t % 2 else [MISSING] * 6 + LEVEL))
    assert finding.parameters == layers(0, 1, 2, 3)  # below a thousandth of the largest, 0.6


@pytest.mark.parametrize(("loss", "severity"), [(lambda t: 2.3, "critical"), (falling, "warning")])
def test_a_matrix_at_exactly_zero_for_30_steps_is_blocked(loss, severity):
    (finding,) = RULE(run(lambda t: [0.3, 0.0, 0.2, 0.0], steps=50, loss=loss))
    assert (finding.severity, finding.parameters) == (severity, layers(1, 3))
    assert (finding.since_step, finding.step, finding.value) == (0, 49, 50.0)


def test_a_matrix_that_dies_later_is_blocked_from_then_on():
    (finding,) = RULE(run(lambda t: [0.0 if t >= 40 else 0.1, *LEVEL], steps=70))
    assert (finding.parameters, finding.since_step) == (layers(0), 40)


def trained(activation, gain):
    """Train eight layers for 25 steps and return what a monitor would have remembered."""
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(16, 16), activation())], nn.Linear(16, 3))
    for layer in net[:-1:2]:
        nn.init.normal_(layer.weight, std=gain / 4)
        nn.init.zeros_(layer.bias)
    named = [(name, p) for name, p in net.named_parameters() if p.dim() == 2]
    evidence = Evidence([Watched(name, p.numel(), True) for name, p in named])
    x, optimizer = torch.randn(32, 16), torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), x[:, :3].argmax(1))
        loss.backward()
        evidence.add(step, [p.grad.norm().item() for _, p in named], loss=loss.item())
        optimizer.step()
    return evidence


def test_a_deep_sigmoid_network_is_told_and_its_relu_twin_is_not():
    (finding,) = RULE(trained(nn.Sigmoid, 1.0))
    assert finding.severity == "warning"
    assert finding.parameters[0] == "0.weight"
    assert RULE(trained(nn.ReLU, 2**0.5)) == ()
