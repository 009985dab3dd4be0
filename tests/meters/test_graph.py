"""What the autograd graph tells, against networks of which it is known."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own short name
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_weightwatch.meters.graph import fed_by, producer, softmax_units


def names(module):
    return {id(p): name for name, p in module.named_parameters()}


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


class Swish(torch.autograd.Function):
    """A function of the user's, which has the name of one of torch's and a ``variable`` of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.variable = "no tensor"
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Softmax(Swish):
    """Named as torch's own node is, but for its number."""


MLP = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
CNN = nn.Sequential(nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7), nn.ReLU())
PRODUCERS = {
    "itself": (nn.Linear(4, 6), normal(2, 4), "weight", (6, 4)),
    "the last of several": (MLP, normal(2, 4), "2.weight", (5, 6)),
    "a batch of sequences": (MLP, normal(2, 3, 4), "2.weight", (5, 6)),
    "seen through a norm and a function": (CNN, normal(2, 3, 5, 5), "0.weight", (7, 3, 3, 3)),
    "an embedding": (nn.Embedding(9, 4), torch.tensor([1, 2]), "weight", (9, 4)),
    "a transposed convolution": (nn.ConvTranspose1d(3, 7, 2), normal(2, 3, 5), "weight", (3, 7, 2)),
    "a function of the user's": (nn.Sequential(MLP, nn.Flatten()), normal(2, 4), "0.2.weight", (5, 6)),
}


@pytest.mark.parametrize("case", PRODUCERS)
def test_the_nearest_matrix_is_named(case):
    net, x, name, shape = PRODUCERS[case]
    out = net(x)
    assert producer(Swish.apply(out) if case.endswith("user's") else out, names(net)) == (name, shape)


def test_a_residual_branch_is_nearer_than_what_it_is_added_to():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    stem = torch.relu(first(normal(2, 4)))
    known = {id(first.weight): "first", id(second.weight): "second"}
    for made in (stem + second(stem), second(stem) + stem, F.layer_norm(second(stem), (4,)) + stem):
        assert producer(torch.relu(made), known)[0] == "second"


FROZEN = {
    "linear": (nn.Linear(4, 4), nn.Linear(4, 4), normal(2, 4)),
    "linear on sequences": (nn.Linear(4, 4), nn.Linear(4, 4), normal(2, 3, 4)),
    "without a bias": (nn.Linear(4, 4), nn.Linear(4, 4, bias=False), normal(2, 4)),
    "convolution": (nn.Conv1d(3, 3, 1), nn.Conv1d(3, 3, 1), normal(2, 3, 5)),
}


@pytest.mark.parametrize("bias", [False, True], ids=["frozen", "but for its bias"])
@pytest.mark.parametrize("case", FROZEN)
def test_the_layer_before_a_frozen_one_is_not_taken_for_it(case, bias):
    """An activation of a frozen backbone was told of the layer before it."""
    first, second, x = FROZEN[case]
    second.requires_grad_(True)
    net = nn.Sequential(first, second)
    assert producer(torch.relu(net(x)), names(net)) == ("1.weight", tuple(second.weight.shape))
    second.weight.requires_grad_(False)
    if second.bias is not None:
        second.bias.requires_grad_(bias)
    assert producer(torch.relu(net(x)), names(net)) == ("", ())


def test_an_adapter_beside_a_frozen_layer_is_named():
    stem, frozen, adapter = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4, bias=False)
    x = stem(normal(2, 4))
    known = {id(stem.weight): "stem", id(adapter.weight): "adapter"}
    assert producer(torch.relu(frozen(x) + adapter(x)), known)[0] == "adapter"


def test_a_matrix_that_is_multiplied_from_the_left_is_no_frozen_layer():
    weight = nn.Parameter(normal(4, 3))
    assert producer(weight @ normal(3, 2), {id(weight): "weight"}) == ("weight", (4, 3))


def test_what_is_unknown_far_or_without_a_graph_has_no_name():
    layer = nn.Linear(4, 4)
    far = layer(normal(2, 4))
    assert producer(far, {}) == producer(far.detach(), names(layer)) == ("", ())
    for _ in range(20):
        far = far + 1
    assert producer(far, names(layer)) == ("", ())


LEAF = normal(2, 3).requires_grad_()
FED = {
    "softmax": [
        lambda x: x.softmax(1),
        lambda x: F.softmax(x, 1).view(3, 2),
        lambda x: x.softmax(-1)[:, 0],
        lambda x: x.softmax(1)[[0]],
    ],
    "log_softmax": [lambda x: F.log_softmax(x, 1), lambda x: x.log_softmax(1).to(torch.float64)],
    "sigmoid": [torch.sigmoid, lambda x: x.sigmoid().squeeze(), lambda x: torch.special.expit(x).unsqueeze(0)],
    "relu": [F.relu, lambda x: F.relu(x + 0, inplace=True), lambda x: nn.ReLU()(x).chunk(2)[1]],
    "tanh": [torch.tanh, lambda x: x.tanh().T, lambda x: x.tanh().permute(1, 0).reshape(-1)],
    "softplus": [F.softplus],
    "elu": [F.elu, F.selu],
    "gelu": [F.gelu],
    "silu": [F.silu],
    "logsigmoid": [F.logsigmoid],
    "hardsigmoid": [F.hardsigmoid],
    "hardtanh": [F.hardtanh, lambda x: F.hardtanh(x, -2.0, 2.0)],
    "relu6": [F.relu6, nn.ReLU6(), lambda x: F.hardtanh(x, 0, 6)],
    "": [
        lambda x: x,
        lambda x: x.softmax(1) * 2,
        lambda x: x.softmax(1).log(),
        lambda x: torch.cat([x.relu(), x.relu()]),
        lambda x: x.detach(),
        Softmax.apply,
        lambda x: x.clamp(0, 6),
        lambda x: torch.zeros(2, 3).index_put((torch.tensor([0]),), x.relu()[0]),
    ],
}


@pytest.mark.parametrize(("function", "way"), [(name, way) for name, ways in FED.items() for way in ways])
def test_the_function_that_gave_it_is_named(function, way):
    assert fed_by(way(LEAF))[0] == function


@pytest.mark.parametrize(("shape", "dim"), [((2, 1), 1), ((2, 1), -1), ((4, 3), 0), ((2, 5, 3), -2), ((7,), 0)])
def test_the_units_of_a_softmax_are_those_of_its_dimension(shape, dim):
    made = normal(*shape).requires_grad_().softmax(dim)
    assert softmax_units(fed_by(made.reshape(-1))[1]) == shape[dim]


def test_a_node_that_does_not_say_has_no_units():
    assert softmax_units(object()) == 0


def test_a_checkpointed_softmax_is_not_computed_again_to_be_counted():
    """Its saved result was asked for, which ran the user's forward pass, and broke the backward pass."""
    layer, runs = nn.Linear(3, 1), []

    def head(x):
        runs.append(1)
        return layer(x).softmax(1)

    made = checkpoint(head, LEAF, use_reentrant=False)
    name, node = fed_by(made)
    assert (name, softmax_units(node), producer(made, names(layer))[0], len(runs)) == ("softmax", 1, "weight", 1)
    made.sum().backward()
    assert len(runs) == 2
