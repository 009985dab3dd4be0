"""Units without a gradient, against a plain loop that tracks zeros."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch.meters import UnitMeter
from lightning_weightwatch.meters.units import STEPS, unit_counts
from lightning_weightwatch.parameters import describe

CPU = torch.device("cpu")


def meter_of(module):
    return UnitMeter(describe(module), list(module.parameters()), CPU)


def dead(meter, count):
    return meter.dead(count).tolist()


class Loop:
    """The same, unit by unit, in plain Python."""

    def __init__(self):
        self.streaks = {}

    def add(self, column, gradient):
        rows = gradient.reshape(len(gradient), -1).tolist()
        before = self.streaks.get(column, [0] * len(rows))
        silent = [all(element == 0 for element in row) for row in rows]
        self.streaks[column] = [streak + 1 if quiet else 0 for streak, quiet in zip(before, silent, strict=True)]

    def dead(self, column):
        return sum(streak >= STEPS for streak in self.streaks.get(column, []))


def test_dead_relu_units_of_a_training_are_counted_as_a_plain_loop_counts_them():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7, bias=False), nn.ReLU(), nn.Linear(7, 2))
    with torch.no_grad():
        net[0].bias[[1, 4, 5]] = -100.0
        net[2].weight[3] = -10.0
    optimizer, meter, loop = torch.optim.SGD(net.parameters(), lr=0.01), meter_of(net), Loop()
    columns = list(range(len(list(net.parameters()))))
    for step in range(45):
        optimizer.zero_grad()
        net(torch.randn(3, 4)).square().sum().backward()
        gradients = [p.grad for p in net.parameters()]
        meter.add(columns, gradients)
        for column, gradient in zip(columns, gradients, strict=True):
            loop.add(column, gradient)
        optimizer.step()
        if step == 30:
            with torch.no_grad():
                net[0].bias[4] = 100.0
        seen = dead(meter, 5)
        assert [seen[i] for i in (1, 2, 4)] == [loop.dead(i) for i in (1, 2, 4)]
    assert (loop.dead(1), loop.dead(2)) == (2, 1)


def silent(*units, of=4):
    gradient = torch.ones(of)
    gradient[list(units)] = 0.0
    return gradient


def test_a_unit_is_dead_after_so_many_steps_and_alive_again_after_one():
    meter = meter_of(nn.Linear(3, 4))
    told = []
    for step in range(3 * STEPS):
        meter.add([1], [silent(0, 2) if step != STEPS + 3 else silent(0)])
        told.append(dead(meter, 2)[1])
    assert told == [0] * (STEPS - 1) + [2] * 4 + [1] * STEPS + [2] * (STEPS - 3)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1e-45], ids=str)
def test_what_is_not_exactly_zero_is_not_dead(odd):
    meter, gradient = meter_of(nn.Linear(3, 2)), torch.tensor([0.0, odd])
    for _ in range(STEPS):
        meter.add([1], [gradient])
    assert dead(meter, 2)[1] == 1


def test_a_row_is_dead_if_all_of_it_is():
    meter, gradient = meter_of(nn.Conv2d(2, 3, 2, bias=False)), torch.zeros(3, 2, 2, 2)
    gradient[1, 1, 1, 0] = 1e-30
    gradient[2, 0, 0, 0] = float("nan")
    for _ in range(STEPS):
        meter.add([0], [gradient])
    assert dead(meter, 1) == [1]


def test_an_optimizer_that_holds_its_parameters_in_another_order_names_the_right_layer():
    """Groups for weight decay, or head before body: the zeros of one layer were counted to another."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    meter, gradients = meter_of(net), {1: torch.zeros(2), 3: silent(0, of=3)}
    for step in range(STEPS):
        order = (3, 1) if step % 2 else (1, 3)
        meter.add(order, [gradients[i] for i in order])
    assert dead(meter, 4)[1::2] == [2, 1]


def test_optimizers_that_step_at_different_times_have_their_own_streaks():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    meter, loop = meter_of(net), Loop()
    for step in range(3 * STEPS):
        for column, every in ((1, 1), (3, 3)):
            if step % every == 0:
                gradient = silent(0, *((1, 2) if step > 10 else ()))
                meter.add([column], [gradient])
                loop.add(column, gradient)
        assert dead(meter, 4)[1::2] == [loop.dead(1), loop.dead(3)]
    assert (loop.dead(1), loop.dead(3)) == (3, 1)


def test_a_step_without_a_gradient_neither_adds_to_a_streak_nor_ends_it():
    meter = meter_of(nn.Linear(3, 4))
    for _ in range(STEPS - 1):
        meter.add([1], [silent(0)])
        meter.add([], [])
        meter.add([0], [torch.ones(4, 3)])
    assert dead(meter, 2)[1] == 0
    meter.add([1], [silent(0)])
    assert dead(meter, 2)[1] == 1


NETS = {
    "biases, and no weight beside one": (nn.Sequential(nn.Linear(3, 4), nn.Conv1d(4, 5, 1)), {1: 4, 3: 5}),
    "a weight without a bias": (nn.Linear(3, 4, bias=False), {0: 4}),
    "a convolution before a norm, whose bias is that of its units": (
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
        {2: 4},
    ),
    "a weight too large to look at": (nn.Linear(300, 300, bias=False), {}),
    "an embedding": (nn.Embedding(9, 3), {}),
    "a recurrent layer": (nn.LSTM(3, 4), {2: 16, 3: 16}),
    "a bias of two dimensions": (nn.ParameterDict({"relative_bias": torch.ones(3, 4)}), {}),
    "nothing": (nn.ReLU(), {}),
}


@pytest.mark.parametrize("case", NETS)
def test_units_are_biases_and_where_there_are_none_rows(case):
    net, units = NETS[case]
    parameters = describe(net)
    meter = meter_of(net)
    assert meter.columns == list(units)
    counts = unit_counts(parameters)
    assert {i: counts[i] for i in range(len(parameters)) if not np.isnan(counts[i])} == units
    for _ in range(STEPS):
        meter.add(range(len(parameters)), [torch.zeros(p.shape) for p in parameters])
    assert dead(meter, len(parameters)) == [
        pytest.approx(units.get(i, np.nan), nan_ok=True) for i in range(len(parameters))
    ]


def test_shards_by_rows_add_up_to_the_whole():
    """The second process holds one row and, of the last layer, nothing."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    parameters, whole, parts = describe(net), meter_of(net), []
    held = list(net.parameters())
    cuts = ([slice(0, 2), slice(0, 1)], [slice(2, 3), slice(1, 2)])
    gradients = {1: torch.tensor([0.0, 1.0, 0.0]), 3: torch.tensor([0.0])}
    for cut in cuts:
        mine = [held[0][cut[0]], held[1][cut[0]], held[2][cut[1]], held[3][cut[1]]]
        meter = UnitMeter(parameters, [p.detach() for p in mine], CPU)
        for _ in range(STEPS):
            meter.add([1, 3], [gradients[1][cut[0]], gradients[3][cut[1]]])
        parts.append(meter.dead(4))
    for _ in range(STEPS):
        whole.add([1, 3], list(gradients.values()))
    np.testing.assert_array_equal(sum(parts).numpy(), whole.dead(4).numpy())
    np.testing.assert_array_equal(whole.dead(4).numpy(), [np.nan, 2, np.nan, 1])


def test_a_matrix_that_is_held_as_a_flat_slice_has_no_rows_to_look_at():
    """Its elements were counted as units, more than there are."""
    layer = nn.Linear(3, 4, bias=False)
    meter = UnitMeter(describe(layer), [layer.weight.detach().reshape(-1)], CPU)
    for _ in range(STEPS):
        meter.add([0], [torch.zeros(12)])
    assert np.isnan(dead(meter, 1)).all()


def test_complex_biases_have_units():
    layer = nn.ParameterDict({"bias": torch.ones(2, dtype=torch.complex64)})
    meter = UnitMeter(describe(layer), [torch.view_as_real(layer["bias"].detach())], CPU)
    for _ in range(STEPS):
        meter.add([0], [torch.tensor([[0.0, 0.0], [0.0, 1.0]])])
    assert dead(meter, 1) == [1]


def test_a_gradient_of_another_shape_is_passed_over():
    meter = meter_of(nn.Linear(3, 4))
    for gradient in (torch.zeros(3), torch.tensor(0.0)):
        for _ in range(STEPS):
            meter.add([1], [gradient])
    assert dead(meter, 2)[1] == 0
