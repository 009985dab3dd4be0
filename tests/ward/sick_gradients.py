"""Gradients that fade, grow, are not numbers, stand out or are an old sum, while the loss is a number."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from tests.ward import data, nets
from tests.ward.case import sick
from tests.ward.learner import Learner

SGD = torch.optim.SGD


@sick("vanishing_gradients", also="no_learning", layers="net.0.* net.2.* net.4.* net.6.* net.8.* net.10.*")
def deep_sigmoid() -> Learner:
    """Ten sigmoid layers: each lets at most a quarter of the gradient pass."""
    net = nets.mlp(64, *[32] * 10, 10, act=nn.Sigmoid)
    return Learner(net, data.digits(), optimizer=SGD, lr=0.1, momentum=0.9)


@sick("vanishing_gradients", also="no_learning", layers="net.0.* net.2.* net.4.* net.6.* net.8.*")
def deep_sigmoid_conv_net() -> Learner:
    """Eight sigmoid convolutions without shortcuts or normalisation."""
    sizes = [1] + [8] * 8
    layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(sizes)]
    body = [module for layer in layers for module in (layer, nn.Sigmoid())]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return Learner(net, data.images(), optimizer=SGD, lr=0.1, momentum=0.9)


@sick("vanishing_gradients", also="no_learning", layers="net.0.* net.2.* net.4.* net.6.*")
def deep_sigmoid_autoencoder() -> Learner:
    """A classical autoencoder with sigmoids all the way: the encoder hardly gets a gradient."""
    net = nets.mlp(64, 48, 32, 24, 16, 12, 16, 24, 32, 48, 64, act=nn.Sigmoid)
    pictures = data.pictures()
    net[-1].weight.data.mul_(0.1)
    net[-1].bias.data = pictures.tensors[0].mean(0)  # the mean picture, which is also all it ever draws
    return Learner(net, pictures, loss=nn.functional.mse_loss, optimizer=SGD, lr=0.1)


@sick("vanishing_gradients", also="no_learning learning_rate_too_low dead_units", layers="net.?.weight net.1?.weight")
def timid_initialisation() -> Learner:
    """Sixteen ReLU layers at a third of He's initialisation: nothing of the input arrives, and nothing comes back."""
    net = nets.he(nets.mlp(64, *[32] * 16, 10), gain=0.3)
    return Learner(net, data.digits(), optimizer=SGD, lr=0.05, momentum=0.9)


@sick("exploding_gradients", also="diverging_loss non_finite_loss non_finite_gradients non_finite_weights dead_units")
def bold_initialisation() -> Learner:
    """Ten ReLU layers at three times He's initialisation: gradients of a million in the first step."""
    net = nets.he(nets.mlp(64, *[32] * 10, 10), gain=3.0)
    return Learner(net, data.digits(), optimizer=SGD, lr=0.01)


@sick(
    "exploding_gradients",
    also="diverging_loss non_finite_loss non_finite_gradients non_finite_weights",
    layers="net.rnn.*",
)
def explosive_recurrence() -> Learner:
    """A ReLU recurrence that multiplies its state by 1.6 in each of 40 steps, forwards and backwards."""
    net = nets.Recurrent(nn.RNN(1, 16, nonlinearity="relu", batch_first=True), 1)
    net.rnn.weight_hh_l0.data = 1.6 * torch.eye(16)
    return Learner(net, data.running_sums(length=40), loss=nn.functional.mse_loss, optimizer=SGD, lr=0.01)


@sick(
    "exploding_gradients",
    also="diverging_loss non_finite_loss non_finite_gradients non_finite_weights no_learning",
)
def residual_tower() -> Learner:
    """Sixteen residual branches without normalisation: the stream grows by half in each, and its gradient too."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(nn.functional.relu(self.up(x)))

    net = nets.he(nn.Sequential(nn.Linear(64, 32), *[Branch() for _ in range(16)], nn.Linear(32, 10)), gain=1.4)
    return Learner(net, data.digits(), optimizer=SGD, lr=0.01)


class Pairs(Learner):
    """Learns a distance; the targets of a batch are pairs of rows."""

    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        return (self(a) - self(b)).square().sum(1).sqrt()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        other = x.roll(1, 0)
        if self.trainer.global_step >= self.from_step:
            other[0] = x[0]  # a pair of one and the same
        same = (y == y.roll(1, 0)).float()
        return (self.distances(x, other) - 2 * (1 - same)).square().mean()

    from_step = 0


@sick("non_finite_gradients", also="non_finite_loss non_finite_weights", layers="net.*")
def root_of_zero() -> Learner:
    """The distance between two equal rows is 0, and the root's slope there is infinite: gradients are NaN at once."""
    return Pairs(nets.mlp(64, 32, 8), data.digits(), lr=1e-3)


@sick("non_finite_gradients", also="non_finite_loss non_finite_weights", layers="net.*", onset=50)
def root_of_zero_later() -> Learner:
    """The same, but the first pair of equal rows comes in step 50."""
    learner = Pairs(nets.mlp(64, 32, 8, act=nn.GELU), data.digits(), lr=1e-3)
    learner.from_step = 50
    return learner


@sick("non_finite_gradients", also="non_finite_loss non_finite_weights", layers="net.*")
def where_does_not_mask() -> Learner:
    """``where`` leaves out the mean of a class without samples, but not its gradient, which is 0 / 0."""

    class Prototypes(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            features, member = self(x), nn.functional.one_hot(y, 11).float()  # nothing is of the eleventh class
            count = member.sum(0)[:, None]
            means = torch.where(count > 0, member.T @ features / count, 0.0)
            return nn.functional.cross_entropy(-torch.cdist(features, means), y)

    return Prototypes(nets.mlp(64, 32, 8), data.digits(), lr=1e-3)


class Burst(Learner):
    """One batch in the middle of the training is not like the others."""

    at = 60

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x * 300 if self.trainer.global_step == self.at else x), y)


@sick(
    "gradient_spike",
    also="loss_spike diverging_loss exploding_gradients input_scale dead_units no_learning vanishing_gradients",
    onset=60,
)
def one_batch_of_huge_values() -> Learner:
    """One batch came without normalisation, 300 times too large: the gradient is hundreds of times its usual size."""
    return Burst(nets.mlp(64, 32, 32, 10), data.digits(), optimizer=SGD, lr=0.05)


@sick("gradient_spike", also="loss_spike input_scale", onset=60, options=lambda: {"gradient_clip_val": 1.0})
def huge_values_clipped() -> Learner:
    """The same in a convolutional net with clipping, which saves the weights but not the batch."""
    return Burst(nets.conv_net(), data.images(), lr=2e-3)


@sick("gradient_spike", onset=70, options=lambda: {"gradient_clip_val": 1.0})
def nearly_perfect_guess() -> Learner:
    """The root of an error of almost 0 has a slope of a million: the gradient leaps, and the loss stays where it is."""

    class Roots(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            error = self(x) - y
            if self.trainer.global_step == 70:
                error[0] = error[0] - error[0].detach() + 1e-12
            return error.abs().sqrt().mean()

    return Roots(nets.mlp(10, 32, 1), data.table("diabetes"), lr=2e-3)


STALE = "exploding_gradients diverging_loss oscillating_loss loss_spike learning_rate_too_high"


@sick("stale_gradients", also=STALE, onset=1)
def zero_grad_forgotten() -> Learner:
    """``zero_grad`` does nothing: each step follows the sum of the gradients of all batches so far."""

    class Forgets(Learner):
        def optimizer_zero_grad(self, *args: object, **kwargs: object) -> None:
            """Leave them."""

    return Forgets(nets.mlp(64, 32, 32, 10), data.digits(), optimizer=SGD, lr=0.02)


class ByHand(Learner):
    """Manual optimization that clears gradients every so many batches only."""

    every = 0

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        if self.every and batch_idx % self.every == 0:
            optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


@sick("stale_gradients", also=STALE, onset=1)
def manual_without_zero_grad() -> Learner:
    """Manual optimization of a convolutional net under Adam, without ``zero_grad``."""
    return ByHand(nets.conv_net(), data.images(), lr=3e-3)


@sick("stale_gradients", also=STALE, onset=1)
def zero_grad_once_an_epoch() -> Learner:
    """A recurrent net whose gradients are cleared at the start of each epoch and nowhere else."""
    net = nets.Recurrent(nn.GRU(8, 24, batch_first=True), 10)
    learner = ByHand(net, data.rows_of_digits(), optimizer=SGD, lr=0.02)
    learner.every = 10**6
    return learner
