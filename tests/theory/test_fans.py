"""Fans against torch's own count, and the number under the root of PyTorch's default bound against drawn layers."""

import math

import pytest
import torch
from torch import nn

from lightning_weightwatch.parameters import describe
from lightning_weightwatch.theory import Place, default_fan, fans

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
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.named_parameters()}
    kind = next(p.kind for p in describe(layer) if p.kind != "bias")
    return Place(role, shapes[role], kind, type(layer).__name__, shapes)


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
