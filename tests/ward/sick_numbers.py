"""Numbers that are no numbers, or too small to count: losses, weights, half precision."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.ward import data, nets
from tests.ward.case import sick
from tests.ward.learner import Learner

BROKEN = "non_finite_gradients non_finite_weights"
LATER = "non_finite_loss non_finite_gradients"


@sick("non_finite_loss", also=f"{BROKEN} input_scale", onset=40)
def one_missing_value() -> Learner:
    """One cell of the table is missing: the 41st batch brings a NaN."""
    x, y = data.table("breast_cancer").tensors
    x[40 * 8 + 3, 5] = float("nan")
    return Learner(nets.mlp(30, 32, 2), TensorDataset(x, y), batch=8, shuffle=False)


@sick("non_finite_loss", also=BROKEN)
def logarithm_of_zero() -> Learner:
    """A divergence of one-hot targets, written by hand: 0 times the logarithm of 0."""

    def divergence(logits: Tensor, y: Tensor) -> Tensor:
        target = nn.functional.one_hot(y, 10).float()
        return (target * (target.log() - logits.log_softmax(1))).sum(1).mean()

    return Learner(nets.conv_net(), data.images(), loss=divergence)


@sick("non_finite_loss", also=BROKEN)
def constant_feature() -> Learner:
    """Each batch is standardised by its own deviation, which is 0 for the pixels in the corners."""

    class Standardises(Learner):
        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - x.mean(0)) / x.std(0))

    return Standardises(nets.mlp(64, 32, 10), data.digits())


@sick("non_finite_loss", also=BROKEN, onset=30)
def nothing_but_padding() -> Learner:
    """A sequence of padding alone: the softmax of its attention runs over nothing."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.query, self.head = nn.Linear(8, 16), nn.Linear(16, 1), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x).relu()
            scores = self.query(h).squeeze(-1).masked_fill((x == 0).all(-1), float("-inf"))
            return self.head((scores.softmax(1)[..., None] * h).sum(1))

    x, y = data.rows_of_digits(1600).tensors
    x[30 * 16 + 7] = 0
    return Learner(Masked(), TensorDataset(x, y), batch=16, shuffle=False)


@sick("non_finite_loss", also=BROKEN, onset=50)
def mean_over_nothing() -> Learner:
    """The loss is averaged over the labels that are known, and one batch has none."""
    x, y = data.digits().tensors
    y[50 * 16 : 51 * 16] = -100  # cross entropy leaves these out
    return Learner(nets.mlp(64, 32, 10), TensorDataset(x, y), batch=16, shuffle=False)


@sick("non_finite_loss", also=f"{BROKEN} exploding_gradients loss_spike gradient_spike", onset=45)
def exponential_overflow() -> Learner:
    """A rate is the exponential of the output, and one row is a thousand times too large."""
    x, y = data.table("diabetes").tensors
    x[45 * 8] = 1e4 * x[45 * 8].abs() * torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    net = nn.Linear(10, 1)
    nn.init.constant_(net.weight, 0.1)
    likelihood = nn.PoissonNLLLoss()
    return Learner(net, TensorDataset(x, y.exp().round()), loss=likelihood, batch=8, shuffle=False, lr=1e-3)


@sick("non_finite_weights", also=LATER, layers="net.2.weight")
def checkpoint_with_nan() -> Learner:
    """A weight loaded from a broken file: one of its elements is NaN before the first step."""
    net = nets.mlp(64, 32, 32, 10)
    net[2].weight.data[3, 4] = float("nan")
    return Learner(net, data.digits())


@sick("non_finite_weights", also=LATER, layers="net.blocks.1.up.weight")
def checkpoint_with_infinity() -> Learner:
    """A matrix of a transformer overflowed as it was converted to half precision and back."""
    net = nets.LanguageModel(data.LETTERS)
    row = net.blocks[1].up.weight.data[0]
    row.copy_((1e7 * row).half())
    return Learner(net, data.text(), lr=1e-3)


@sick("non_finite_weights", also=LATER, layers="net.0.weight")
def division_by_zero_in_the_optimizer() -> Learner:
    """Adam without its epsilon divides 0 by 0 where an element never had a gradient: the pixels that are always 0."""
    x, y = data.pictures().tensors[0], data.digits().tensors[1]
    return Learner(nets.mlp(64, 32, 10), TensorDataset(x, y), lr=1e-3, eps=0.0)


@sick("non_finite_weights", also=LATER, layers="net.0.weight", onset=40)
def empty_row_normalised() -> Learner:
    """Rows are brought to length 1 after every step; the row that was pruned in step 40 has none."""

    class Normalises(Learner):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            weight = self.net[0].weight.data
            if self.trainer.global_step == 40:
                weight[5] = 0
            weight /= weight.norm(dim=1, keepdim=True)

    return Normalises(nets.mlp(64, 32, 10), data.digits())


class HalfScaler:
    """Makes the Trainer's options for float16 on a CPU."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(self) -> dict[str, Any]:
        scaler = torch.amp.GradScaler("cpu", **self.options)
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


class Rescaled(Learner):
    """Divides hidden rows by their deviation; padding, which the loss leaves out, has none."""

    padded_from = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        hidden = nn.functional.relu(self.net[0](x))
        if self.seen >= self.padded_from:
            hidden = torch.cat([hidden, 0 * hidden[:1]])
        self.seen += 1
        spread = (hidden.half().var(1, keepdim=True) + 1e-8).sqrt()
        hidden = hidden / torch.where(spread > 0, spread, 1.0)
        return nn.functional.cross_entropy(self.net[2](hidden[: len(y)]).float(), y)

    seen = 0


@sick("overflow_skips", also="non_finite_gradients no_learning", options=HalfScaler())
def epsilon_below_half_precision() -> Learner:
    """1e-8 is 0 in float16, so padding is divided by 0 on the way back: every step is skipped."""
    return Rescaled(nets.mlp(64, 32, 10), data.digits())


@sick("overflow_skips", also="non_finite_gradients no_learning", onset=50, options=HalfScaler())
def padding_from_step_50() -> Learner:
    """The same, but padding comes in step 50 only; nothing is learned from there on."""
    learner = Rescaled(nets.mlp(64, 32, 10), data.digits())
    learner.padded_from = 50
    return learner


@sick(
    "overflow_skips",
    also="non_finite_gradients no_learning",
    options=HalfScaler(init_scale=2.0**26, backoff_factor=0.999),
)
def scale_that_hardly_moves() -> Learner:
    """The loss is scaled by 67 million, and the scale may shrink by a thousandth at a time: every step overflows."""
    return Learner(nets.conv_net(), data.images())


def bf16() -> dict[str, Any]:
    """Weights themselves in bfloat16."""
    return {"precision": "bf16-true"}


class Half(Learner):
    """Its inputs are cast to what its weights are."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x).float(), y)


@sick("lost_updates", also="learning_rate_too_low no_learning", layers="net.*.weight", options=bf16)
def small_steps_in_bfloat16() -> Learner:
    """Plain SGD in bfloat16: a step is less than half of the distance to the next number."""
    return Half(nets.mlp(64, 32, 10), data.digits(), optimizer=torch.optim.SGD, lr=2e-3)


@sick(
    "lost_updates",
    also="learning_rate_too_low no_learning",
    layers="net.embedding.weight net.*.ln?.weight net.norm.weight",
    options=bf16,
)
def language_model_in_bfloat16() -> Learner:
    """Adam in bfloat16: steps of 1e-4 leave weights of size 1 where they are."""
    net = nets.LanguageModel(data.LETTERS, std=1.0)
    return Half(net, data.text(), lr=1e-4)
