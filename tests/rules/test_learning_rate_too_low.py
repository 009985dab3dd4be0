"""A learning rate so low that nothing happens: silent cases first."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch.evidence import Evidence, Listened, LossCall, Setup, Watched
from lightning_weightwatch.rules.learning_rate_too_low import RULE, check
from tests.helpers.runs import INF, falling
from tests.helpers.shots import SHOTS, train

LAYERS = [Watched("fc1.weight", 4, True), Watched("fc2.weight", 4, True), Watched("fc2.bias", 2, False, kind="bias")]
STUCK = [2.3] * 60
NAN = float("nan")


def crawling(losses=STUCK, *, update=1e-7, grad=0.5, weight=2.0, shots=SHOTS, setup=None, heard=None, **options):
    """Return evidence whose steps change a weight of norm ``weight`` by ``update`` at each snapshot."""
    evidence = Evidence(LAYERS)
    evidence.setup = setup or Setup()
    if heard is not None:
        evidence.add_reading(Listened(0, losses=heard))
    updates = update if callable(update) else lambda step: update
    made = {t: {"update_norm": updates(t), "grad_norm": grad, "weight_norm": weight} for t in shots}
    return train(evidence, losses, shots=made, **options)


GUESS = LossCall("cross_entropy", classes=10, chance=math.log(10))
SILENT = [
    pytest.param(crawling(update=1e-3), id="an ordinary step"),
    pytest.param(crawling(update=1e-7, grad=1e3), id="small steps down a steep slope reach far"),
    pytest.param(crawling(update=3e-4, grad=1e-3), id="large steps down a gentle slope: a rate is not what it lacks"),
    pytest.param(crawling(grad=1e-9), id="hardly any gradient: a higher rate would not help"),
    pytest.param(crawling(grad=0.0), id="no gradient at all"),
    pytest.param(crawling(shots=(0, 10)), id="two snapshots"),
    pytest.param(crawling(shots=()), id="no snapshot"),
    pytest.param(crawling([falling(t) for t in range(60)]), id="the loss falls"),
    pytest.param(crawling([0.3] * 60, heard=(GUESS,)), id="fine-tuning begins low"),
    pytest.param(crawling([-1.0] * 60), id="a loss below zero"),
    pytest.param(crawling([None] * 60), id="a loss nobody knows"),
    pytest.param(crawling(setup=Setup(optimizers=("Adam", "Adam"))), id="opponents"),
    pytest.param(crawling(heard=()), id="no loss function was heard: a reward"),
    pytest.param(crawling(rate=lambda t: 0.1 if t < 20 else 0.01), id="the end of a schedule"),
    pytest.param(
        crawling(update=lambda t: 3e-7 * (t + 1), rate=lambda t: 1e-4 * (t + 1)), id="a warm-up that gets somewhere"
    ),
    pytest.param(crawling([2.3] * 49, rate=lambda t: 0.0), id="a rate of 0 for a short epoch"),
    pytest.param(crawling(norms=lambda t: [INF] * 3, grad=INF), id="broken gradients"),
    pytest.param(crawling(update=lambda t: 1e-7 if t < 40 else 1e-2), id="it was so, and is no more"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_three_snapshots_of_tiny_steps_are_told_since_the_first():
    (finding,) = RULE(crawling([2.3] * 30))
    assert (finding.severity, finding.parameters) == ("warning", ())
    assert (finding.since_step, finding.step, finding.limit) == (0, 29, 1e-4)
    assert finding.value == pytest.approx(1e-7 / 2.0)
    reach = 1000 * 3 * 1e-7 * 0.5 / 2.3  # of all three parameters
    assert f"lower the loss by {reach:.2%} at most" in finding.saw


def test_the_onset_is_the_first_of_those_in_a_row():
    assert RULE(crawling(update=lambda t: 1e-2 if t < 20 else 1e-7))[0].since_step == 20


def test_weights_that_are_left_as_they_are_have_a_ratio_of_zero():
    assert RULE(crawling(update=0.0))[0].value == 0.0


def test_a_warm_up_without_end_gets_nowhere():
    (finding,) = RULE(crawling(update=lambda t: 3e-8 * (t + 1), rate=lambda t: 1e-7 * (t + 1)))
    assert finding.since_step == 0
    rates = [1e-7 * (t + 1) for t in range(41, 1041)]
    reach = sum(3 * 3e-8 * 0.5 * rate / 1e-7 for rate in rates) / 2.3
    told = float(finding.saw.split(" by ")[2].split("%")[0]) / 100
    assert told == pytest.approx(reach, rel=0.02)


def test_50_steps_at_a_rate_of_zero_are_told():
    (finding,) = RULE(crawling([2.3] * 60, shots=(), rate=lambda t: 0.0 if t >= 10 else 0.1))
    assert (finding.since_step, finding.value, finding.limit) == (10, 50.0, 50.0)
    assert finding.unit == "steps in a row at a rate of 0"


def test_an_unknown_rate_is_no_excuse():
    assert RULE(crawling(rate=lambda t: None))


def test_a_loss_at_the_level_of_a_guess_is_no_fine_tuning():
    assert RULE(crawling(heard=(GUESS,)))


def test_limits_can_be_moved():
    evidence = crawling()
    for limit in ({"ratio": 1e-8}, {"reach": 1e-5}, {"flow": 1.0}, {"snapshots": 6}):
        assert not list(check(evidence, **limit))
    assert list(check(crawling(shots=(), rate=lambda t: 0.0), zeros=60))
    assert not list(check(crawling(shots=(), rate=lambda t: 0.0), zeros=61))


def trained(make, steps=30):
    """Train a small classifier and return what a monitor would have remembered."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    x, optimizer = torch.randn(256, 8), make(net.parameters())
    named = list(net.named_parameters())
    evidence = Evidence([Watched(name, p.numel(), p.dim() > 1) for name, p in named])
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), x[:, :3].argmax(1))
        loss.backward()
        before = [p.detach().clone() for _, p in named]
        optimizer.step()
        taken = {
            "grad_norm": [p.grad.norm().item() for _, p in named],
            "weight_norm": [w.norm().item() for w in before],
            "update_norm": [(p.detach() - w).norm().item() for (_, p), w in zip(named, before, strict=True)],
        }
        train(evidence, [loss.item()], first=step, norms=lambda t, g=taken["grad_norm"]: g)
        if step % 10 == 0:
            columns = {key: np.array(value) for key, value in taken.items()}
            train(evidence, [None], first=step, shots={step: columns}, norms=lambda t: [NAN] * len(named))
    return evidence


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_network_that_crawls_is_told_and_one_that_walks_is_not(optimizer):
    assert [f.since_step for f in RULE(trained(lambda p: optimizer(p, lr=1e-7)))] == [0]
    assert RULE(trained(lambda p: optimizer(p, lr=1e-2))) == ()
