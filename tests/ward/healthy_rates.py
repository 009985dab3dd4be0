"""Healthy trainings whose steps look odd: schedules, clipping, precision, other optimizers, hardly any data."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.ward import data, nets
from tests.ward.case import healthy
from tests.ward.learner import Learner
from tests.ward.sick_numbers import HalfScaler

SGD = torch.optim.SGD


@healthy(steps=200)
def plain_perceptron() -> Learner:
    """Nothing special: whatever is said of it is wrong."""
    return Learner(nets.mlp(64, 64, 64, 10), data.digits())


@healthy(steps=300, falls_to=0.01)
def converged() -> Learner:
    """It has converged long before it ends: loss and gradients are a millionth of what they were, as they should."""
    return Learner(nets.mlp(13, 32, 3), data.table("wine"), lr=1e-2)


@healthy(steps=300, falls_to=0.01)
def margins_all_met() -> Learner:
    """A hinge loss that is met by every sample: loss and gradients are exactly 0 in most of the last steps."""

    def hinge(out: Tensor, y: Tensor) -> Tensor:
        return nn.functional.relu(1 - out[:, 0] * (2 * y - 1)).mean()

    x, y = data.table("iris").tensors
    return Learner(nets.mlp(4, 32, 1), TensorDataset(x, (y == 0).long()), loss=hinge, lr=1e-2)


@healthy(steps=200, falls_to=0.8)
def transformer_with_warm_up() -> Learner:
    """The learning rate climbs from 0 over sixty steps, and updates and gradients with it."""
    net = nets.LanguageModel(data.LETTERS, pre=False)
    return Learner(net, data.text(), lr=3e-3, schedule=lambda step: min(step / 60, 1.0))


@healthy(steps=240, falls_to=0.5)
def cosine_with_restarts() -> Learner:
    """The learning rate falls to 0 and leaps back to its height three times, and the loss with it."""
    wave = lambda step: 0.5 + 0.5 * math.cos(math.pi * (step % 80) / 80)  # noqa: E731 - a schedule
    return Learner(nets.conv_net(), data.images(), lr=1e-2, schedule=wave)


@healthy(steps=200)
def one_cycle() -> Learner:
    """Up to a high learning rate and down to almost none within the training."""

    class Cycle(Learner):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.01, momentum=0.9)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=201)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Cycle(nets.res_net(4, 1), data.images())


@healthy(steps=250)
def step_decay() -> Learner:
    """The learning rate is divided by ten twice; the loss goes on falling, but slowly."""
    drops = lambda step: 0.1 ** (step // 100)  # noqa: E731 - a schedule
    return Learner(nets.mlp(64, 64, 10), data.digits(), optimizer=SGD, lr=0.2, momentum=0.9, schedule=drops)


@healthy(steps=200, options=lambda: {"gradient_clip_val": 0.1})
def clipped_in_every_step() -> Learner:
    """Gradients are clipped to a tenth or less in nearly every step, by design."""
    return Learner(nets.Recurrent(nn.LSTM(8, 32, batch_first=True), 10), data.rows_of_digits(), lr=1e-2)


@healthy(steps=150, options=HalfScaler(init_scale=2.0**36))
def scaler_finds_its_scale() -> Learner:
    """The first gradients overflow in float16, until the GradScaler has halved its scale a dozen times."""
    return Learner(nets.mlp(64, 32, 10), data.digits(), lr=5e-3)


@healthy(steps=200, options=HalfScaler(growth_interval=20))
def scaler_probes_its_scale() -> Learner:
    """The GradScaler doubles its scale every twenty steps, so that one step is skipped now and then."""
    return Learner(nets.mlp(64, 32, 10), data.digits(), lr=5e-3)


@healthy(steps=150, falls_to=0.8, options=lambda: {"precision": "bf16-mixed"})
def mixed_bfloat16() -> Learner:
    """Forward passes in bfloat16, weights in float32: gradients are coarse and updates are not lost."""
    return Learner(nets.LanguageModel(data.LETTERS), data.text(), lr=3e-3)


@healthy(steps=150, options=lambda: {"precision": "bf16-true"})
def bfloat16_with_large_steps() -> Learner:
    """Weights in bfloat16 and steps that are large enough for them."""

    class Half(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            return self.loss(self(x).float(), y)

    return Half(nets.mlp(64, 64, 10), data.digits(), lr=1e-2)


class Remainder(Learner):
    """Keeps the short batch at the end of an epoch."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=self.batch, shuffle=True)


@healthy(steps=150, options=lambda: {"accumulate_grad_batches": 4})
def accumulated_with_a_remainder() -> Learner:
    """Four batches make a step, but for the last of an epoch, which has one short batch: its gradient is odd."""
    return Remainder(nets.mlp(64, 32, 10), data.digits(200), lr=1e-2, batch=16)


@healthy(steps=300)
def batches_of_one() -> Learner:
    """One sample at a time: losses of 0 and of 5 in turn, gradients of all sizes, many of them 0."""
    return Learner(nets.mlp(13, 16, 3), data.table("wine"), optimizer=SGD, lr=0.02, batch=1)


@healthy(steps=300)
def batches_of_four() -> Learner:
    """Small noisy batches of a small convolutional net; a ReLU channel rests for many of them."""
    return Learner(nets.conv_net(), data.images(), lr=3e-3, batch=4)


@healthy(steps=250, falls_to=0.1)
def edge_of_stability() -> Learner:
    """Full batches at a rate at which the loss rises in one step of five, and falls all the same."""

    def squares(out: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(out, 5 * nn.functional.one_hot(y, 10).float())

    net = nets.mlp(64, 32, 10, act=nn.Tanh)
    return Learner(net, data.digits(300), loss=squares, optimizer=SGD, lr=0.8, batch=300)


@healthy(steps=200)
def nesterov() -> Learner:
    """SGD with Nesterov's momentum and weight decay, on a ResNet."""
    return Learner(
        nets.res_net(), data.images(), optimizer=SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


@healthy(steps=40, falls_to=0.5)
def lbfgs() -> Learner:
    """A quasi-Newton method that runs the closure many times in a step, over the full batch."""
    net = nets.mlp(13, 16, 3, act=nn.Tanh)
    return Learner(net, data.table("wine"), optimizer=torch.optim.LBFGS, lr=0.5, max_iter=5, batch=178)


@healthy(steps=200)
def adafactor() -> Learner:
    """An optimizer that scales its steps by the size of the weights."""
    return Learner(nets.mlp(64, 64, 10), data.digits(), optimizer=torch.optim.Adafactor, lr=3e-2)


@healthy(steps=200)
def sign_descent() -> Learner:
    """Steps of one size whatever the gradient: Adam without memory."""
    return Learner(nets.mlp(64, 32, 10), data.digits(), lr=1e-3, betas=(0.0, 0.0))


@healthy(steps=300)
def strong_weight_decay() -> Learner:
    """Weights drawn three times too large, and an AdamW whose decay takes them down to a third, as meant."""
    net = nets.mlp(64, 64, 10)
    for layer in nets.linears(net):
        layer.weight.data.mul_(3)
    return Learner(net, data.digits(), optimizer=torch.optim.AdamW, lr=3e-3, weight_decay=3.0)


@healthy(steps=250, options=lambda: {"callbacks": [StochasticWeightAveraging(1e-2, swa_epoch_start=2)]})
def averaged_weights() -> Learner:
    """Lightning averages the weights from the third epoch on, and changes the learning rate to do it."""
    return Learner(nets.mlp(64, 32, 10), data.digits(640), optimizer=SGD, lr=0.1)


@healthy(steps=15, falls_to=0.8)
def over_before_it_began() -> Learner:
    """Fifteen steps, in which nothing can be told."""
    return Learner(nets.mlp(13, 32, 3), data.table("wine"), lr=1e-2)


@healthy(steps=300, falls_to=0.93)
def tuned_gently() -> Learner:
    """A trained net meets pictures with inverted ink, at a hundredth of the learning rate it was trained at."""
    net, (x, y) = nets.mlp(64, 64, 10), data.digits().tensors
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return Learner(net, TensorDataset(-x[:600], y[:600]), lr=3e-5, batch=600)


@healthy(steps=100, devices=2)
def two_processes() -> Learner:
    """Two replicas, each with its own batches and one set of weights."""
    return Learner(nets.mlp(64, 32, 10), data.digits(), lr=5e-3)
