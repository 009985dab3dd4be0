"""Gradients that shrink on their way back: silent cases first."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch.evidence import Evidence, Setup, Snapshot, Watched
from lightning_weightwatch.rules import Rule
from lightning_weightwatch.rules.vanishing_gradients import RULE
from tests.helpers.chains import chain, dead, snapshot
from tests.helpers.runs import INF, MISSING, STUCK, falling, layers, run

LEVEL = [0.3, 0.5, 0.2, 0.4, 0.3, 0.6]
STEEP = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
GENTLE = [10 ** (-3.5 * (1 - i / 5)) for i in range(6)]


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
    pytest.param(run(lambda t: STEEP, steps=9), id="too few steps to tell"),
    pytest.param(run(lambda t: GENTLE, steps=19), id="too few steps to tell so little"),
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
    assert (finding.since_step, finding.step) == (0, 49)
    assert finding.value == pytest.approx(1e-5)
    assert finding.limit == 1e-3


def test_the_limit_is_a_ratio():
    rule = Rule("vanishing_gradients", RULE.check, limits={"ratio": 1e-6})
    assert rule(run(lambda t: STEEP, steps=50)) == ()
    (finding,) = rule(run(lambda t: [g**2 for g in STEEP], steps=50))
    assert (finding.value, finding.limit) == (pytest.approx(1e-10), 1e-6)


def test_a_steep_profile_is_dated_from_its_beginning():
    (finding,) = RULE(run(lambda t: STEEP if t >= 30 or t == 12 else LEVEL, steps=60))
    assert finding.since_step == 30


def test_steps_are_those_of_the_run_and_not_of_the_window():
    (finding,) = RULE(run(lambda t: STEEP, first=1000, steps=20))
    assert (finding.since_step, finding.step) == (1000, 1019)


def test_the_first_20_steps_are_enough_and_10_where_it_fades_by_far():
    assert RULE(run(lambda t: GENTLE, steps=20))[0].step == 19
    assert RULE(run(lambda t: STEEP, steps=10))[0].step == 9


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


def moving(slow, fast, loss, steps=60):
    """Return a steep run of which the last full statistics show how far its matrices moved."""
    evidence = run(lambda t: STEEP, loss=loss, steps=steps)
    ratios = np.array([slow, slow, fast, fast, fast, fast])
    evidence.add_snapshot(Snapshot(steps - 10, layers(*range(6)), {"update_ratio": ratios}))
    return evidence


@pytest.mark.parametrize(
    ("evidence", "severity"),
    [
        pytest.param(moving(1e-3, 1e-3, falling), "info", id="Adam rescales, the loss falls"),
        pytest.param(moving(1e-3, 1e-3, STUCK), "info", id="Adam rescales, the loss has not fallen yet"),
        pytest.param(moving(1e-3, 1e-3, STUCK, steps=100), "warning", id="Adam rescales, to no avail"),
        pytest.param(moving(9e-5, 1e-3, STUCK), "warning", id="they hardly move"),
        pytest.param(moving(9e-5, 1e-3, falling), "warning", id="they hardly move while the last ones learn"),
        pytest.param(moving(0.0, 0.0, STUCK), "info", id="nothing moves yet: a warm-up"),
    ],
)
def test_how_far_the_layers_move_decides(evidence, severity):
    assert [f.severity for f in RULE(evidence)] == [severity]


def biased(gradient, *, loss=STUCK, steps=20, optimizers=("SGD",), kinds=(), weight=1e-5):
    """Return a run whose matrices have level gradients, and whose biases have those given by depth, 0 to 1."""
    names = [f"l{i}" for i in range(7)]
    norm = lambda step, name: gradient(int(name[1]) / 6) if "bias" in name else weight  # noqa: E731
    evidence = chain(*names, steps=steps, norm=norm, loss=loss, kinds=kinds)
    evidence.setup = Setup(optimizers=optimizers)
    return evidence


def decades(count):
    return lambda depth: 10.0 ** (-count * (1 - depth))


NORMED = ["linear", "norm"] * 3 + ["linear"]


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(biased(decades(2.9)), id="2.9 decades"),
        pytest.param(biased(decades(6), loss=falling), id="the loss falls"),
        pytest.param(biased(decades(6), loss=lambda t: None), id="the loss is unknown"),
        pytest.param(biased(decades(5.9), optimizers=("Adam",)), id="5.9 decades under Adam"),
        pytest.param(biased(decades(-6)), id="growing towards the first layer is another illness"),
        pytest.param(biased(decades(6), kinds=NORMED), id="rounding, before a normalisation"),
    ],
)
def test_silent_on_biases(evidence):
    assert RULE(evidence) == ()


def test_biases_tell_what_the_matrices_hide():
    """Weights a third as large as they should be: what fades forwards makes up for what fades backwards."""
    (finding,) = RULE(biased(decades(8.9)))
    assert (finding.severity, finding.value, finding.limit) == ("warning", pytest.approx(10**-8.9), 1e-3)
    assert finding.parameters == tuple(f"l{i}.weight" for i in range(4))  # nearly 1.5 decades for each layer
    assert "of the biases" in finding.unit


@pytest.mark.parametrize(("steps", "severity"), [(20, "info"), (100, "warning")])
def test_under_adam_biases_must_fade_by_twice_as_many_decades(steps, severity):
    (finding,) = RULE(biased(decades(7), optimizers=("Adam",), steps=steps))
    assert (finding.severity, finding.limit) == (severity, pytest.approx(1e-6))


@pytest.mark.parametrize(("loss", "severity"), [(STUCK, "critical"), (falling, "warning")])
def test_a_matrix_at_exactly_zero_for_30_steps_is_blocked(loss, severity):
    (finding,) = RULE(run(lambda t: [0.0, 0.0, 0.2, 0.3], steps=50, loss=loss))
    assert (finding.severity, finding.parameters) == (severity, layers(0, 1))
    assert (finding.since_step, finding.step, finding.value) == (0, 49, 50.0)


@pytest.mark.parametrize(("loss", "severity"), [(STUCK, "warning"), (falling, "info")])
def test_a_blocked_branch_beside_layers_that_learn_is_less_serious(loss, severity):
    """An expert that is not asked."""
    (finding,) = RULE(run(lambda t: [0.3, 0.0, 0.2, 0.0], steps=50, loss=loss))
    assert (finding.severity, finding.parameters) == (severity, layers(1, 3))


def cut(**shares):
    """Return a run in which the matrices before layer c, and that which takes its output, are at zero."""
    gone = {"a.weight", "b.weight", "c.weight", "d.weight"}
    evidence = chain(*"abcde", steps=50, norm=lambda t, name: 0.0 if name in gone else 0.1)
    dead(evidence, 49, **shares)
    return evidence


def test_a_dead_layer_or_a_matrix_of_zeros_explains_what_is_blocked():
    assert RULE(cut())[0].parameters == ("a.weight", "b.weight", "c.weight", "d.weight")
    assert RULE(cut(a=1.0, b=1.0, c=1.0)) == ()
    zeros = cut()
    snapshot(zeros, 40, weight_norm={"d.weight": 0.0}, update_norm={"d.weight": 0.0})
    assert RULE(zeros) == ()


def test_a_dead_layer_elsewhere_explains_nothing():
    assert RULE(cut(a=0.95))[0].parameters == ("c.weight", "d.weight")


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
