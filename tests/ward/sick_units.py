"""Units that are dead, saturated or copies of one another, signals that a zero blocks, layers out of scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.ward import data, nets
from tests.ward.case import sick
from tests.ward.learner import Learner

SGD = torch.optim.SGD
BLOCKED = "vanishing_gradients no_learning zero_blocked_signal"


@sick("dead_units", also=BLOCKED, layers="net.2.*")
def bias_far_below_zero() -> Learner:
    """A bias of -8 before a ReLU: no unit of the layer fires, and nothing before it gets a gradient."""
    net = nets.mlp(64, 32, 32, 10)
    nn.init.constant_(net[2].bias, -8.0)
    return Learner(net, data.digits())


@sick("dead_units", layers="net.2.*")
def most_of_a_layer_dead() -> Learner:
    """The same for 27 of 32 units; the others carry on, and the loss falls."""
    net = nets.mlp(64, 32, 32, 10)
    nn.init.constant_(net[2].bias[:27], -12.0)
    return Learner(net, data.digits())


@sick("dead_units", also="no_learning vanishing_gradients", layers="net.3.*")
def dead_channels() -> Learner:
    """Fourteen of the sixteen channels of a convolution never fire."""
    net = nets.conv_net()
    nn.init.constant_(net[3].bias[:14], -10.0)
    return Learner(net, data.images())


@sick("dead_units", layers="net.2.*")
def only_positive_inputs_and_negative_weights() -> Learner:
    """Weights drawn with a mean far below 0, after units that are never negative: the layer cannot fire."""
    net = nets.mlp(64, 48, 32, 32, 10)
    nn.init.uniform_(net[2].weight, -0.5, 0.02)
    nn.init.zeros_(net[2].bias)
    return Learner(net, data.digits(), optimizer=SGD, lr=0.05)


class FeedForward(nn.Module):
    """A recurrent net whose states pass through a ReLU layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.up, self.act = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 48), nn.ReLU()
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.up(self.rnn(x)[0][:, -1])))


@sick("dead_units", also=BLOCKED, layers="net.up.*")
def dead_layer_after_an_lstm() -> Learner:
    """A ReLU layer behind an LSTM begins at -5, beyond what states between -1 and 1 can lift."""
    net = FeedForward()
    nn.init.constant_(net.up.bias, -5.0)
    return Learner(net, data.rows_of_digits())


@sick("saturated_units", also="vanishing_gradients no_learning", layers="net.2.* net.4.*")
def standard_normal_tanh() -> Learner:
    """Weights drawn from N(0, 1): pre-activations of 8, where tanh is flat."""
    net = nets.mlp(64, 64, 64, 64, 10, act=nn.Tanh)
    for layer in nets.linears(net):
        nn.init.normal_(layer.weight)
    return Learner(net, data.digits(), optimizer=SGD, lr=0.01)


@sick("saturated_units", also="vanishing_gradients layer_scale_outlier no_learning", layers="net.0.* net.3.*")
def saturated_sigmoid_conv_net() -> Learner:
    """Filters drawn from N(0, 2) before sigmoids, which are at 0 or at 1 for nearly every pixel."""
    net = nets.conv_net(act=nn.Sigmoid)
    for layer in (net[0], net[3]):
        nn.init.normal_(layer.weight, std=2.0)
    return Learner(net, data.images(), optimizer=SGD, lr=0.02)


@sick("saturated_units", also="vanishing_gradients layer_scale_outlier no_learning", layers="net.0.* net.2.* net.4.*")
def saturated_autoencoder() -> Learner:
    """A tanh autoencoder whose hidden layers are drawn from N(0, 2): its code is nothing but signs."""
    net = nets.mlp(64, 32, 12, 32, 64, act=nn.Tanh)
    for layer in nets.linears(net)[:3]:
        nn.init.normal_(layer.weight, std=2.0)
    pictures = data.pictures()
    net[6].weight.data.mul_(0.1)
    net[6].bias.data = pictures.tensors[0].mean(0)
    return Learner(net, pictures, loss=nn.functional.mse_loss, optimizer=SGD, lr=0.05)


@sick("symmetric_units", also="constant_weights no_learning", layers="net.0.weight net.2.weight")
def constant_initialisation() -> Learner:
    """All weights 0.01: every unit of a layer is the same, and stays the same."""
    net = nets.mlp(64, 32, 32, 10, act=nn.Tanh)
    for layer in nets.linears(net):
        nn.init.constant_(layer.weight, 0.01)
        nn.init.zeros_(layer.bias)
    return Learner(net, data.digits())


@sick("symmetric_units", also="constant_weights no_learning", layers="net.3.weight")
def constant_filters() -> Learner:
    """All filters of a convolution are one constant, and the head sees all channels alike."""
    net = nets.conv_net()
    nn.init.constant_(net[3].weight, 0.02)
    nn.init.zeros_(net[3].bias)
    head = net[7].weight.data.view(10, 16, 4)
    head.copy_(head[:, :1].clone().expand_as(head) / 4)
    return Learner(net, data.images(), lr=1e-3)


@sick("symmetric_units", layers="net.2.weight")
def widened_without_noise() -> Learner:
    """A layer of eight units was widened by copying them four times over, and the layer after it by splitting."""
    net = nets.mlp(64, 32, 32, 10)
    net[2].weight.data = net[2].weight.data[:8].repeat(4, 1)
    net[2].bias.data = net[2].bias.data[:8].repeat(4)
    net[4].weight.data = net[4].weight.data[:, :8].repeat(1, 4) / 4
    return Learner(net, data.digits())


@sick("symmetric_units", also="constant_weights", layers="net.rnn.weight_ih_l0")
def constant_recurrence() -> Learner:
    """All weights of a GRU and of its head are 0.05: its units remember one and the same thing."""
    net = nets.Recurrent(nn.GRU(8, 16, batch_first=True), 10)
    for parameter in net.rnn.parameters():
        nn.init.constant_(parameter, 0.05)
    head = net.head.weight.data
    head.copy_(head[:, :1].clone().expand_as(head))
    return Learner(net, data.rows_of_digits())


ZERO = "vanishing_gradients no_learning constant_weights symmetric_units dead_units"


@sick("zero_blocked_signal", also=ZERO, layers="net.*.weight")
def all_weights_zero() -> Learner:
    """All weights and biases are 0: only the last bias ever gets a gradient."""
    net = nets.mlp(64, 32, 32, 10)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return Learner(net, data.digits())


@sick("zero_blocked_signal", also=ZERO, layers="net.0.weight net.2.weight net.4.weight")
def zero_layer_in_the_middle() -> Learner:
    """A layer of zeros before a ReLU: nothing passes it, neither forwards nor backwards."""
    net = nets.mlp(64, 32, 32, 10)
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    return Learner(net, data.digits())


class Adapted(nn.Module):
    """A linear layer that is fixed, and two thin matrices that adapt it."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


@sick("zero_blocked_signal", also=ZERO, layers="net.0.a net.0.b net.2.a net.2.b")
def both_adapters_zero() -> Learner:
    """Both matrices of each low-rank adapter begin at 0, so that neither ever gets a gradient; only the head learns."""
    net = nets.mlp(64, 32, 32, 10)
    net[0], net[2] = Adapted(net[0]), Adapted(net[2])
    for layer in (net[0], net[2]):
        nn.init.zeros_(layer.a)
    return Learner(net, data.digits())


class Gated(nn.Module):
    """A residual branch behind a learned gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * self.down(nn.functional.gelu(self.up(x)))


@sick("zero_blocked_signal", also=ZERO, layers="net.1.* net.2.* net.3.*")
def zero_twice_in_a_branch() -> Learner:
    """The gates of residual branches begin at 0, and so do the matrices behind them: one zero too many."""
    net = nn.Sequential(nn.Linear(64, 24), *[Gated(24) for _ in range(3)], nn.Linear(24, 10))
    for branch in net[1:4]:
        nn.init.zeros_(branch.down.weight)
    return Learner(net, data.digits())


LOUD = "exploding_gradients diverging_loss oscillating_loss no_learning loss_spike gradient_spike dead_units"


@sick("layer_scale_outlier", also=LOUD, layers="net.6.weight")
def one_loud_layer() -> Learner:
    """One of six equal layers was initialised a hundred times larger: the loss begins in the tens or hundreds."""
    net = nets.he(nets.mlp(64, *[32] * 7, 10))
    net[6].weight.data.mul_(100)
    return Learner(net, data.digits(), lr=1e-3)


@sick("layer_scale_outlier", also=f"{LOUD} vanishing_gradients", layers="net.6.weight")
def one_loud_convolution() -> Learner:
    """One of five equal convolutions is thirty times larger: the first step throws the net to chance, for good."""
    body = [module for _ in range(5) for module in (nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)]
    net = nets.he(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *body, *head))
    net[6].weight.data.mul_(30)
    return Learner(net, data.images(), optimizer=SGD, lr=0.02, momentum=0.9)


@sick("layer_scale_outlier", also="vanishing_gradients dead_units no_learning", layers="net.6.weight")
def one_faint_layer() -> Learner:
    """One of six equal layers was initialised a thousand times smaller: what passes it is hardly there."""
    net = nets.he(nets.mlp(64, *[32] * 7, 10))
    net[6].weight.data.mul_(1e-3)
    return Learner(net, data.digits(), optimizer=SGD, lr=0.02)
