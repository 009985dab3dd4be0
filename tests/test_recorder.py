"""What is gathered on every step, against a plain loop."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch.meters import LossMeter
from lightning_weightwatch.parameters import describe, named_tensors
from lightning_weightwatch.recorder import GradientRecorder


def mlp(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def recorder_of(module, rows=16):
    return GradientRecorder(describe(module), named_tensors(module), rows=rows, sharded=False)


def gathered(recorder):
    return recorder.receive(recorder.send({}, agree=True))


def truth(module):
    """Return the gradient norms in float64, and NaN where there is no gradient."""
    return [
        math.nan if p.grad is None else np.linalg.norm(p.grad.to_dense().double().numpy()) for p in module.parameters()
    ]


def recorded(found):
    return np.where(found.measured, found.norms, np.nan).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_and_losses_are_those_of_a_plain_loop(dtype):
    net, norms, losses = mlp(dtype), [], []
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(8, 4).to(dtype)
    for step in range(3, 8):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        recorder.add(step, optimizer, recorder.gradients(optimizer), loss=loss.detach())
        norms.append(pytest.approx(truth(net), rel=1e-5))
        losses.append(loss.item())
        optimizer.step()
    found = gathered(recorder)
    assert found.steps == [3, 4, 5, 6, 7]
    assert recorded(found) == norms
    assert found.losses.tolist() == losses


def test_a_parameter_without_a_gradient_is_not_measured_and_not_zero():
    net = mlp().requires_grad_(False)
    net[2].requires_grad_(True)
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(8, 4)).sum().backward()
    net[4].bias.grad = torch.zeros(2)
    recorder.add(0, optimizer, recorder.gradients(optimizer))
    found = gathered(recorder)
    assert recorded(found) == [pytest.approx(truth(net), rel=1e-5, nan_ok=True)]
    assert found.measured.tolist() == [[False, False, True, True, False, True]]
    assert np.isnan(found.losses).all()


def test_a_sparse_gradient_counts_with_its_repeated_rows_added_up():
    net = nn.Embedding(10, 3, sparse=True)
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.tensor([1, 1, 7])).pow(2).sum().backward()
    recorder.add(0, optimizer, recorder.gradients(optimizer))
    assert recorded(gathered(recorder)) == [pytest.approx(truth(net), rel=1e-5)]


def test_a_complex_gradient_counts_both_parts():
    net = nn.ParameterDict({"wave": torch.ones(1, dtype=torch.complex64)})
    net["wave"].grad = torch.tensor([3 - 4j])
    recorder = recorder_of(net)
    recorder.add(0, optimizer := torch.optim.SGD(net.parameters()), recorder.gradients(optimizer))
    assert recorded(gathered(recorder)) == [[5.0]]


def test_only_the_parameters_of_the_stepping_optimizer_are_measured():
    """The other's gradients are left over from another loss."""
    net = mlp()
    net(torch.randn(8, 4)).sum().backward()
    front, back = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (net[:2], net[2:]))
    recorder = recorder_of(net)
    recorder.add(0, front, recorder.gradients(front))
    recorder.add(1, back, recorder.gradients(back))
    recorder.add(2, front, recorder.gradients(front))
    recorder.add(2, back, recorder.gradients(back))
    assert gathered(recorder).measured.tolist() == [[True] * 2 + [False] * 4, [False] * 2 + [True] * 4, [True] * 6]


def test_of_the_many_gradients_of_an_lbfgs_step_the_first_counts():
    net = nn.Linear(2, 1, bias=False)
    recorder, optimizer = recorder_of(net), torch.optim.LBFGS(net.parameters(), max_iter=5)
    seen, first = [], []

    def closure():
        optimizer.zero_grad()
        loss = (net(torch.tensor([[1.0, 2.0]])) - 3).square().sum()
        loss.backward()
        seen.append(truth(net))
        recorder.add(len(first), optimizer, recorder.gradients(optimizer), loss=loss.detach())
        return loss

    for _ in range(2):
        first.append(len(seen))
        optimizer.step(closure)
    assert first[1] > 1
    assert recorded(gathered(recorder)) == [pytest.approx(seen[i], rel=1e-5) for i in first]


@pytest.mark.parametrize("scale", [1.0, 65536.0, 2.0**-3])
def test_the_scale_is_divided_out(scale):
    net = mlp()
    (net(torch.randn(8, 4)).sum() * scale).backward()
    recorder = recorder_of(net)
    recorder.add(
        0, optimizer := torch.optim.SGD(net.parameters()), recorder.gradients(optimizer), scale=torch.tensor(scale)
    )
    assert recorded(gathered(recorder)) == [pytest.approx([norm / scale for norm in truth(net)], rel=1e-5)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_and_a_loss_that_are_not_finite_do_not_pass_for_numbers(bad):
    net = mlp()
    net(torch.randn(8, 4)).sum().backward()
    net[2].weight.grad[3, 3] = bad
    recorder = recorder_of(net)
    recorder.add(
        0, optimizer := torch.optim.SGD(net.parameters()), recorder.gradients(optimizer), loss=torch.tensor(bad)
    )
    found = gathered(recorder)
    assert np.isfinite(found.norms).tolist() == [[True, True, False, True, True, True]]
    assert found.measured.all()
    assert found.losses.tolist() == [math.inf]


def test_a_recorder_holds_its_rows_and_begins_anew_when_drained():
    net = mlp()
    recorder, optimizer = recorder_of(net, rows=2), torch.optim.SGD(net.parameters())
    for begin in (0, 2, 4):
        recorder.add(begin, optimizer, recorder.gradients(optimizer))
        recorder.add(begin + 1, optimizer, recorder.gradients(optimizer))
        found = gathered(recorder)
        assert found.steps == [begin, begin + 1]
        assert not found.measured.any()
    assert gathered(recorder).steps == []


def test_knows_whether_it_covers_an_optimizer():
    net, stranger = mlp(), nn.Linear(2, 2)
    recorder = recorder_of(net)
    mixed = torch.optim.SGD([*net.parameters(), *stranger.parameters()])
    assert recorder.covers(torch.optim.SGD(net[2].parameters()))
    assert not recorder.covers(mixed)
    recorder.accept(mixed)
    assert recorder.covers(mixed)
    stranger(torch.ones(1, 2)).sum().backward()
    recorder.add(0, mixed, recorder.gradients(mixed))
    assert not gathered(recorder).measured.any()


def test_no_parameter_made_later_gets_the_id_of_one_that_is_watched_or_known_not_to_be():
    net, other = mlp(), mlp()
    recorder = recorder_of(net)
    recorder.accept(torch.optim.SGD(other.parameters(), lr=0.1))
    alive = [weakref.ref(net[0].weight), weakref.ref(other[0].weight)]
    del net, other
    gc.collect()
    assert None not in [reference() for reference in alive]
    del recorder


def test_experts_that_come_and_go_are_each_measured_on_their_steps():
    net = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(8))
    recorder, optimizer = recorder_of(net, rows=200), torch.optim.SGD(net.parameters())
    for step in range(200):
        for i, expert in enumerate(net):
            expert.weight.grad = torch.full((1, 1), float(step)) if step >> i & 1 else None
        recorder.add(step, optimizer, recorder.gradients(optimizer))
    found = gathered(recorder)
    assert found.measured.tolist() == [[bool(step >> i & 1) for i in range(8)] for step in range(200)]
    assert (found.norms == found.measured * np.arange(200.0)[:, None]).all()


def test_a_network_without_watched_parameters_still_has_a_loss():
    recorder = GradientRecorder([], {}, rows=2, sharded=False)
    recorder.add(0, torch.optim.SGD(mlp().parameters()), {}, loss=torch.tensor(2.0))
    found = gathered(recorder)
    assert (found.norms.shape, found.losses.tolist()) == ((1, 0), [2.0])


def test_micro_batches_of_a_window_add_up_to_their_mean():
    meter = LossMeter()
    for loss in (1.0, 2.0, 6.0):
        meter.add(4, torch.tensor(loss) / 3, divided_by=3)
    assert meter.of(4).item() == pytest.approx(3.0)


def test_a_window_cut_short_does_not_look_like_a_smaller_loss():
    """The loss of a last window of one batch of eight was told as an eighth of itself."""
    meter = LossMeter()
    meter.add(0, torch.tensor(2.0) / 8, divided_by=8)
    assert meter.of(0).item() == pytest.approx(2.0)


def test_losses_of_one_step_without_accumulation_add_up():
    meter = LossMeter()
    for loss in (1.0, 2.0):
        meter.add(0, torch.tensor(loss))
    assert meter.of(0).item() == 3.0


def test_a_loss_belongs_to_its_own_step_only():
    meter = LossMeter()
    assert meter.of(-1) is None
    meter.add(0, torch.tensor(1.0))
    meter.add(1, torch.tensor(5.0))
    assert (meter.of(0), meter.of(1).item(), meter.of(2)) == (None, 5.0, None)


@pytest.mark.parametrize(
    ("loss", "scale", "seen"),
    [
        (torch.tensor(6.0 * 1024, requires_grad=True), torch.tensor(1024.0), 6.0),
        (torch.tensor([1.0, 3.0]), None, 2.0),
        (torch.tensor(1.5, dtype=torch.bfloat16), None, 1.5),
        (torch.tensor([[2.0]]), torch.tensor([0.5]), 4.0),
        (torch.tensor(math.nan), torch.tensor(8.0), math.nan),
    ],
    ids=["scaled", "vector", "bfloat16", "odd shapes", "NaN"],
)
def test_a_loss_of_any_make_becomes_one_number_without_a_graph(loss, scale, seen):
    meter = LossMeter()
    meter.add(0, loss, scale=scale)
    assert meter.of(0).item() == pytest.approx(seen, nan_ok=True)
    assert not meter.of(0).requires_grad
