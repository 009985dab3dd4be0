"""A learning rate that undoes what was learnt: silent cases first."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch.evidence import Evidence, Listened, LossCall, Setup, Watched
from lightning_weightwatch.rules.learning_rate_too_high import RULE, check
from tests.helpers.runs import INF, falling
from tests.helpers.shots import SHOTS, train

LAYERS = [Watched(f"fc{i}.weight", 4, True) for i in range(3)] + [Watched("embed.weight", 4, False, kind="embedding")]
NAN = float("nan")
GUESS = LossCall("cross_entropy", classes=10, chance=math.log(10))
noise = np.random.default_rng(0).normal(size=300)


def going(losses, ratios, *, weights=2.0, grads=1.0, setup=None, heard=None, scaled_loss=False, **options):
    """Return evidence of a run with these update ratios at its snapshots, by step."""
    evidence = Evidence(LAYERS, scaled_loss=scaled_loss)
    evidence.setup = setup or Setup()
    if heard is not None:
        evidence.add_reading(Listened(0, losses=(heard,)))
    sizes = weights if callable(weights) else lambda step: weights
    shots = {t: {"update_ratio": r, "weight_norm": sizes(t), "grad_norm": grads} for t, r in ratios.items()}
    return train(evidence, losses, shots=shots, **options)


def always(ratio, steps=SHOTS):
    return dict.fromkeys(steps, ratio)


def at_first(ratio, later=0.01):
    return {0: ratio} | always(later, SHOTS[1:])


EXPLODES = [2.3 * 4.0**t for t in range(10)]
DIES = [2.3, 2.4, 900.0, 80.0] + [2.3] * 46
STUCK = [2.3] * 50
LEARNT = [falling(t) for t in range(61)]
AFTER_A_LEAP = LEARNT + [2.5] * 20
STEADY = {0: 0.1, 10: 0.02, 20: 0.01, 30: 0.01, 40: 0.01, 50: 0.01, 60: 0.01, 70: 0.01}

SILENT = [
    pytest.param(going([falling(t) for t in range(50)], always(0.4)), id="the loss falls, whatever the steps"),
    pytest.param(going(EXPLODES, always(0.001, [0])), id="an explosion after small steps is another illness"),
    pytest.param(
        going([2.3, 4.0, 9.0, 6.0, 4.0, 3.0, 2.4, 2.2, 2.0, 1.8], {0: 0.4}), id="Adam's first steps overshoot"
    ),
    pytest.param(going([2.3, *[30.0] * 4, 14.0, 9.0, 8.0, 7.0, 6.0], {0: 3.0}), id="on its way back"),
    pytest.param(going(STUCK, at_first(0.13)), id="Adam's first steps, then nothing: many reasons"),
    pytest.param(going([2.3] * 29, always(0.1)), id="a plateau of 29 steps"),
    pytest.param(going([*([2.3 + 0.1 * n for n in noise[:50]])], at_first(0.13)), id="noise on a plateau"),
    pytest.param(going(DIES, always([0.001, 0.001, 0.001, 5.0])), id="an embedding's steps do not count"),
    pytest.param(going(DIES, {0: 0.001} | always(9.0, [10, 20])), id="steps that are large after a sudden leap"),
    pytest.param(going(STUCK, always(0.3), weights=lambda t: 2.0 * 0.9**t), id="decay shrinks the weights"),
    pytest.param(going([9.0, *EXPLODES[1:]], {0: 3.0}, heard=GUESS), id="the first loss was off already"),
    pytest.param(going(EXPLODES, {0: 3.0}, grads=1e3), id="the first gradient was huge already"),
    pytest.param(going(EXPLODES, {0: 3.0}, setup=Setup(optimizers=("Adam", "Adam"))), id="opponents"),
    pytest.param(going([-1.0, *EXPLODES[1:]], {0: 3.0}), id="a loss that began below zero"),
    pytest.param(going([2.3, *[None] * 40], {0: 3.0}), id="a loss nobody knows"),
    pytest.param(going([], {}), id="no step yet"),
    pytest.param(going([2.3, 5, 6, 2, 7, 1.9, 6, 5.5, 2, 7], {0: 0.13}), id="noise, ten steps of it"),
    pytest.param(going([2.3, 60.0] + [2.0] * 18, {0: 2.0}), id="a leap that is overcome"),
    pytest.param(
        going([2.3] * 10 + [50.0] + [30.0] * 14, {0: 0.001, 10: 5.0, 20: 0.01}), id="the step that an odd batch makes"
    ),
    pytest.param(
        going([2.3] * 5 + [1.2] * 10 + [7.0] * 15, {0: 0.9, 10: 0.01, 20: 0.01}), id="learnt and lost by small steps"
    ),
    pytest.param(going([NAN] * 20, {0: 3.0}), id="broken from the first step"),
    pytest.param(going([2.3] * 12 + [NAN] * 8, at_first(0.13)), id="a broken batch soon after Adam's first steps"),
    pytest.param(going([2.3, 1.5, 1e9, NAN, NAN], {0: 0.13}), id="an odd batch that breaks the run"),
    pytest.param(going(AFTER_A_LEAP, STEADY), id="a run that loses what it learnt at a steady small rate"),
    pytest.param(
        going([*LEARNT, *[0.9] * 10], STEADY, rate=lambda t: 1e-3 if t < 60 else 0.1),
        id="a warm restart costs a little",
    ),
    pytest.param(going([2.3] * 12 + [5.0] * 8, always(0.01), rate=lambda t: 1e-3 * t), id="trouble during a warm-up"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_a_loss_that_explodes_after_a_huge_first_step_is_told_within_ten_steps():
    (finding,) = RULE(going(EXPLODES, {0: 3.0}))
    assert (finding.severity, finding.parameters) == ("critical", ())
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (0, 9, 3.0, 0.05)
    assert finding.unit == "update over weight"


def test_told_as_the_first_cause_though_it_ends_with_dead_units_and_no_gradient():
    """After the leap every ReLU is silent: steps are zero, and the loss is that of a guess."""
    (finding,) = RULE(going(DIES[:20], {0: 2.0, 10: 0.0}, norms=lambda t: [0.0] * 4 if t > 3 else [1.0] * 4))
    assert (finding.severity, finding.since_step, finding.step, finding.value) == ("warning", 0, 19, 2.0)


def test_a_single_leap_counts_where_all_is_calm_since():
    calm = [2.3, 60.0] + [2.3] * 18
    assert RULE(going(calm, {0: 2.0}))
    noisy = [2.3, 5.0] + [2.3 + abs(n) for n in noise[:18]]
    assert RULE(going(noisy, {0: 2.0})) == ()


def test_a_loss_that_does_not_move_while_steps_stay_large_is_told_after_30_steps():
    (finding,) = RULE(going([2.3] * 30, {0: 0.001, 10: 0.08, 20: 0.09}))
    assert (finding.severity, finding.since_step, finding.step, finding.value) == ("warning", 10, 29, 0.09)


def test_a_loss_that_came_to_chance_and_stays_there_is_told_after_50_steps():
    """It learnt how frequent each class is, and that is all: a first step of nearly the weights threw it there."""
    losses = [2.6, 2.5, 2.4] + [2.32 + 0.01 * n for n in noise[:47]]
    assert [f.since_step for f in RULE(going(losses, at_first(0.9), heard=GUESS))] == [0]
    assert RULE(going(losses[:49], at_first(0.9), heard=GUESS)) == ()
    assert RULE(going(losses, at_first(0.4), heard=GUESS)) == ()


def test_chance_is_a_beginning_too_where_the_first_loss_lay_above_it():
    losses = [2.6, 60.0, 40.0] + [2.31] * 17
    assert [f.step for f in RULE(going(losses, {0: 2.0, 10: 0.0}, heard=GUESS))] == [19]


def test_a_batch_with_few_classes_makes_no_first_loss_too_high():
    heard = LossCall("cross_entropy", classes=10, chance=0.3)
    assert RULE(going(EXPLODES, {0: 3.0}, heard=heard))


@pytest.mark.parametrize("end", [NAN, INF])
def test_a_loss_that_breaks_after_huge_steps_is_told(end):
    (finding,) = RULE(going([2.3, 2.5] + [end] * 8, {0: 0.9}))
    assert (finding.severity, finding.since_step) == ("critical", 0)


def test_a_loss_that_climbed_until_it_broke_speaks_for_itself():
    (finding,) = RULE(going([2.3, 2.2, 3.0, 7.0, 90.0, 1e6, NAN, NAN], {}))
    assert (finding.severity, finding.since_step, finding.value, finding.unit) == ("critical", 3, 1e6, "loss")
    assert RULE(going([2.3, 8.0, 2.2, 7.0, 90.0, 1e6, NAN, NAN], {})) == ()  # something struck it before


def test_gradients_that_break_count_as_a_break_but_for_a_grad_scaler():
    def norms(step):
        return [INF if step >= 3 else 1.0] * 4

    losses = [2.3, 2.3, 2.5, 2.6, 2.7]
    assert RULE(going(losses, {0: 0.9}, norms=norms))
    assert RULE(going(losses, {0: 0.9}, norms=norms, scaled_loss=True)) == ()


def test_one_matrix_whose_steps_replace_it_is_named():
    (finding,) = RULE(going(EXPLODES, {0: [0.001, 0.001, 0.6, 0.0]}))
    assert (finding.parameters, finding.value, finding.limit) == (("fc2.weight",), 0.6, 0.5)


def test_matrices_that_began_at_zero_or_did_not_move_are_left_out():
    weights = lambda t: [0.0, 2.0, 2.0, 2.0] if t == 0 else 2.0  # noqa: E731
    assert RULE(going([2.3] * 30, always([9.0, 0.01, 0.01, 0.0], (0, 10, 20)), weights=weights)) == ()
    assert RULE(going(EXPLODES, {0: [0.2, 0.0, 0.0, 0.0]}))  # two blocked matrices do not hide the third


def test_a_step_that_wrote_nan_is_not_a_large_one():
    assert RULE(going([2.3, 2.5, NAN, NAN], {0: INF})) == ()


def test_large_steps_that_go_on_are_told_since_the_first_of_them():
    losses = [2.3, 2.0, 2.4, 2.9, 3.6, 4.7, 5.5, 7.0, 6.0, 8.0] + [9.0] * 11
    (finding,) = RULE(going(losses, {0: 0.04, 10: 0.5, 20: 0.2}))
    assert (finding.since_step, finding.value, finding.severity) == (10, 0.5, "critical")


def test_a_loss_that_keeps_rising_after_small_steps_has_another_cause():
    losses = [2.3 * 1.2**t for t in range(20)]
    assert RULE(going(losses, {0: 0.13, 10: 0.02})) == ()
    assert RULE(going(losses, {0: 0.6, 10: 0.02}))


def test_a_learning_rate_that_leaps_is_told_since_the_loss_left_its_level():
    (finding,) = RULE(going(AFTER_A_LEAP, STEADY, rate=lambda t: 1e-3 if t < 60 else 0.1))
    assert (finding.severity, finding.since_step, finding.step) == ("critical", 61, 80)
    assert (finding.value, finding.limit, finding.unit) == (0.1, 1e-3, "learning rate")


def test_in_a_run_that_had_learnt_large_steps_at_two_snapshots_in_a_row_are_told():
    ratios = STEADY | {50: 0.09, 60: 0.2}
    (finding,) = RULE(going(AFTER_A_LEAP, ratios))
    assert (finding.since_step, finding.value) == (50, 0.2)
    assert RULE(going(AFTER_A_LEAP, STEADY | {60: 0.2})) == ()


def test_targets_in_large_units_are_no_bad_start():
    """A first loss and gradient as large as the targets' squares are what an untrained network has."""
    heard = LossCall("mse_loss", chance=80.0**2, target_mean=150.0, target_std=80.0)
    losses = [150.0**2 + 80.0**2] + [1e6 * 4.0**t for t in range(9)]
    assert RULE(going(losses, {0: 3.0}, heard=heard, grads=2e4))
    assert RULE(going([10 * loss for loss in losses], {0: 3.0}, heard=heard, grads=2e4)) == ()


def test_limits_can_be_moved():
    assert list(check(going(EXPLODES, {0: 0.02, 10: 0.02}), ratio=0.01))
    assert not list(check(going(EXPLODES, {0: 3.0}), ratio=4.0))
    assert not list(check(going(EXPLODES, {0: 3.0}), rise=1e9))
    assert list(check(going([9.0, *EXPLODES[1:]], {0: 3.0}, heard=GUESS), ordinary=5.0))
    late = going([2.2] * 15 + [2.2 * 4**t for t in range(5)], {0: 3.0, 10: 0.01})
    assert list(check(late))
    assert not list(check(late, near=5))


def trained(rate, optimizer=torch.optim.SGD, steps=20):
    """Train a small classifier for a few steps and return what a monitor would have remembered."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    x, steps_of = torch.randn(256, 16), optimizer(net.parameters(), lr=rate)
    named = list(net.named_parameters())
    evidence = Evidence([Watched(name, p.numel(), p.dim() > 1) for name, p in named])
    for step in range(steps):
        steps_of.zero_grad()
        loss = nn.functional.cross_entropy(net(x), x[:, :5].argmax(1))
        loss.backward()
        grads = [p.grad.norm().item() for _, p in named]
        before = [p.detach().clone() for _, p in named]
        steps_of.step()
        columns = {
            "grad_norm": grads,
            "weight_norm": [w.norm().item() for w in before],
            "update_ratio": [
                (p.detach() - w).norm().item() / w.norm().item() for (_, p), w in zip(named, before, strict=True)
            ],
        }
        shots = {step: columns} if step in SHOTS else {}
        train(evidence, [loss.item()], first=step, norms=lambda t, g=grads: g, shots=shots)
    return evidence


@pytest.mark.parametrize(("optimizer", "good", "bad"), [(torch.optim.SGD, 0.1, 30.0), (torch.optim.Adam, 1e-2, 1.0)])
def test_a_network_that_is_thrown_about_is_told_within_20_steps_and_its_sound_twin_is_not(optimizer, good, bad):
    (finding,) = RULE(trained(bad, optimizer))
    assert (finding.since_step, finding.step) == (0, 19)
    assert RULE(trained(good, optimizer)) == ()
