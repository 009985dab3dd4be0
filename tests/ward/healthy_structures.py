"""Healthy trainings of nets with zeros, copies, frozen parts, masks and gates in them, as their makers meant it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import TensorDataset

from tests.ward import data, nets
from tests.ward.case import healthy
from tests.ward.learner import Learner
from tests.ward.sick_units import Adapted, Gated

SGD = torch.optim.SGD


@healthy()
def frozen_backbone() -> Learner:
    """The convolutions are fixed on purpose; only the head learns, and only the head is in the optimizer."""

    class Head(Learner):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.net[7].parameters(), lr=1e-2)

    net = nets.he(nets.conv_net(16))
    net[0].requires_grad_(False)
    net[3].requires_grad_(False)
    return Head(net, data.images())


class Unfreezes(BaseFinetuning):
    """Lets the backbone learn from the third epoch on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[:4])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.net[:4], optimizer, lr=1e-3)


@healthy(steps=200, options=lambda: {"callbacks": [Unfreezes()]})
def backbone_unfrozen_later() -> Learner:
    """For two epochs the backbone is frozen and in no optimizer; then it joins."""

    class Tuned(Learner):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=3e-3)

    return Tuned(nets.mlp(64, 64, 64, 10), data.digits())


@healthy(steps=200)
def zero_residual_branches() -> Learner:
    """The last normalisation of each residual branch begins at 0, so that the net begins without its branches."""
    net = nets.res_net(8, 3)
    for module in net.modules():
        if isinstance(module, nets.Residual):
            nn.init.zeros_(module.bn2.weight)
    return Learner(net, data.images(), optimizer=SGD, lr=0.05, momentum=0.9)


@healthy(steps=200)
def low_rank_adapters() -> Learner:
    """Fixed layers with low-rank adapters, of which one matrix begins at 0."""
    net = nets.mlp(64, 64, 64, 10)
    net[0], net[2] = Adapted(net[0]), Adapted(net[2])
    return Learner(net, data.digits(), lr=1e-2)


@healthy(steps=200)
def gates_from_zero() -> Learner:
    """Eight residual branches behind gates that begin at 0, without any normalisation."""
    net = nn.Sequential(nn.Linear(64, 24), *[Gated(24) for _ in range(8)], nn.Linear(24, 10))
    return Learner(net, data.digits(), lr=5e-3)


@healthy()
def zero_head() -> Learner:
    """The head begins at 0: in the first step nothing behind it has a gradient."""
    net = nets.conv_net()
    nn.init.zeros_(net[7].weight)
    nn.init.zeros_(net[7].bias)
    return Learner(net, data.images(), lr=5e-3)


@healthy(steps=250, falls_to=0.5)
def sparse_embeddings() -> Learner:
    """A table of five hundred words of which a batch meets a few, with sparse gradients."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.EmbeddingBag(500, 16, sparse=True)
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.words(x))

    class Sparse(Learner):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return SGD(self.parameters(), lr=2.0)

    y = torch.randint(4, (512,))
    x = torch.randint(0, 100, (512, 6)) + 100 * torch.where(torch.rand(512, 6) < 0.8, y[:, None], 4)
    return Sparse(Bag(), TensorDataset(x, y), batch=16)


@healthy(steps=200)
def pruned() -> Learner:
    """Four weights in five are masked away for good; their gradients are 0."""
    net = nets.mlp(64, 64, 64, 10)
    for layer in nets.linears(net)[:2]:
        prune.random_unstructured(layer, "weight", amount=0.8)
    return Learner(net, data.digits(), lr=5e-3)


class Experts(nn.Module):
    """Six experts of which each sample is sent to one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 6)
        self.experts = nn.ModuleList(nets.mlp(64, 16, 10) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(1)
        chosen = weights.argmax(1)
        out = torch.zeros(len(x), 10)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                out[mine] = weights[mine, i : i + 1] * expert(x[mine])
        return out


@healthy(steps=250)
def idle_experts() -> Learner:
    """A mixture in which some experts are never asked, and have no gradient for many steps."""
    net = Experts()
    net.gate.bias.data = torch.tensor([0.0, 0.0, 0.0, -8.0, -8.0, -8.0])
    return Learner(net, data.digits(), lr=1e-2)


@healthy(steps=200)
def tied_embedding() -> Learner:
    """The head of a language model is its embedding once more."""
    return Learner(nets.LanguageModel(data.LETTERS, tied=True), data.text(), lr=5e-3)


@healthy(steps=200, falls_to=0.75)
def standard_normal_embedding() -> Learner:
    """Embeddings of N(0, 1) beside matrices of a fiftieth of that."""
    net = nets.LanguageModel(data.LETTERS, std=1.0)
    for block in net.blocks:
        for layer in nets.linears(block):
            nn.init.normal_(layer.weight, std=0.02)
    return Learner(net, data.text(), lr=3e-3)


@healthy()
def weight_normalised() -> Learner:
    """Each weight is a direction and a length, both of them learned."""
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(64, 48)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(48, 10))
    )
    return Learner(net, data.digits(), lr=5e-3)


@healthy(steps=200)
def spectrally_normalised() -> Learner:
    """The largest singular value of each hidden weight is held at 1."""
    net = nets.mlp(64, 48, 48, 10)
    net[0], net[2] = parametrizations.spectral_norm(net[0]), parametrizations.spectral_norm(net[2])
    return Learner(net, data.digits(), lr=1e-2)


@healthy()
def leaky_and_learned_slopes() -> Learner:
    """PReLU and LeakyReLU: no unit can die, and a slope is a parameter of one number."""
    net = nn.Sequential(
        nn.Linear(64, 48), nn.PReLU(), nn.Linear(48, 48), nn.LeakyReLU(), nn.Linear(48, 48), nn.PReLU(48),
        nn.Linear(48, 10),
    )  # fmt: skip
    return Learner(net, data.digits(), lr=3e-3)


@healthy()
def gelu_net() -> Learner:
    """Units that are nearly 0 for what is negative, but not exactly."""
    return Learner(nets.mlp(64, 64, 64, 10, act=nn.GELU), data.digits(), lr=3e-3)


@healthy()
def self_normalising() -> Learner:
    """SELU with LeCun's initialisation, twelve layers deep."""
    net = nets.mlp(64, *[32] * 12, 10, act=nn.SELU)
    for layer in nets.linears(net):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return Learner(net, data.digits(), lr=2e-3)


@healthy()
def clamped_activations() -> Learner:
    """ReLU6, hardswish and hardtanh: flat on both sides, where they should be."""
    net = nn.Sequential(
        nn.Linear(64, 48), nn.ReLU6(), nn.Linear(48, 48), nn.Hardswish(), nn.Linear(48, 48), nn.Hardtanh(),
        nn.Linear(48, 10),
    )  # fmt: skip
    return Learner(net, data.digits(), lr=3e-3)


@healthy(steps=200, falls_to=0.8)
def deep_pre_norm_transformer() -> Learner:
    """Eight blocks that normalise before their branches."""
    return Learner(nets.LanguageModel(data.LETTERS, width=16, blocks=8), data.text(n=512), lr=5e-3, batch=16)


@healthy(steps=200)
def deep_relu_net() -> Learner:
    """Nine ReLU layers with torch's own initialisation, which fades the signal, and Adam, which does not mind."""
    net = nets.mlp(64, *[48] * 8, 10)
    return Learner(net, data.digits(), lr=2e-3)


@healthy(steps=200)
def depthwise_conv_net() -> Learner:
    """Depthwise convolutions of nine inputs each beside pointwise ones of many, with batch normalisation."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6()]
    for _ in range(2):
        depth = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        layers += [depth, nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    return Learner(net, data.images(), lr=1e-2)


@healthy(steps=250, falls_to=0.3)
def gated_recurrence() -> Learner:
    """An LSTM whose gates close for good reasons, and whose forget gates begin open."""
    net = nets.Recurrent(nn.LSTM(1, 24, batch_first=True), 1)
    net.rnn.bias_ih_l0.data[24:48] = 2.0
    return Learner(net, data.running_sums(), loss=nn.functional.mse_loss, lr=1e-2)


@healthy(steps=200, falls_to=0.5)
def stochastic_depth() -> Learner:
    """Each residual branch is left out of half of all steps, and has no gradient then."""

    class Sometimes(nets.Residual):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training and torch.rand(()) < 0.5 else super().forward(x)

    net = nets.res_net(8, 0)
    for _ in range(3):
        net.insert(3, Sometimes(8))
    return Learner(net, data.images(), lr=5e-3)


@healthy(steps=150)
def half_dropped() -> Learner:
    """Dropout of a half: another half of the units has no gradient in each step."""
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.5))
    return Learner(net.append(nn.Linear(64, 10)), data.digits(), lr=3e-3)


@healthy(steps=250, falls_to=0.3)
def patches_with_zero_tokens() -> Learner:
    """A vision transformer whose class token, positions and head all begin at 0."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.token = nn.Linear(8, 24), nn.Parameter(torch.zeros(1, 1, 24))
            self.place, self.norm = nn.Parameter(torch.zeros(9, 24)), nn.LayerNorm(24)
            self.blocks = nn.Sequential(nets.Block(24, causal=False), nets.Block(24, causal=False))
            self.head = nn.Linear(24, 10)
            nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.place
            return self.head(self.norm(self.blocks(x))[:, 0])

    return Learner(Patches(), data.rows_of_digits(), lr=5e-3)


@healthy(steps=200)
def straight_through() -> Learner:
    """Weights of +1 and -1 forwards, and gradients that pass as if they were not rounded."""

    class Binary(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            scale = self.weight.abs().mean()
            rounded = self.weight + (self.weight.sign() * scale - self.weight).detach()
            return nn.functional.linear(x, rounded, self.bias)

    return Learner(nn.Sequential(Binary(64, 64), nn.ReLU(), Binary(64, 10)), data.digits(), lr=5e-3)


@healthy(steps=200)
def pupil_and_teacher() -> Learner:
    """A trained teacher that never changes is part of the module; only its pupil learns."""

    class Distils(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x, _ = batch
            with torch.no_grad():
                wanted = self.teacher(x)
            return nn.functional.mse_loss(self(x), wanted)

    learner = Distils(nets.mlp(64, 24, 10), data.digits(), lr=1e-2)
    teacher = copy.deepcopy(nets.he(nets.mlp(64, 64, 10)))
    learner.teacher = teacher.requires_grad_(False)
    return learner
