"""What is asked of an optimizer."""

import math

import pytest
import torch
from torch import nn

from lightning_weightwatch.meters import is_lbfgs, learning_rate, leaves_gradients_alone, owned


def parameters(n=2):
    return [nn.Parameter(torch.ones(1)) for _ in range(n)]


class Mine(torch.optim.SGD):
    """A step of the user's around torch's."""

    def step(self, closure=None):
        return super().step(closure)


class Search(torch.optim.LBFGS):
    """A line search of the user's."""


def test_it_owns_the_parameters_of_all_its_groups_in_order():
    a, b, c = parameters(3)
    optimizer = torch.optim.SGD([{"params": [c]}, {"params": [a, b]}], lr=0.1)
    assert [id(p) for p in owned(optimizer)] == [id(c), id(a), id(b)]


@pytest.mark.parametrize(("make", "is_one"), [(torch.optim.LBFGS, True), (Search, True), (torch.optim.Adam, False)])
def test_a_line_search_is_known_by_its_class(make, is_one):
    assert is_lbfgs(make(parameters())) is is_one


@pytest.mark.parametrize(
    ("make", "leaves"),
    [(torch.optim.SGD, True), (torch.optim.AdamW, True), (torch.optim.LBFGS, False), (Mine, False), (Search, False)],
)
def test_only_steps_of_torchs_own_are_known_to_leave_gradients_alone(make, leaves):
    assert leaves_gradients_alone(make(parameters())) is leaves


def test_the_largest_learning_rate_of_all_groups_and_optimizers_counts():
    a, b, c = parameters(3)
    one = torch.optim.SGD([{"params": [a], "lr": 0.3}, {"params": [b]}], lr=0.1)
    other = torch.optim.Adam([c], lr=torch.tensor(0.25), foreach=False)
    assert learning_rate([one]) == learning_rate([other, one]) == 0.3
    assert learning_rate([other]) == 0.25


def test_an_optimizer_without_a_learning_rate_has_none():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    del optimizer.param_groups[0]["lr"]
    assert math.isnan(learning_rate([optimizer]))
    assert math.isnan(learning_rate([]))


def test_a_rate_that_lies_on_a_device_is_not_waited_for():
    class OnDevice(float):
        device = torch.device("cuda")

    one, other = torch.optim.SGD(parameters(), lr=0.1), torch.optim.SGD(parameters(), lr=0.2)
    other.param_groups[0]["lr"] = OnDevice(0.2)
    assert math.isnan(learning_rate([other]))
    assert learning_rate([one, other]) == 0.1
