"""Fans against torch's own count, against sums that layers really take, and against the bounds of fresh layers."""

import math

import pytest
import torch
from torch import nn

from lightning_weightwatch.parameters import describe
from lightning_weightwatch.places import places
from lightning_weightwatch.theory import Fans, Place, default_fan, fans, true_fans

WEIGHTED = {
    "linear": lambda: nn.Linear(40, 30),
    "bilinear": lambda: nn.Bilinear(20, 7, 30),
    "conv1d": lambda: nn.Conv1d(8, 16, 5),
    "conv2d": lambda: nn.Conv2d(3, 16, 3),
    "conv2d, oblong": lambda: nn.Conv2d(3, 16, (1, 7)),
    "conv3d": lambda: nn.Conv3d(3, 8, 3),
    "grouped": lambda: nn.Conv2d(16, 32, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(32, 32, 3, groups=32),
    "transposed 1d": lambda: nn.ConvTranspose1d(24, 6, 4),
    "transposed 2d": lambda: nn.ConvTranspose2d(24, 6, 3),
    "transposed 3d": lambda: nn.ConvTranspose3d(12, 6, 3),
    "transposed, grouped": lambda: nn.ConvTranspose2d(24, 12, 3, groups=3),
}


def place(layer: nn.Module, role: str) -> Place:
    return next(place for place in places(describe(layer)).values() if place.role == role)


@pytest.mark.parametrize("make", WEIGHTED.values(), ids=WEIGHTED.keys())
def test_fans_are_those_torch_computes_its_schemes_from(make):
    weight = make().weight
    assert fans(tuple(weight.shape)) == torch.nn.init._calculate_fan_in_and_fan_out(weight)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_what_has_fewer_than_two_dimensions_has_no_fans(shape):
    assert fans(shape) is None


@pytest.mark.parametrize("make", WEIGHTED.values(), ids=WEIGHTED.keys())
def test_no_weight_and_no_bias_of_a_fresh_layer_exceeds_the_default_bound(make):
    torch.manual_seed(0)
    for _ in range(5):
        layer = make()
        bound = 1 / math.sqrt(default_fan(place(layer, "weight")))
        assert 0.97 * bound < layer.weight.abs().max() <= bound
        assert default_fan(place(layer, "bias")) == default_fan(place(layer, "weight"))
        assert layer.bias.abs().max() <= bound


RECURRENT = {
    "rnn": lambda: nn.RNN(5, 12, num_layers=2, bidirectional=True),
    "lstm": lambda: nn.LSTM(5, 12),
    "lstm, projected": lambda: nn.LSTM(5, 12, proj_size=3),
    "gru": lambda: nn.GRU(5, 12, num_layers=2),
    "rnn cell": lambda: nn.RNNCell(5, 12),
    "lstm cell": lambda: nn.LSTMCell(5, 12),
    "gru cell": lambda: nn.GRUCell(5, 12),
}


@pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT.keys())
def test_every_parameter_of_a_recurrent_layer_is_bounded_by_the_hidden_size(make):
    layer = make()
    for name, _ in layer.named_parameters():
        assert default_fan(place(layer, name)) == 12


def test_transposed_convolution_counts_what_one_input_channel_feeds():
    assert fans(tuple(nn.ConvTranspose2d(24, 6, 3).weight.shape)) == (6 * 9, 24 * 9)


def test_a_bias_without_its_weight_has_no_fan():
    assert default_fan(Place("bias", (10,), "linear", "Linear", {"bias": (10,)})) is None


def test_a_lazy_weight_has_no_fan():
    assert default_fan(Place("bias", (), "linear", "LazyLinear", {"weight": (), "bias": ()})) is None


def test_norms_and_embeddings_are_not_drawn_by_fan():
    assert default_fan(place(nn.LayerNorm(8), "weight")) is None
    assert default_fan(place(nn.Embedding(8, 4), "weight")) is None


def ones(layer: nn.Module) -> nn.Module:
    for name, parameter in layer.named_parameters():
        nn.init.constant_(parameter, 0.0 if "bias" in name else 1.0)
    return layer


def middle(tensor: torch.Tensor) -> torch.Tensor:
    """Cut away the edges, and leave whole periods of strides 1, 2, 3 and 4."""
    for dim in range(2, tensor.dim()):
        tensor = tensor.narrow(dim, (tensor.shape[dim] - 12) // 2, 12)
    return tensor


def summed(layer: nn.Module, *inputs: torch.Tensor) -> tuple[float, float]:
    """Count by ones: what an output sums of ones is its fan_in; how often an input counts, is its gradient."""
    for one in inputs:
        one.requires_grad_()
    out = ones(layer)(*inputs)
    out.sum().backward()
    return middle(out).mean().item(), middle(inputs[0].grad).mean().item()


CONVOLUTIONS = {
    "conv1d": lambda: nn.Conv1d(8, 16, 5),
    "conv2d": lambda: nn.Conv2d(3, 16, 3),
    "conv2d, stride": lambda: nn.Conv2d(4, 6, 3, stride=2),
    "conv2d, strides of their own": lambda: nn.Conv2d(4, 6, 3, stride=(1, 3)),
    "conv2d, dilation": lambda: nn.Conv2d(4, 6, 3, dilation=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 3),
    "grouped": lambda: nn.Conv2d(16, 32, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "depthwise, two for each": lambda: nn.Conv2d(8, 16, 3, groups=8, stride=2),
    "transposed 1d": lambda: nn.ConvTranspose1d(24, 6, 4),
    "transposed 2d, stride": lambda: nn.ConvTranspose2d(24, 6, 4, stride=2),
    "transposed 2d, uneven stride": lambda: nn.ConvTranspose2d(4, 6, 5, stride=3),
    "transposed, grouped": lambda: nn.ConvTranspose2d(24, 12, 3, groups=3),
    "transposed, dilation": lambda: nn.ConvTranspose2d(5, 4, 3, dilation=2),
    "transposed 3d": lambda: nn.ConvTranspose3d(2, 3, 2, stride=2),
    "parametrised": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 6, 3, stride=2)),
}


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_true_fans_are_the_sums_that_a_convolution_takes(make):
    layer = make()
    size = (1, layer.in_channels, *[36] * len(layer.kernel_size))
    found = true_fans(place(layer, "weight"))
    plain = nn.utils.parametrize.is_parametrized(layer)
    if plain:
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert (found.fan_in, found.fan_out) == pytest.approx(summed(layer, torch.ones(size)))


def test_true_fans_are_the_sums_that_a_dense_layer_takes():
    found = true_fans(place(nn.Linear(40, 30), "weight"))
    assert (found.fan_in, found.fan_out) == summed(nn.Linear(40, 30), torch.ones(1, 40)) == (40, 30)
    found = true_fans(place(nn.Bilinear(20, 7, 30), "weight"))
    assert (found.fan_in, found.fan_out) == summed(nn.Bilinear(20, 7, 30), torch.ones(1, 20), torch.ones(1, 7))


@pytest.mark.parametrize(
    ("make", "role", "counted", "true"),
    [
        (lambda: nn.LSTM(5, 12), "weight_ih_l0", (5, 48), Fans(5, 12)),
        (lambda: nn.LSTM(5, 12), "weight_hh_l0", (12, 48), Fans(12, 12)),
        (lambda: nn.LSTM(5, 12, proj_size=3), "weight_hh_l0", (3, 48), Fans(3, 12)),
        (lambda: nn.LSTM(5, 12, proj_size=3), "weight_hr_l0", (12, 3), Fans(12, 3)),
        (lambda: nn.LSTM(5, 12, 2, bidirectional=True), "weight_ih_l1_reverse", (24, 48), Fans(24, 12)),
        (lambda: nn.GRU(5, 12), "weight_ih_l0", (5, 36), Fans(5, 12)),
        (lambda: nn.RNN(5, 12), "weight_hh_l0", (12, 12), Fans(12, 12)),
        (lambda: nn.LSTMCell(5, 12), "weight_hh", (12, 48), Fans(12, 12)),
        (lambda: nn.GRUCell(5, 12), "weight_ih", (5, 36), Fans(5, 12)),
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.LSTM(5, 12), "weight_hh_l0"),
            "weight_hh_l0",
            (12, 48),
            Fans(12, 12),
        ),
        (lambda: nn.MultiheadAttention(32, 4), "in_proj_weight", (32, 96), Fans(32, 32)),
        (lambda: nn.MultiheadAttention(32, 4, kdim=20), "k_proj_weight", (20, 32), Fans(20, 32)),
        (lambda: nn.MultiheadAttention(32, 4), "weight", (32, 32), Fans(32, 32)),
        (lambda: nn.Embedding(100, 16), "weight", (16, 100), Fans(1, 16)),
        (lambda: nn.EmbeddingBag(100, 16), "weight", (16, 100), Fans(1, 16)),
        (lambda: nn.LayerNorm((4, 8)), "weight", (8, 4), Fans(1, 1)),
        (lambda: nn.PReLU(8), "weight", None, Fans(1, 1)),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 32)), "weight", (16, 32), Fans(16, 32)),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 32)), "weight_g", (1, 32), Fans(1, 1)),
    ],
)
def test_the_true_fan_of_stacks_tables_and_gains_beside_torch_s(make, role, counted, true):
    where = place(make(), role)
    assert fans(where.shape) == counted
    assert true_fans(where) == true


@pytest.mark.parametrize(
    ("make", "role"),
    [
        (lambda: nn.Linear(4, 2), "bias"),
        (lambda: nn.LSTM(4, 2), "bias_ih_l0"),
        (lambda: nn.MultiheadAttention(8, 2), "in_proj_bias"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), "bias_k"),
        (lambda: nn.LazyLinear(4), "weight"),
    ],
)
def test_biases_and_lazy_weights_have_no_true_fan(make, role):
    assert true_fans(place(make(), role)) is None


def test_a_subclass_is_wired_as_its_parent():
    class Up(nn.ConvTranspose2d):
        pass

    assert true_fans(place(Up(24, 6, 4, stride=4), "weight")) == Fans(24, 96)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(100, 16), nn.Linear(16, 100)
        self.head.weight = self.embed.weight


def test_a_tied_weight_has_the_fans_of_each_of_its_layers():
    found = places(describe(Tied()))
    (as_head,) = found["embed.weight"].tied
    assert true_fans(found["embed.weight"]) == Fans(1, 16)
    assert true_fans(as_head) == Fans(16, 100)
    assert default_fan(found["head.bias"]) == 16


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_weight_norm_is_seen_through():
    assert true_fans(place(nn.utils.weight_norm(nn.Conv2d(4, 8, 3, groups=2)), "weight")) == Fans(18, 36)
