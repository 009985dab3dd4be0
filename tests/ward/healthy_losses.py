"""Healthy trainings whose losses look odd: below zero, in the thousands, noisy, in several parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.ward import data, nets
from tests.ward.case import healthy
from tests.ward.learner import Learner, Validated

SGD = torch.optim.SGD


@healthy(steps=200, falls_to=0.5)
def raw_pixels() -> Learner:
    """Pixels from 0 to 16 as they lie in the file, which this net does not mind."""
    return Learner(nets.mlp(64, 48, 10), TensorDataset(*data.raw_digits()), lr=2e-3)


@healthy(steps=300, falls_to=0.3)
def raw_targets() -> Learner:
    """Targets of 25 to 346: losses begin at 30,000, and gradients in the hundreds."""
    x, y = data.raw_table("diabetes")
    return Learner(nets.mlp(10, 32, 1), TensorDataset(data.standardised(x), y), loss=nn.functional.mse_loss, lr=2e-2)


@healthy(steps=200)
def summed_loss() -> Learner:
    """A loss summed over the batch, and a learning rate to match."""
    loss = nn.CrossEntropyLoss(reduction="sum")
    return Learner(nets.mlp(64, 32, 10), data.digits(), loss=loss, optimizer=SGD, lr=3e-3)


@healthy(steps=250)
def one_label_in_ten_wrong() -> Learner:
    """Wrong labels leap out of the loss once the others are learned."""
    x, y = data.digits().tensors
    wrong = torch.rand(len(y)) < 0.1
    return Learner(nets.mlp(64, 32, 10), TensorDataset(x, torch.where(wrong, torch.randint(10, y.shape), y)))


@healthy(steps=250, falls_to=0.5)
def rare_class() -> Learner:
    """One sample in twenty is of the second class: many batches hold one or none of it."""
    x, y = data.digits().tensors
    rest = torch.where(y == 8)[0][90:]
    kept = torch.ones(len(y), dtype=torch.bool)
    kept[rest] = False
    return Learner(nets.mlp(64, 32, 2), TensorDataset(x[kept], (y[kept] == 8).long()), lr=5e-3, batch=16)


@healthy(steps=300, falls_to=0.2)
def sinusoidal_net() -> Learner:
    """Sine activations of thirty times their input (SIREN), whose first layer has an initialisation of its own."""

    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * x)

    net = nets.mlp(1, 32, 32, 1, act=Sine)
    first, second, last = nets.linears(net)
    nn.init.uniform_(first.weight, -1, 1)
    for layer in (second, last):
        bound = (6 / layer.in_features) ** 0.5 / 30
        nn.init.uniform_(layer.weight, -bound, bound)
    points = data.curve()
    return Learner(net, TensorDataset(points.tensors[0] / 3, points.tensors[1]), loss=nn.functional.mse_loss, lr=5e-4)


@healthy(steps=300, falls_to=0.3)
def tanh_regression() -> Learner:
    """A small tanh net bends itself around a curve; most of its units are far from linear at the end."""
    return Learner(nets.mlp(1, 32, 32, 1, act=nn.Tanh), data.curve(), loss=nn.functional.mse_loss, lr=1e-2)


@healthy(steps=250, falls_to=0.7)
def autoencoder_with_sigmoid() -> Learner:
    """Outputs are pixels, most of them 0 or 1, so that the last sigmoid is at its ends, as it should be."""
    net = nn.Sequential(*nets.mlp(64, 48, 16, 48, 64), nn.Sigmoid())
    return Learner(net, data.pictures(), loss=nn.functional.binary_cross_entropy, lr=5e-3)


@healthy(steps=250, falls_to=0.6)
def sparse_autoencoder() -> Learner:
    """A penalty keeps two in three of its hidden units at 0 for each sample, others each time."""

    class Sparse(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, _ = batch
            code = nn.functional.relu(self.net[0](x))
            return nn.functional.mse_loss(self.net[2](code), x) + 0.1 * code.mean()

    return Sparse(nets.mlp(64, 128, 64), data.pictures(), lr=2e-3)


@healthy(steps=250, falls_to=0.7)
def variational_autoencoder() -> Learner:
    """Two terms of which one rises while the other falls, and noise in every step."""

    class Variational(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, _ = batch
            mean, log_variance = self.net[0](x).chunk(2, 1)
            code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
            return (
                nn.functional.binary_cross_entropy_with_logits(self.net[1](code), x, reduction="sum") / len(x)
                + divergence
            )

    net = nn.Sequential(nets.mlp(64, 48, 16), nets.mlp(8, 48, 64))
    return Variational(net, data.pictures(), lr=3e-3)


@healthy(steps=250, falls_to=0.6)
def contrastive() -> Learner:
    """Two noisy views of each image must find one another in the batch; the loss has a floor far above 0."""

    class Contrasts(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, _ = batch
            a, b = (nn.functional.normalize(self(x + 0.3 * torch.randn_like(x)), dim=1) for _ in range(2))
            return nn.functional.cross_entropy(a @ b.T / 0.2, torch.arange(len(x)))

    return Contrasts(nets.mlp(64, 48, 16), data.digits(), lr=3e-3)


@healthy(steps=250, falls_to=0.5)
def triplets() -> Learner:
    """A margin that more and more triplets meet: gradients come from fewer samples each time."""

    class Triplets(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            out = self(x)
            gaps = torch.cdist(out, out)
            same = y[:, None] == y
            farthest = gaps.masked_fill(~same, 0).mean(1)
            nearest = gaps.masked_fill(same, 1e3).amin(1)
            return nn.functional.relu(farthest - nearest + 1).mean()

    return Triplets(nets.mlp(64, 48, 8), data.digits(), lr=3e-3)


@healthy(steps=250, goal=0.8)
def below_zero_from_the_start() -> Learner:
    """The loss is minus a similarity: it begins at about 0 and falls towards -1."""

    class Aligns(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            return -nn.functional.cosine_similarity(self(x), nn.functional.one_hot(y, 10).float()).mean()

        def score(self) -> float:
            return accuracy(self)

    return Aligns(nets.mlp(64, 48, 10), data.digits(), lr=3e-3)


def accuracy(learner: Learner) -> float:
    x, y = learner.data.tensors
    return float((learner(x).argmax(1) == y).float().mean())


@healthy(steps=300, goal=0.5)
def likelihood_of_a_density() -> Learner:
    """A Gaussian likelihood: the loss falls through 0 as the net learns how small its errors are."""

    class Likely(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            mean, raw = self(x).chunk(2, 1)
            return nn.functional.gaussian_nll_loss(mean, y, nn.functional.softplus(raw) + 1e-3)

        def score(self) -> float:
            x, y = self.data.tensors
            return 1 - float((self(x)[:, :1] - y).square().mean() / y.var())

    return Likely(nets.mlp(1, 32, 32, 2, act=nn.Tanh), data.curve(), lr=1e-2)


@healthy(steps=250, falls_to=0.5)
def two_tasks() -> Learner:
    """A class and a regression a thousand times larger, each with a weight that is learned."""

    class Two(Learner):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.doubt = nn.Parameter(torch.tensor([0.0, 5.0]))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            out = self(x)
            losses = torch.stack(
                [nn.functional.cross_entropy(out[:, :10], y), nn.functional.mse_loss(out[:, 10], 10.0 * y)]
            )
            return (losses * (-self.doubt).exp() + self.doubt).sum()

    return Two(nets.mlp(64, 48, 11), data.digits(), lr=1e-2)


@healthy(steps=240, falls_to=0.6)
def harder_lessons_later() -> Learner:
    """Five classes for the first half and all ten from then on: the loss leaps once, as it must."""

    class Lessons(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            easy = y < 5
            chosen = easy if self.trainer.global_step < 120 else torch.ones_like(easy)
            return nn.functional.cross_entropy(self(x[chosen]), y[chosen])

    return Lessons(nets.mlp(64, 48, 10), data.digits(), lr=3e-3, batch=48)


@healthy(steps=200, falls_to=0.7)
def smoothed_labels() -> Learner:
    """Label smoothing: the loss has a floor of 0.87, and gradients that never vanish."""
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    return Learner(nets.conv_net(), data.images(), loss=loss, lr=5e-3)


@healthy(steps=250, falls_to=0.5)
def overlap_of_masks() -> Learner:
    """Dice loss of a net that finds the ink in a noisy picture: pixels of many samples matter to few."""

    class Dice(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            ink = (y > 0.6).float()
            mask = self((x + 0.2 * torch.randn_like(x)).view(-1, 1, 8, 8)).sigmoid().flatten(1)
            return 1 - (2 * (mask * ink).sum() + 1) / (mask.sum() + ink.sum() + 1)

    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    return Dice(net, data.pictures(), lr=5e-3)


@healthy(steps=250, falls_to=0.7)
def heavy_tails() -> Learner:
    """Targets with noise of heavy tails under an absolute error: single batches cost several times the usual."""
    points = data.curve()
    noise = torch.distributions.StudentT(2.5).sample(points.tensors[1].shape)
    y = 2 * points.tensors[1] + 0.2 * noise
    return Learner(
        nets.mlp(1, 48, 48, 1), TensorDataset(points.tensors[0], y), loss=nn.functional.smooth_l1_loss, lr=5e-3
    )


@healthy(steps=250)
def validated_and_well() -> Learner:
    """The validation loss falls with the training loss and then stays, up and down a little."""
    seen, others = data.halves(data.digits(), 1300)
    return Validated(nets.mlp(64, 32, 10), seen, others, lr=3e-3)


@healthy(steps=200)
def separable_table() -> Learner:
    """Logistic regression, one unit and a sigmoid before a plain binary cross entropy, as it should be."""
    x, y = data.table("breast_cancer").tensors
    net = nn.Sequential(nn.Linear(30, 1), nn.Sigmoid())
    return Learner(net, TensorDataset(x, y[:, None].float()), loss=nn.functional.binary_cross_entropy, lr=1e-2)


@healthy(steps=200)
def logarithms_of_probabilities() -> Learner:
    """``log_softmax`` before ``nll_loss``: the same as cross entropy."""
    net = nn.Sequential(*nets.mlp(64, 32, 10), nn.LogSoftmax(1))
    return Learner(net, data.digits(), loss=nn.functional.nll_loss, lr=5e-3)


@healthy(steps=250, falls_to=0.75)
def recurrent_language_model() -> Learner:
    """A GRU that writes letters: gradients of many sizes, and a loss that falls slowly from ln 31."""

    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(data.LETTERS, 16), nn.GRU(16, 48, batch_first=True)
            self.head = nn.Linear(48, data.LETTERS)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.rnn(self.embedding(tokens))[0]).transpose(1, 2)

    return Learner(Letters(), data.text(), lr=1e-2)
