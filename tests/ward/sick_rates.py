"""Steps that are too large, too small or towards zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.ward import data, nets
from tests.ward.case import sick
from tests.ward.learner import Learner

SGD = torch.optim.SGD
WRECKED = (
    "diverging_loss oscillating_loss loss_spike gradient_spike exploding_gradients dead_units saturated_units "
    "no_learning vanishing_gradients non_finite_loss non_finite_gradients non_finite_weights"
)


@sick("learning_rate_too_high", also=WRECKED)
def sgd_a_hundred_times_too_fast() -> Learner:
    """A multilayer perceptron under SGD at 10 in place of 0.1."""
    return Learner(nets.mlp(64, 64, 64, 10), data.digits(), optimizer=SGD, lr=10.0, good_rate=0.1)


@sick("learning_rate_too_high", also=WRECKED)
def adam_a_hundred_times_too_fast() -> Learner:
    """A convolutional net under Adam at 0.3 in place of 0.003."""
    return Learner(nets.conv_net(), data.images(), lr=0.3, good_rate=3e-3)


@sick("learning_rate_too_high", also=WRECKED)
def residual_net_too_fast() -> Learner:
    """A ResNet under SGD with momentum at 20 in place of 0.05: normalisation keeps the activations, not the head."""
    return Learner(nets.res_net(), data.images(), optimizer=SGD, lr=20.0, momentum=0.9, good_rate=0.05)


@sick("learning_rate_too_high", also=WRECKED, steps=200)
def post_norm_transformer_without_warm_up() -> Learner:
    """A transformer that normalises after its branches, at 0.1 from the first step on: it forgets what it reads."""
    net = nets.LanguageModel(data.LETTERS, blocks=3, pre=False)
    return Learner(net, data.text(), lr=0.1, good_rate=3e-3)


@sick("learning_rate_too_high", also=WRECKED)
def recurrent_net_too_fast() -> Learner:
    """An LSTM under Adam at 1 in place of 0.01: its gates are thrown from one end to the other."""
    net = nets.Recurrent(nn.LSTM(8, 24, batch_first=True), 10)
    return Learner(net, data.rows_of_digits(), lr=1.0, good_rate=0.01)


@sick("learning_rate_too_high", also=WRECKED)
def autoencoder_too_fast() -> Learner:
    """An autoencoder under Adam at 0.5 in place of 0.01."""
    net = nets.mlp(64, 32, 12, 32, 64)
    return Learner(net, data.pictures(), loss=nn.functional.mse_loss, lr=0.5, good_rate=0.01)


@sick("learning_rate_too_high", also=WRECKED, onset=60)
def leap_of_the_learning_rate() -> Learner:
    """A schedule that was meant to divide by a hundred multiplies by it, in step 60."""
    net = nets.mlp(64, 64, 64, 10)
    leap = lambda step: 1.0 if step < 60 else 100.0  # noqa: E731 - a schedule
    return Learner(net, data.digits(), optimizer=SGD, lr=0.1, schedule=leap, good_rate=0.1)


@sick("learning_rate_too_high", also=WRECKED, onset=70, steps=120)
def leap_of_adam() -> Learner:
    """The same for a recurrent net under Adam, in step 70."""
    net = nets.Recurrent(nn.GRU(8, 24, batch_first=True), 10)
    leap = lambda step: 1.0 if step < 70 else 150.0  # noqa: E731 - a schedule
    return Learner(net, data.rows_of_digits(), lr=5e-3, schedule=leap, good_rate=5e-3)


@sick("learning_rate_too_low", also="no_learning", steps=120)
def sgd_that_crawls() -> Learner:
    """SGD at a ten-millionth: the loss stays, though every gradient is fine."""
    return Learner(nets.mlp(64, 64, 10), data.digits(), optimizer=SGD, lr=1e-7, good_rate=0.2)


@sick("learning_rate_too_low", also="no_learning", steps=120)
def adam_that_crawls() -> Learner:
    """A convolutional net under Adam at 1e-8."""
    return Learner(nets.conv_net(), data.images(), lr=1e-8, good_rate=5e-3)


@sick("learning_rate_too_low", also="no_learning", steps=120)
def warm_up_without_end() -> Learner:
    """A warm-up counted in samples where steps were meant: a million steps long."""
    net = nets.Recurrent(nn.LSTM(8, 24, batch_first=True), 10)
    return Learner(net, data.rows_of_digits(), lr=5e-3, schedule=lambda step: (step + 1) / 1e6, good_rate=0.01)


@sick("learning_rate_too_low", also="no_learning untrained_parameters", steps=120)
def schedule_that_rounds_to_zero() -> Learner:
    """An integer division in the schedule: the learning rate is 0 for the first thousand steps."""
    return Learner(nets.res_net(4, 1), data.images(), lr=5e-3, schedule=lambda step: step // 1000, good_rate=5e-3)


FADED = "no_learning vanishing_gradients dead_units"


@sick("weight_collapse", also=FADED)
def weight_decay_of_one() -> Learner:
    """SGD with a weight decay of 1 at a learning rate of 0.1: a tenth of every weight is lost in each step."""
    return Learner(nets.mlp(64, 32, 32, 10), data.digits(), optimizer=SGD, lr=0.1, weight_decay=1.0)


@sick("weight_collapse", also=FADED)
def decoupled_decay_of_a_hundred() -> Learner:
    """AdamW with a decay of 100 in place of 0.01: a tenth is lost in each step, more than Adam can rebuild."""
    return Learner(nets.conv_net(), data.images(), optimizer=torch.optim.AdamW, lr=1e-3, weight_decay=100.0)


@sick("weight_collapse", also=FADED)
def penalty_that_wins() -> Learner:
    """A penalty on the weights' squares that outweighs the loss a hundred times."""

    class Penalised(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            squares = sum(p.square().sum() for p in self.parameters())
            return super().training_step(batch, batch_idx) + 5.0 * squares

    net = nets.Recurrent(nn.GRU(8, 16, batch_first=True), 10)
    return Penalised(net, data.rows_of_digits(), optimizer=SGD, lr=0.01)
