"""Parameters that nobody trains, data out of scale, nets that learn by heart, replicas that part."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.ward import data, nets
from tests.ward.case import sick
from tests.ward.learner import Learner, Validated

SGD = torch.optim.SGD


class Partly(Learner):
    """Hands some of its parameters to its optimizer only."""

    part = "net.0"

    def configure_optimizers(self) -> torch.optim.Optimizer:
        chosen = [p for name, p in self.named_parameters() if name.startswith(self.part)]
        return self.optimizer(chosen, **self.options)


def partly(part: str, learner: Partly) -> Partly:
    learner.part = part
    return learner


@sick("untrained_parameters", also="stale_gradients no_learning", layers="net.7.*")
def head_left_out() -> Learner:
    """A convolutional net whose head is in no optimizer, although it wants a gradient."""
    return partly("net.0", Partly(nets.conv_net(), data.images()))


@sick("untrained_parameters", also="stale_gradients", layers="net.rnn.*")
def encoder_left_out() -> Learner:
    """A recurrent net of which only the head is trained, by mistake: nothing was frozen."""
    net = nets.Recurrent(nn.LSTM(8, 24, batch_first=True), 10)
    return partly("net.head", Partly(net, data.rows_of_digits()))


@sick("untrained_parameters", also="stale_gradients no_learning", layers="net.0.* net.2.*")
def optimizer_of_a_copy() -> Learner:
    """The optimizer was made for a copy of the net; only a new head that came later is the real one."""

    class Copied(Learner):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            body = copy.deepcopy(self.net[:3])
            return self.optimizer([*body.parameters(), *self.net[4].parameters()], **self.options)

    return Copied(nets.mlp(64, 32, 32, 10), data.digits(), optimizer=SGD, lr=0.05)


@sick("untrained_parameters", also="stale_gradients", layers="net.blocks.2.*")
def block_added_later() -> Learner:
    """A transformer grew a block after its optimizer was made."""

    class Grows(Learner):
        def on_fit_start(self) -> None:
            self.net.blocks.append(nets.Block(24))

    return Grows(nets.LanguageModel(data.LETTERS), data.text(), lr=2e-3)


@sick("untrained_parameters", also="no_learning", layers="net.body.*")
def features_detached() -> Learner:
    """A ``detach`` between the features and the head, left over from a test: the convolutions never get a gradient."""

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            *body, self.head = nets.conv_net()
            self.body = nn.Sequential(*body)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).detach())

    return Learner(Detached(), data.images())


@sick("input_scale", also="saturated_units vanishing_gradients no_learning", steps=150)
def raw_wine_in_a_tanh_net() -> Learner:
    """Wines by proline in milligrams, up to 1680, and hue around 1: one feature decides all that the units see."""
    return Learner(nets.mlp(13, 16, 3, act=nn.Tanh), TensorDataset(*data.raw_table("wine")), optimizer=SGD, lr=0.01)


@sick("input_scale", also="no_learning loss_spike gradient_spike exploding_gradients dead_units oscillating_loss")
def raw_cell_areas() -> Learner:
    """Cell areas up to 4254 beside shares of 0.1, straight from the table into a ReLU net."""
    x, y = data.raw_table("breast_cancer")
    return Learner(nets.mlp(30, 16, 2), TensorDataset(x, y), optimizer=SGD, lr=0.01)


@sick("input_scale", also="no_learning saturated_units dead_units", steps=120)
def times_since_1970() -> Learner:
    """Each row of a sequence carries its time in seconds since 1970, next to standardised values."""
    x, y = data.rows_of_digits().tensors
    when = 1.7e9 + 86400 * torch.arange(8.0)
    x = torch.cat([x, when[None, :, None].expand(len(x), 8, 1)], 2)
    net = nets.Recurrent(nn.LSTM(9, 24, batch_first=True), 10)
    return Learner(net, TensorDataset(x, y), lr=5e-3)


def noisy(n: int) -> TensorDataset:
    """Return digits, the first ``n`` with four labels in ten drawn by lot."""
    x, y = data.digits().tensors
    lots = torch.rand(n) < 0.4
    y[:n] = torch.where(lots, torch.randint(10, (n,)), y[:n])
    return TensorDataset(x, y)


@sick("overfitting", onset=20, steps=200)
def wide_net_and_few_digits() -> Learner:
    """A wide net, 96 digits and four wrong labels in ten: it learns all of them by heart."""
    few, others = data.halves(noisy(96), 96)
    return Validated(nets.mlp(64, 256, 256, 10), few, data.halves(others, 400)[0], lr=3e-3, batch=16)


@sick("overfitting", onset=20, steps=200)
def conv_net_and_few_images() -> Learner:
    """A convolutional net learns 64 images with wrong labels by heart."""
    few, others = data.halves(noisy(64), 64)
    few, others = (TensorDataset(d.tensors[0].view(-1, 1, 8, 8), d.tensors[1]) for d in (few, others))
    return Validated(nets.conv_net(16), few, data.halves(others, 400)[0], lr=5e-3, batch=16)


@sick("overfitting", onset=30, steps=200)
def one_page_by_heart() -> Learner:
    """A transformer reads the same sixty lines fifty times over, and others worse each time."""
    few, others = data.halves(data.text(n=192), 64)
    return Validated(nets.LanguageModel(data.LETTERS, width=32), few, others, lr=1e-2, batch=16)


@sick("dropout_range", also="no_learning", steps=150)
def dropout_of_95_per_cent() -> Learner:
    """Dropout was given the share to keep: 95 per cent of the units are dropped."""
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.95), nn.Linear(32, 10))
    return Learner(net, data.digits(), lr=1e-3)


@sick("dropout_range", also="no_learning", steps=150)
def dropout_of_all_channels() -> Learner:
    """The same in a convolutional net, twice over."""
    net = nets.conv_net()
    net.insert(6, nn.Dropout2d(0.9))
    net.insert(3, nn.Dropout(0.9))
    return Learner(net, data.images(), lr=1e-3)


@sick("rank_divergence", layers="net.*", devices=2, options=lambda: {"use_distributed_sampler": False}, steps=60)
def one_process_loads_other_weights() -> Learner:
    """Once DDP has made all copies equal, the second process loads weights of its own."""

    class Loads(Learner):
        def on_train_start(self) -> None:
            if self.global_rank == 1:
                for parameter in self.parameters():
                    parameter.data += 0.1 * torch.randn_like(parameter)

    return Loads(nets.mlp(64, 32, 10), data.digits())


@sick(
    "rank_divergence", layers="net.*", devices=2, options=lambda: {"use_distributed_sampler": False}, steps=80, onset=30
)
def one_process_clips_by_itself() -> Learner:
    """From step 30 on the second process halves its gradients after they were reduced: the copies part step by step."""

    class Halves(Learner):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.global_rank == 1 and self.trainer.global_step >= 30:
                for parameter in self.parameters():
                    parameter.grad *= 0.5

    return Halves(nets.mlp(64, 32, 10), data.digits(), optimizer=SGD, lr=0.1)
