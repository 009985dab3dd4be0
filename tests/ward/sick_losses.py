"""Losses that leap, climb, swing or stay; outputs that do not fit their loss; labels that say nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.ward import data, nets
from tests.ward.case import sick
from tests.ward.learner import Learner

SGD = torch.optim.SGD


@sick("loss_spike", onset=60)
def one_absurd_target() -> Learner:
    """One target is a thousand deviations away; the absolute error keeps the gradient what it always is."""
    x, y = data.table("diabetes").tensors
    x, y = x.repeat(3, 1), y.repeat(3, 1)
    y[60 * 8 + 1] = 1000
    return Learner(nets.mlp(10, 32, 1), TensorDataset(x, y), loss=nn.functional.l1_loss, batch=8, shuffle=False)


@sick("loss_spike", also="gradient_spike", onset=110, steps=150)
def garbled_batch() -> Learner:
    """A language model meets one batch in which every letter is the rarest one."""

    class Garbled(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            if self.trainer.global_step == 110:
                y = torch.full_like(y, data.LETTERS - 1)
            return self.loss(self(x), y)

    net = nn.Sequential(nn.Embedding(data.LETTERS, 16), nn.Linear(16, data.LETTERS))
    net[1].bias.data[-1] = -6.0

    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net

        def forward(self, tokens: Tensor) -> Tensor:
            return self.body(tokens).transpose(1, 2)

    return Garbled(Letters(), data.text(), lr=5e-3)


@sick("loss_spike", also="gradient_spike", onset=80, steps=120)
def sum_in_place_of_mean() -> Learner:
    """The loss of one batch was summed over its samples in place of averaged; clipping holds the weights."""

    class Sums(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * 32 if self.trainer.global_step == 80 else loss

    net = nets.Recurrent(nn.GRU(8, 24, batch_first=True), 10)
    return Sums(net, data.rows_of_digits(), lr=2e-3)


@sick("diverging_loss", also="no_learning exploding_gradients")
def climbs_the_gradient() -> Learner:
    """``maximize`` was left on from another project: the optimizer climbs."""
    return Learner(nets.mlp(64, 32, 10), data.digits(), optimizer=SGD, lr=0.05, maximize=True)


@sick("diverging_loss", also="exploding_gradients")
def chases_its_own_guess() -> Learner:
    """Targets are the net's own outputs plus a reward, with no discount: each step raises what the next one wants."""

    class Chases(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            with torch.no_grad():
                wanted = y + 1.5 * self(x.roll(1, 0)).abs()
            return self.loss(self(x), wanted)

    x, y = data.table("diabetes").tensors
    return Chases(nets.mlp(10, 32, 1), TensorDataset(x, 1 + y.abs()), loss=nn.functional.mse_loss, lr=1e-2)


@sick("diverging_loss", also="exploding_gradients learning_rate_too_high oscillating_loss", steps=150)
def momentum_above_one() -> Learner:
    """A momentum of 1.05: old steps grow in place of fading, slowly at first."""
    return Learner(
        nn.Linear(10, 1), data.table("diabetes"), loss=nn.functional.mse_loss, optimizer=SGD, lr=1e-4, momentum=1.05
    )


@sick("oscillating_loss", also="learning_rate_too_high", steps=200)
def gradients_ten_steps_late() -> Learner:
    """Workers hand in gradients of ten steps ago: each correction comes when it is no longer wanted."""

    class Late(Learner):
        def on_fit_start(self) -> None:
            self.on_their_way = [[torch.zeros_like(p) for p in self.parameters()] for _ in range(10)]

        def on_after_backward(self) -> None:
            self.on_their_way.append([p.grad.clone() for p in self.parameters()])
            for parameter, gradient in zip(self.parameters(), self.on_their_way.pop(0), strict=True):
                parameter.grad = gradient

    x = data.table("diabetes").tensors[0]
    points = TensorDataset(x, x.sum(1, keepdim=True))
    return Late(nn.Linear(10, 1), points, loss=nn.functional.mse_loss, optimizer=SGD, lr=0.0183, batch=442)


@sick("oscillating_loss", also="learning_rate_too_high", steps=150)
def undamped_momentum() -> Learner:
    """A momentum of 0.999 over full batches: the weights swing around the minimum and lose next to nothing of it."""
    x = data.table("diabetes").tensors[0][:, 2:3]
    points = TensorDataset(x, 3 * x + 2)
    return Learner(
        nn.Linear(1, 1), points, loss=nn.functional.mse_loss, optimizer=SGD, lr=0.02, momentum=0.999, batch=442
    )


@sick("no_learning", also="input_scale label_signal dead_units vanishing_gradients zero_blocked_signal", steps=120)
def blank_images() -> Learner:
    """A broken augmentation hands over blank images: there is nothing to tell the classes by."""

    class Blank(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            return self.loss(self(torch.zeros_like(x)), y)

    return Blank(nets.conv_net(), data.images())


@sick("no_learning", also="untrained_parameters")
def loss_cut_from_the_graph() -> Learner:
    """An error was silenced by ``loss.requires_grad_()``: the loss has a gradient, and the net has none."""

    class Cut(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            with torch.no_grad():
                logits = self(x)
            return self.loss(logits, y).requires_grad_()

    return Cut(nets.mlp(64, 32, 10), data.digits())


@sick("no_learning", also="label_signal vanishing_gradients zero_blocked_signal", steps=120)
def attends_to_padding() -> Learner:
    """The mask of the attention is upside down: the net reads the padding and leaves out the digit."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.query, self.head = nn.Linear(8, 16), nn.Linear(16, 1), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, torch.full((len(x), 4, 8), -0.8)], 1)  # rows without ink
            hidden = self.embed(x).tanh()
            padding = torch.arange(12) >= 8
            scores = self.query(hidden).squeeze(-1).masked_fill(~padding, float("-inf"))
            return self.head((scores.softmax(1)[..., None] * hidden).sum(1))

    return Learner(Reads(), data.rows_of_digits())


class Floored(Learner):
    """Knows a loss that its outputs cannot get below."""

    floor = 0.0


def floored(floor: float, learner: Floored) -> Floored:
    learner.floor = floor
    return learner


@sick("loss_output_mismatch", also="no_learning learning_rate_too_low")
def softmax_before_cross_entropy() -> Learner:
    """Cross entropy takes logits and gets probabilities: its floor is 1.46 for ten classes."""
    net = nn.Sequential(*nets.mlp(64, 32, 10), nn.Softmax(1))
    return floored(1.4612, Floored(net, data.digits(), optimizer=SGD, lr=0.1))


@sick("loss_output_mismatch", also="no_learning")
def softmax_before_cross_entropy_in_a_conv_net() -> Learner:
    """The same by ``nn.functional.softmax``, with a convolutional net and Adam, which does learn a little."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nets.conv_net()

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.softmax(self.body(x), dim=1)

    return floored(1.4612, Floored(Ends(), data.images()))


@sick("loss_output_mismatch", also="no_learning")
def sigmoid_before_bce_with_logits() -> Learner:
    """The loss applies a sigmoid of its own: outputs between 0 and 1 mean between 50 and 73 per cent."""
    x, y = data.table("breast_cancer").tensors
    net = nn.Sequential(*nets.mlp(30, 16, 1), nn.Sigmoid())
    targets = y[:, None].float()
    share = float(targets.mean())
    floor = share * 0.3133 + (1 - share) * 0.6931
    return floored(
        floor, Floored(net, TensorDataset(x, targets), loss=nn.functional.binary_cross_entropy_with_logits, lr=1e-2)
    )


@sick("loss_output_mismatch", also="no_learning zero_blocked_signal vanishing_gradients")
def softmax_over_one_unit() -> Learner:
    """A softmax over a single unit is 1, whatever comes in."""
    x, y = data.table("breast_cancer").tensors
    net = nn.Sequential(*nets.mlp(30, 16, 1), nn.Softmax(dim=1))
    targets = y[:, None].float()
    floor = 100 * float(1 - targets.mean()) * 0.6  # batches differ
    return floored(floor, Floored(net, TensorDataset(x, targets), loss=nn.functional.binary_cross_entropy))


@sick("loss_output_mismatch", also="no_learning dead_units")
def rectified_regression() -> Learner:
    """A ReLU after the last layer: negative targets cannot be met."""
    tables = data.table("diabetes")
    net = nn.Sequential(*nets.mlp(10, 32, 1), nn.ReLU())
    y = tables.tensors[1]
    return floored(0.5 * float(y.clamp(max=0).square().mean()), Floored(net, tables, loss=nn.functional.mse_loss))


@sick("loss_output_mismatch", also="no_learning saturated_units")
def bounded_regression() -> Learner:
    """A tanh after the last layer: targets go from -5 to 5."""
    points = data.curve()
    net = nn.Sequential(*nets.mlp(1, 32, 32, 1), nn.Tanh())
    y = 4 * points.tensors[1]
    floor = float((y.abs() - 1).clamp(min=0).square().mean())
    return floored(0.7 * floor, Floored(net, TensorDataset(points.tensors[0], y), loss=nn.functional.mse_loss, lr=1e-2))


@sick("loss_output_mismatch", also="diverging_loss")
def logits_for_nll_loss() -> Learner:
    """``nll_loss`` takes logarithms of probabilities and gets logits: the loss falls below 0, without end."""
    return floored(0.0, Floored(nets.mlp(64, 32, 10), data.digits(), loss=nn.functional.nll_loss))


@sick("loss_output_mismatch", also="no_learning label_signal")
def broadcast_targets() -> Learner:
    """Outputs of shape [32, 1] against targets of shape [32]: every output is held against every target."""
    x, y = data.table("diabetes").tensors
    floor = 0.7 * float(y.var())
    return floored(floor, Floored(nets.mlp(10, 32, 1), TensorDataset(x, y[:, 0]), loss=nn.functional.mse_loss, lr=1e-2))


@sick("label_signal", also="no_learning", steps=150)
def labels_shuffled() -> Learner:
    """Each batch's labels are in another order than its inputs."""

    class Shuffled(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            return self.loss(self(x), y[torch.randperm(len(y))])

    return Shuffled(nets.mlp(64, 32, 10), data.digits())


@sick("label_signal", also="no_learning", steps=150)
def labels_at_random() -> Learner:
    """Labels were drawn by lot for a ResNet."""
    x, y = data.images().tensors
    return Learner(nets.res_net(4, 1), TensorDataset(x, y[torch.randperm(len(y))]), optimizer=SGD, lr=0.02)


@sick(
    "label_signal", also="oscillating_loss loss_spike gradient_spike diverging_loss no_learning dead_units", steps=110
)
def sorted_by_class() -> Learner:
    """Digits come sorted and are not shuffled: a batch has one label, and ten such batches unlearn all others."""
    x, y = data.digits().tensors
    order = y.argsort(stable=True)
    return Learner(nets.mlp(64, 32, 10), TensorDataset(x[order], y[order]), batch=16, shuffle=False, lr=5e-3)


@sick("label_signal")
def one_label_only() -> Learner:
    """A broken loader says class 0 of everything; the loss is 0 soon, and nothing is learned."""
    x, y = data.images().tensors
    return Learner(nets.conv_net(), TensorDataset(x, torch.zeros_like(y)))
