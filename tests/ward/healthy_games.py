"""Healthy trainings in which losses need not fall: opponents, rewards, targets that move, optimization by hand."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.ward import data, nets
from tests.ward.case import healthy
from tests.ward.learner import Learner


class Duel(Learner):
    """A generator and a critic that take turns; each has an optimizer."""

    rounds = 1  # of the critic, for each of the generator
    rate = 2e-3

    def __init__(self, points: TensorDataset, **options: Any) -> None:
        super().__init__(nn.ModuleDict({"maker": nets.mlp(4, 32, 2), "critic": nets.mlp(2, 32, 1)}), points, **options)
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        parts = (self.net["maker"], self.net["critic"])
        return [torch.optim.Adam(part.parameters(), lr=self.rate, betas=(0.5, 0.9)) for part in parts]

    def critic_loss(self, real: Tensor, made: Tensor) -> Tensor:
        critic = self.net["critic"]
        return nn.functional.softplus(-critic(real)).mean() + nn.functional.softplus(critic(made)).mean()

    def maker_loss(self, made: Tensor) -> Tensor:
        return nn.functional.softplus(-self.net["critic"](made)).mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        real, _ = batch
        for_maker, for_critic = self.optimizers()
        loss = self.critic_loss(real, self.net["maker"](torch.randn(len(real), 4)).detach())
        self.take(for_critic, loss)
        if batch_idx % self.rounds:
            return loss
        self.toggle_optimizer(for_maker)
        self.take(for_maker, self.maker_loss(self.net["maker"](torch.randn(len(real), 4))))
        self.untoggle_optimizer(for_maker)
        return loss

    def take(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def score(self) -> float:
        """Return minus the distance between the means of what is real and what is made."""
        made = self.net["maker"](torch.randn(1000, 4))
        return -float((made.mean(0) - self.data.tensors[0].mean(0)).norm())


def cloud() -> TensorDataset:
    """Return points around (2, -1)."""
    points = torch.tensor([2.0, -1.0]) + 0.5 * torch.randn(1024, 2)
    return TensorDataset(points, points)


@healthy(steps=600, goal=-1.0)
def adversaries() -> Learner:
    """A GAN: both losses hover around ln 2, neither falls, and the points that are made come closer."""
    return Duel(cloud())


class Penalised(Duel):
    """A Wasserstein critic with a penalty on the gradient of its output."""

    rounds = 4
    rate = 5e-3

    def critic_loss(self, real: Tensor, made: Tensor) -> Tensor:
        critic, share = self.net["critic"], torch.rand(len(real), 1)
        between = (share * real + (1 - share) * made).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return critic(made).mean() - critic(real).mean() + (slope.norm(dim=1) - 1).square().mean()

    def maker_loss(self, made: Tensor) -> Tensor:
        return -self.net["critic"](made).mean()


@healthy(steps=600, goal=-0.8)
def adversaries_with_gradient_penalty() -> Learner:
    """A Wasserstein GAN: losses of both signs, and a gradient of a gradient in each step."""
    return Penalised(cloud())


class Rewarded(Learner):
    """Reads a digit, draws an answer and is told whether it was right."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        answers = torch.distributions.Categorical(logits=self(x))
        drawn = answers.sample()
        reward = (drawn == y).float()
        return -(answers.log_prob(drawn) * (reward - reward.mean())).mean() - 0.01 * answers.entropy().mean()

    def score(self) -> float:
        x, y = self.data.tensors
        return float((self(x).argmax(1) == y).float().mean())


@healthy(steps=300, goal=0.4)
def policy_gradient() -> Learner:
    """Rewards in place of labels: the loss hovers around 0 with either sign while more and more answers are right."""
    return Rewarded(nets.mlp(64, 48, 10), data.digits(), lr=5e-3, batch=64)


@healthy(steps=300, goal=0.4)
def actor_and_critic() -> Learner:
    """The same with a second net that learns what reward to expect, and an optimizer for each."""

    class Acts(Rewarded):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.critic = nets.mlp(64, 32, 1)
            self.automatic_optimization = False

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            parts = ((self.net, 8e-3), (self.critic, 2e-3))
            return [torch.optim.Adam(part.parameters(), lr=lr) for part, lr in parts]

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            answers, expected = torch.distributions.Categorical(logits=self(x)), self.critic(x)[:, 0]
            drawn = answers.sample()
            reward = (drawn == y).float()
            actor = -(answers.log_prob(drawn) * (reward - expected.detach())).mean()
            for optimizer, loss in zip(
                self.optimizers(), (actor, nn.functional.mse_loss(expected, reward)), strict=True
            ):
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return actor.detach()

    return Acts(nets.mlp(64, 48, 10), data.digits(), batch=64)


@healthy(steps=300, goal=0.8)
def values_of_a_chain() -> Learner:
    """Temporal differences with a target net that is copied every 25 steps: targets leap, and the loss with them."""

    class Values(Learner):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.target = copy.deepcopy(self.net).requires_grad_(False)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            place, reward = batch
            if self.trainer.global_step % 25 == 0:
                self.target.load_state_dict(self.net.state_dict())
            after = (place + 1) % 8
            with torch.no_grad():
                wanted = reward + 0.8 * self.target(nn.functional.one_hot(after, 8).float())
            return nn.functional.mse_loss(self.net(nn.functional.one_hot(place, 8).float()), wanted)

        def score(self) -> float:
            """Return how well the values of the eight places are explained."""
            reward = torch.tensor([0.0] * 7 + [1.0])
            step = torch.eye(8).roll(1, 1)
            truth = torch.linalg.solve(torch.eye(8) - 0.8 * step, reward)
            return 1 - float((self.net(torch.eye(8))[:, 0] - truth).square().mean() / truth.var())

    place = torch.randint(8, (512,))
    return Values(nets.mlp(8, 32, 1), TensorDataset(place, (place == 7).float()[:, None]), lr=1e-2)


@healthy(steps=300)
def an_optimizer_each() -> Learner:
    """Manual optimization: body and head have an optimizer each, of different kinds, and one backward pass."""

    class Two(Learner):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.automatic_optimization = False

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            body, head = self.net[0], self.net[2]
            return [torch.optim.Adam(body.parameters(), lr=3e-3), torch.optim.SGD(head.parameters(), lr=0.1)]

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            return loss

    return Two(nets.mlp(64, 48, 10), data.digits())


@healthy(steps=250, falls_to=0.6)
def follows_its_own_average() -> Learner:
    """Two views, and a slow average of the net itself as the target; the average has no gradient and is not trained."""

    class Follows(Learner):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.slow = copy.deepcopy(self.net[0]).requires_grad_(False)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, _ = batch
            one, other = (x + 0.2 * torch.randn_like(x) for _ in range(2))
            with torch.no_grad():
                wanted = nn.functional.normalize(self.slow(other), dim=1)
            return (nn.functional.normalize(self(one), dim=1) - wanted).square().sum(1).mean()

        def on_train_batch_end(self, *args: Any) -> None:
            for slow, fast in zip(self.slow.parameters(), self.net[0].parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.02)

    net = nn.Sequential(nets.mlp(64, 48, 24), nets.mlp(24, 32, 24))
    return Follows(net, data.digits(), lr=3e-3)


@healthy(steps=250, goal=0.85)
def reversed_gradient() -> Learner:
    """Features must tell digits and hide which half of the data they are of: one part climbs what another descends."""

    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return -0.1 * gradient

    class Hides(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            half = (torch.arange(len(x)) % 2).float()
            features = self.net["body"](x + 0.3 * half[:, None]).relu()
            guess = self.net["guess"](Reverse.apply(features))[:, 0]
            return nn.functional.cross_entropy(
                self.net["head"](features), y
            ) + nn.functional.binary_cross_entropy_with_logits(guess, half)

        def score(self) -> float:
            x, y = self.data.tensors
            return float((self.net["head"](self.net["body"](x).relu()).argmax(1) == y).float().mean())

    parts = {"body": nn.Linear(64, 48), "head": nn.Linear(48, 10), "guess": nets.mlp(48, 16, 1)}
    return Hides(nn.ModuleDict(parts), data.digits(), lr=1e-3)
