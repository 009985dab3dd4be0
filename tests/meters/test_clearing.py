"""Whether gradients were cleared, told of trainings of which it is known."""

import gc

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_weightwatch.meters import ClearingMeter, owned

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Training:
    """Two layers in a row, and a meter that is told what the monitor would tell it."""

    def __init__(self, set_to_none=True):
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)
        self.net = nn.Sequential(self.first, nn.Tanh(), self.second)
        self.meter, self.set_to_none = ClearingMeter(), set_to_none
        self.seen = []

    def optimizer(self, module=None, make=torch.optim.SGD):
        return make((module or self.net).parameters(), lr=0.1)

    def zero(self, optimizer):
        optimizer.zero_grad(set_to_none=self.set_to_none)

    def back(self, loss=None):
        self.meter.before_backward()
        (self.net(X).square().mean() if loss is None else loss).backward()

    def note(self, optimizer):
        left = self.meter.before_step(optimizer, owned(optimizer))
        self.seen.append(bool(left > 0) if isinstance(left, torch.Tensor) else left)

    def step(self, optimizer):
        self.note(optimizer)
        optimizer.step()


both = pytest.mark.parametrize("set_to_none", [True, False], ids=["None", "zeros"])


def plain(t):
    optimizer = t.optimizer()
    for _ in range(4):
        t.zero(optimizer)
        t.back()
        t.step(optimizer)


def between_forward_and_backward(t):
    optimizer = t.optimizer()
    for _ in range(4):
        loss = t.net(X).mean()
        t.zero(optimizer)
        t.back(loss)
        t.step(optimizer)


def after_the_step(t):
    optimizer = t.optimizer()
    for _ in range(4):
        t.back()
        t.step(optimizer)
        t.zero(optimizer)


def by_the_module(t):
    optimizer = t.optimizer()
    for _ in range(4):
        t.net.zero_grad(set_to_none=t.set_to_none)
        t.back()
        t.step(optimizer)


def accumulation(t):
    optimizer = t.optimizer()
    for i in range(12):
        if i % 3 == 0:
            t.zero(optimizer)
        t.back()
        if i % 3 == 2:
            t.step(optimizer)


def networks_that_take_turns(t):
    """The generator's gradients are left over from the discriminator's turn, and the other way round."""
    front, back = t.optimizer(t.first), t.optimizer(t.second)
    for _ in range(2):
        for optimizer in (back, front):
            t.zero(optimizer)
            t.back()
            t.step(optimizer)


def a_part_that_steps_seldom(t):
    front, back = t.optimizer(t.first), t.optimizer(t.second)
    for i in range(6):
        t.zero(front)
        if i % 2 == 0:
            t.zero(back)
        t.back()
        t.note(front)
        front.step()
        if i % 2:
            back.step()


def two_optimizers_of_the_same_parameters(t):
    one, other = t.optimizer(), t.optimizer(make=torch.optim.Adagrad)
    for _ in range(2):
        for optimizer in (one, other):
            t.zero(optimizer)
            t.back()
            t.step(optimizer)


def line_search(t):
    """LBFGS asks for gradients many times; the monitor is told of the first."""
    optimizer, asked = t.optimizer(make=torch.optim.LBFGS), []

    def closure():
        t.zero(optimizer)
        loss = t.net(X).square().mean()
        t.back(loss)
        if not asked:
            t.note(optimizer)
        asked.append(1)
        return loss

    for _ in range(4):
        asked.clear()
        optimizer.step(closure)


CLEARED = [plain, between_forward_and_backward, after_the_step, by_the_module, accumulation, networks_that_take_turns]
CLEARED += [a_part_that_steps_seldom, two_optimizers_of_the_same_parameters, line_search]


@both
@pytest.mark.parametrize("train", CLEARED, ids=lambda train: train.__name__)
def test_a_training_that_clears_its_gradients_is_never_told_otherwise(train, set_to_none):
    t = Training(set_to_none)
    train(t)
    first = 2 if train in (networks_that_take_turns, two_optimizers_of_the_same_parameters) else 1
    assert t.seen == [None] * first + [False] * (len(t.seen) - first)
    assert len(t.seen) > first


def never(t):
    optimizer = t.optimizer()
    for _ in range(4):
        t.back()
        t.step(optimizer)


def never_with_accumulation(t):
    optimizer = t.optimizer()
    for i in range(12):
        t.back()
        if i % 3 == 2:
            t.step(optimizer)


def only_the_gradients_of_others(t):
    mine, other = t.optimizer(), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    for _ in range(4):
        t.zero(other)
        t.back()
        t.step(mine)


def clipped_in_place(t):
    optimizer = t.optimizer()
    for _ in range(4):
        t.back()
        nn.utils.clip_grad_norm_(t.net.parameters(), 1e-3)
        t.step(optimizer)


def broken_by_nan(t):
    optimizer = t.optimizer()
    for _ in range(4):
        t.back(t.net(X).mean() * float("nan"))
        t.note(optimizer)


@pytest.mark.parametrize(
    "train",
    [never, never_with_accumulation, only_the_gradients_of_others, clipped_in_place, broken_by_nan],
    ids=lambda train: train.__name__,
)
def test_a_training_that_does_not_is_told_from_its_second_step_on(train):
    """Gradients of NaN passed for cleared ones."""
    t = Training()
    train(t)
    assert t.seen == [None, True, True, True]


@both
def test_a_training_that_forgets_once_is_told_once(set_to_none):
    t, optimizer = Training(set_to_none), None
    optimizer = t.optimizer()
    for step in range(6):
        if step != 3:
            t.zero(optimizer)
        t.back()
        t.step(optimizer)
    assert t.seen == [None, False, False, True, False, False]


@both
def test_nan_that_another_network_leaves_and_that_is_cleared_is_no_fault(set_to_none):
    t = Training(set_to_none)
    front, back = t.optimizer(t.first), t.optimizer(t.second)
    for _ in range(3):
        t.zero(back)
        t.back(t.net(X).mean() * float("nan"))
        t.note(back)
        t.zero(front)
        t.back(t.net(X).mean())
        t.note(front)
    assert t.seen == [None] * 2 + [False] * 4


# --- nobody can tell --------------------------------------------------------------------------------------------------


def test_where_no_backward_pass_is_announced_nobody_can_tell():
    t = Training()
    optimizer = t.optimizer()
    for _ in range(3):
        t.net(X).mean().backward()
        t.step(optimizer)
    assert t.seen == [None] * 3


def test_one_network_announced_and_another_not_are_not_mixed_up():
    """What was left by the announced pass counted as never cleared, as nobody saw it cleared before the other."""
    t = Training()
    front, back = t.optimizer(t.first), t.optimizer(t.second)
    for _ in range(3):
        t.zero(back)
        t.back()
        t.step(back)
        t.zero(front)
        t.net(X).mean().backward()
        t.step(front)
    assert t.seen[::2] == [None, False, False]
    assert t.seen[1::2] == [None, None, None]


def test_gradients_cleared_after_the_announcement_are_not_told_as_kept():
    """A hook of the user's between the announcement and the backward pass clears them."""
    t = Training()
    optimizer = t.optimizer()
    for _ in range(3):
        t.meter.before_backward()
        t.zero(optimizer)
        t.net(X).mean().backward()
        t.step(optimizer)
    assert t.seen == [None] * 3


def test_a_second_step_on_the_same_gradients_tells_nothing():
    t = Training()
    optimizer = t.optimizer()
    t.back()
    t.step(optimizer)
    t.step(optimizer)
    assert t.seen == [None, None]


def test_a_probe_that_leaves_its_optimizer_or_is_frozen_tells_nothing():
    t = Training()
    optimizer = t.optimizer()
    t.back()
    t.step(optimizer)  # its gradients stay with the layer that leaves
    kept = list(t.second.parameters())
    t.first.requires_grad_(False)
    optimizer.param_groups[0]["params"] = kept
    for _ in range(2):
        t.zero(optimizer)
        t.back()
        t.step(optimizer)
    assert t.seen == [None, None, False]


def test_a_frozen_probe_makes_way_for_another():
    t = Training()
    optimizer = t.optimizer()
    for step in range(4):
        if step == 1:
            t.first.requires_grad_(False)
        t.back()
        t.step(optimizer)
    assert t.seen == [None, None, True, True]


def test_a_probe_that_is_replaced_tells_nothing():
    t = Training()
    optimizer = t.optimizer()
    for step in range(3):
        t.back()
        t.step(optimizer)
        if step == 0:
            t.first.weight = nn.Parameter(t.first.weight.detach().clone())
            t.first.bias = nn.Parameter(t.first.bias.detach().clone())
            optimizer.param_groups[0]["params"] = list(t.net.parameters())
    assert t.seen == [None, None, True]


def test_sparse_gradients_are_passed_over_for_dense_ones_and_alone_tell_nothing():
    table, layer = nn.Embedding(9, 3, sparse=True), nn.Linear(3, 1)
    for parameters, seen in (
        ([*table.parameters(), *layer.parameters()], [None, True]),
        (table.parameters(), [None] * 2),
    ):
        t, optimizer = Training(), torch.optim.SGD(parameters, lr=0.1)
        for _ in range(2):
            t.back(layer(table(torch.tensor([1, 1, 2]))).sum())
            t.step(optimizer)
        assert t.seen == seen


def test_a_gradient_that_turns_sparse_is_not_read():
    """The look at it raised, and the monitor was switched off."""
    table = nn.Embedding(9, 3)
    t, optimizer = Training(), torch.optim.SGD(table.parameters(), lr=0.1)
    for _ in range(3):
        t.back(table(torch.tensor([1])).sum())
        t.step(optimizer)
        table.weight.grad = table.weight.grad.to_sparse()
    assert t.seen == [None] * 3


def test_empty_parameters_and_parameters_without_a_gradient_are_no_probes():
    empty, unused, weight = nn.Parameter(torch.empty(0)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    t, optimizer = Training(), torch.optim.SGD([empty, unused, weight], lr=0.1)
    for _ in range(2):
        t.back(weight.sum() + empty.sum())
        t.step(optimizer)
    assert t.seen == [None, True]


# --- cost -------------------------------------------------------------------------------------------------------------


class Elements(TorchDispatchMode):
    """Counts the elements that operations make, and what is read back."""

    def __init__(self):
        super().__init__()
        self.made = self.read = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.made += made.numel() if isinstance(made, torch.Tensor) and "detach" not in str(func) else 0
        self.read += "_local_scalar_dense" in str(func)
        return made


def test_a_look_costs_little_however_large_the_network_and_reads_nothing():
    """The first parameter was looked at, which may be a table of a billion elements."""
    table, layer = nn.Embedding(5000, 100), nn.Linear(100, 1)
    meter, optimizer = ClearingMeter(), torch.optim.SGD([*table.parameters(), *layer.parameters()], lr=0.1)
    layer(table(torch.tensor([3]))).sum().backward()
    with Elements() as count:
        meter.before_step(optimizer, owned(optimizer))
        meter.before_backward()
        meter.before_step(optimizer, owned(optimizer))
    assert 0 < count.made < 1000
    assert count.read == 0


def test_nothing_is_looked_at_once_it_is_known_to_be_cleared():
    t = Training()
    optimizer = t.optimizer()
    t.back()
    t.step(optimizer)
    t.zero(optimizer)
    with Elements() as count:
        for _ in range(5):
            t.meter.before_backward()
    assert count.made == 0


def test_no_optimizer_parameter_or_gradient_is_kept_alive():
    t = Training()
    optimizer = t.optimizer()
    t.back()
    t.step(optimizer)
    t.meter.before_backward()
    del optimizer
    gc.collect()
    assert not t.meter._intervals
    optimizer = t.optimizer()
    t.step(optimizer)
    t.meter.before_backward()
    t.net.zero_grad()
    t.net = t.first = t.second = None
    optimizer.param_groups[0]["params"] = []
    gc.collect()
    assert [i.probe() for i in t.meter._intervals.values()] == [None]
    t.meter.before_backward()
    t.step(optimizer)
    assert t.seen[-1] is None
