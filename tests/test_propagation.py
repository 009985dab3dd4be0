"""How one batch passes, put together: gradients by parameter, passes, twins, and what could not be measured."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own short name
from torch import nn

from lightning_weightwatch.meters import layers
from lightning_weightwatch.parameters import describe, named_tensors
from lightning_weightwatch.propagation import PASSES, Propagation
from tests.helpers.hearing import stack
from tests.helpers.layers import array, heard, rows, watched

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of our own hooks, on first layers

X, LABELS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1, 0])


def seeded(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs)


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))


def passing(model, run=None, batch=None):
    """Return a propagation after its forward pass, and the loss."""
    found = Propagation(describe(model), named_tensors(model), batch)
    with found.listener:
        loss = (run or (lambda m: F.cross_entropy(m(X), LABELS)))(model)
    return found, loss


def gradients(model):
    return {name: p.grad for name, p in named_tensors(model).items()}


def rms(tensor):
    return float(np.sqrt((array(tensor.to_dense() if tensor.is_sparse else tensor) ** 2).mean()))


# --- gradients of parameters ------------------------------------------------------------------------------------------


def test_gradients_are_told_by_parameter():
    model = mlp()
    signal = heard(model, lambda m: F.cross_entropy(m(X), LABELS))
    F.cross_entropy(model(X), LABELS).backward()
    assert signal.gradients == {name: (pytest.approx(rms(p.grad)),) for name, p in model.named_parameters()}
    assert signal.not_measured == ()


def test_a_scale_is_taken_out_of_gradients_and_layers():
    model, factor = mlp(), 2.0**16
    plain = heard(model, lambda m: F.cross_entropy(m(X), LABELS))
    found, loss = passing(model)
    (factor * loss).backward()
    found.add(gradients(model), scale=factor)
    signal = found.read(scale=factor)
    assert signal.gradients == {name: pytest.approx(value) for name, value in plain.gradients.items()}
    assert [x.gradient for x in signal.layers] == pytest.approx([x.gradient for x in plain.layers])


def test_a_sparse_gradient_counts_the_zeros_that_it_does_not_store():
    model = seeded(lambda: nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3)))
    words = torch.tensor([[0, 1, 1], [7, 7, 7]])
    signal = heard(model, lambda m: F.cross_entropy(m(words), LABELS[:2]))
    F.cross_entropy(model(words), LABELS[:2]).backward()
    assert model[0].weight.grad.is_sparse
    assert signal.gradients["0.weight"] == (pytest.approx(rms(model[0].weight.grad)),)


def test_complex_gradients_have_their_magnitude():
    model, x = seeded(nn.Linear, 4, 3, dtype=torch.complex64), X.to(torch.complex64)
    signal = heard(model, lambda m: m(x).abs().square().mean())
    model(x).abs().square().mean().backward()
    wanted = float(np.sqrt((np.abs(model.weight.grad.numpy()) ** 2).mean()))
    assert signal.gradients["weight"] == (pytest.approx(wanted),)
    assert signal.not_measured == ("what layers give that got a gradient and were not heard: weight",)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_gradients_whose_squares_leave_the_range_of_float32(size):
    model = seeded(nn.Linear, 4, 3, bias=False)
    signal = heard(model, lambda m: m(X).sum() * size)
    (model(X).sum() * size).backward()
    assert signal.gradients["weight"] == (pytest.approx(rms(model.weight.grad), rel=1e-5),)


def test_a_gradient_that_is_not_finite_is_told_as_such():
    signal = heard(mlp(), lambda m: m(X).sum() * math.inf)
    assert all(not math.isfinite(value) for (value,) in signal.gradients.values())


def test_parameters_without_a_gradient_are_left_out_and_unknown_ones_passed_over():
    model = mlp()
    model[0].requires_grad_(False)
    model[1].add_module("unused", nn.Linear(2, 2))
    found, loss = passing(model)
    loss.backward()
    found.add(gradients(model) | {"of somebody else": torch.ones(3), "0.bias": torch.zeros(0)})
    assert set(found.read().gradients) == {"2.weight", "2.bias"}


def test_only_what_is_watched_is_told():
    model = mlp()
    found = Propagation([p for p in describe(model) if p.name == "2.weight"], named_tensors(model), X)
    with found.listener:
        loss = F.cross_entropy(model(X), LABELS)
    loss.backward()
    found.add(gradients(model))
    signal = found.read()
    assert [layer.name for layer in signal.layers] == list(signal.gradients) == ["2.weight"]


# --- several passes ---------------------------------------------------------------------------------------------------


def test_further_gradients_of_a_pass_are_added_and_of_each_parameter_the_first_counts():
    """Several optimizers bring theirs one by one; a search along a line brings the same again and again."""
    found = Propagation(describe(mlp()), named_tensors(mlp()), None)
    found.add({"0.weight": torch.ones(8, 4)})
    found.add({"0.weight": torch.full((8, 4), 7.0), "2.weight": torch.full((3, 8), 2.0)}, anew=False)
    found.add({"2.weight": torch.full((3, 8), 5.0)})
    told = found.read().gradients
    assert told == {"0.weight": pytest.approx((1.0, 0.0)), "2.weight": pytest.approx((2.0, 5.0))}


class Residual(nn.Module):
    """A branch whose last matrix is zero at the start, and LoRA beside a frozen matrix."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(3, 2))
        self.gain = nn.Parameter(torch.zeros(4, 1))
        nn.init.zeros_(self.outer.weight)
        self.head.requires_grad_(False)

    def forward(self, x):
        h = x + self.outer(self.inner(x).relu())
        return self.head(h) + h @ self.a.T @ self.b.T + (h @ self.gain) * self.gain.sum()


def test_where_a_matrix_begins_at_zero_the_next_passes_are_asked_for_until_all_have_moved():
    model = seeded(Residual)
    found, loss = passing(model)
    assert not found.wants_more  # nothing is known yet
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    wanted, passes = {name: [] for name, p in model.named_parameters() if p.requires_grad}, 0
    while passes == 0 or found.wants_more:
        optimizer.zero_grad()
        loss.backward()
        found.add(gradients(model))
        for name, values in wanted.items():
            values.append(rms(named_tensors(model)[name].grad))
        optimizer.step()
        loss = F.cross_entropy(model(X), LABELS)
        passes += 1
    assert passes == 2
    assert found.read().gradients == {name: tuple(pytest.approx(v) for v in values) for name, values in wanted.items()}
    assert wanted["inner.weight"][0] == wanted["a"][0] == 0 < min(wanted["inner.weight"][1], wanted["a"][1])


def test_what_never_gets_a_gradient_is_asked_for_three_times():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.init.constant_(model[0].bias, -100.0)
    found, loss = passing(model)
    for done in range(1, PASSES + 1):
        loss.backward()
        found.add(gradients(model))
        assert found.wants_more is (done < PASSES)
        loss = F.cross_entropy(model(X), LABELS)
    assert found.read().gradients["0.weight"] == (0.0,) * PASSES


@pytest.mark.parametrize("case", ["frozen", "a vector", "never reached", "an embedding"])
def test_no_more_is_asked_for_where_no_matrix_waits(case):
    model = mlp()
    if case == "frozen":
        model[0].requires_grad_(False)
    found, loss = passing(model)
    loss.backward()
    told = gradients(model)
    if case == "a vector":
        told["0.bias"] = torch.zeros(8)
    if case == "never reached":
        told["0.weight"] = None
    if case == "an embedding":
        model = seeded(nn.Embedding, 9, 4)
        found, told = Propagation(describe(model), named_tensors(model), None), {"weight": torch.zeros(9, 4)}
    found.add(told)
    assert not found.wants_more


# --- twins ------------------------------------------------------------------------------------------------------------


def test_twins_equal_one_another_in_weight_and_in_gradient():
    model = mlp()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[0], model[0].bias[0]
        model[2].weight[:, 3] = model[2].weight[:, 0]  # what follows cannot tell the two apart
        model[0].weight[5], model[0].bias[5] = model[0].weight[1], model[0].bias[1]  # and these it can
    signal = heard(model, lambda m: F.cross_entropy(m(X), LABELS))
    assert signal.twins == {"0.weight": 2 / 8, "2.weight": 0.0}


def test_twins_are_those_of_the_first_pass():
    model = mlp()
    nn.init.ones_(model[0].weight)
    found = Propagation(describe(model), named_tensors(model), None)
    different = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    found.add({"0.weight": different})
    found.add({"0.weight": torch.ones(8, 4)}, anew=False)
    found.add({"0.weight": torch.ones(8, 4)})
    assert found.read().twins == {"0.weight": 0.0}


# --- how the signal changes -------------------------------------------------------------------------------------------


def test_decades_are_those_of_a_line_through_what_hooks_see():
    model = seeded(lambda: nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Tanh()))))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.normal_(0, 0.3 / 4)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(2))

    def run(m):
        return m(x).square().mean()

    signal, seen = heard(model, run), watched(model, run, [str(i) for i in range(0, 16, 2)])
    spreads = [np.sqrt(rows(calls[0].output, -1).var(0).mean()) for calls in seen.values()]
    felt = [np.sqrt((calls[0].gradient ** 2).mean()) for calls in seen.values()]
    place = np.linspace(0, 1, 8)
    assert signal.forward_decades == pytest.approx(np.polyfit(place, np.log10(spreads), 1)[0], rel=1e-6)
    assert signal.backward_decades == pytest.approx(-np.polyfit(place, np.log10(felt), 1)[0], rel=1e-6)
    assert signal.forward_decades < -3
    assert signal.backward_decades < -3


def test_of_activations_the_first_counts_and_the_loss_is_traced_through_it():
    model = seeded(lambda: nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)]))

    def run(m):
        h = m[0](X)
        h = h.relu() + h.tanh()
        return F.binary_cross_entropy(m[1](h).sigmoid(), torch.ones(6, 3)) + F.mse_loss(m[2](h), torch.ones(6, 3))

    found = {layer.name: layer for layer in heard(model, run).layers}
    assert [(x.activation, x.feeds_loss) for x in found.values()] == [("relu", False), ("sigmoid", True), ("", True)]


def test_what_the_batch_brought_and_the_losses_are_told():
    found, loss = passing(mlp(), batch={"x": X, "y": LABELS})
    loss.backward()
    signal = found.read(optimizers=["SGD"])
    assert [(x.name, x.features) for x in signal.inputs] == [("batch['x']", 4)]
    assert signal.inputs[0].std == pytest.approx(array(X).std())
    assert [(x.function, x.after, x.classes) for x in signal.losses] == [("cross_entropy", "2.weight", 3)]
    assert signal.optimizers == ("SGD",)
    assert math.isnan(signal.loss)  # whoever lets the batch pass knows it


# --- what could not be measured ---------------------------------------------------------------------------------------


def test_without_a_backward_pass_there_are_no_gradients():
    found, _ = passing(mlp())
    signal = found.read()
    assert signal.not_measured == ("gradients: there was no backward pass",)
    assert (signal.gradients, signal.twins) == ({}, {})
    assert all(math.isnan(layer.gradient) for layer in signal.layers)


def test_a_backward_pass_without_a_step_has_gradients_of_layers_alone():
    found, loss = passing(mlp())
    loss.backward()
    signal = found.read()
    assert signal.not_measured == ("gradients of parameters: no step of an optimizer was seen",)
    assert all(layer.gradient > 0 for layer in signal.layers)


class Fused(torch.autograd.Function):
    """A layer in one function of the user's, as kernels of their own are."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x)
        return x @ w.T

    @staticmethod
    def backward(ctx, grad):
        return None, grad.T @ ctx.saved_tensors[0]


def test_layers_that_are_not_heard_are_named():
    model = seeded(lambda: nn.ModuleList([nn.Linear(4, 3, bias=False) for _ in range(5)]))

    def run(m):
        return sum(Fused.apply(X, layer.weight).square().mean() for layer in m[:4]) + m[4](X).square().mean()

    signal = heard(model, run)
    missing = "what layers give that got a gradient and were not heard: 0.weight, 1.weight, 2.weight and 1 more"
    assert ([layer.name for layer in signal.layers], signal.not_measured) == (["4.weight"], (missing,))


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_failure_in_measuring_leaves_the_pass_alone_and_is_told(monkeypatch, when):
    def fail(*_, **__):
        raise ArithmeticError("no")

    monkeypatch.setattr(layers, "axes_of" if when == "forward" else "_of_samples", fail)
    model = mlp()
    found, loss = passing(model)
    loss.backward()
    found.add(gradients(model))
    with_it = gradients(model)
    model.zero_grad()
    F.cross_entropy(model(X), LABELS).backward()
    assert all(torch.equal(with_it[name], g) for name, g in gradients(model).items())
    signal = found.read()
    assert signal.not_measured == ("how a batch passes: listening failed (ArithmeticError: no)",)
    assert (signal.layers, signal.gradients) == ((), {})
    assert stack() == []


def test_a_network_that_nothing_is_heard_of():
    model = nn.Sequential(nn.LayerNorm(4), nn.ReLU())
    signal = heard(model, lambda m: m(X).square().mean())
    assert (signal.layers, signal.twins, signal.not_measured) == ((), {}, ())
    assert set(signal.gradients) == {"0.weight", "0.bias"}
