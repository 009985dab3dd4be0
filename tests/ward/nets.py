"""The architectures of the ward, all tiny."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), act()]
    return nn.Sequential(*layers[:-1])


def linears(net: nn.Module) -> list[nn.Linear]:
    """Return the linear layers in order."""
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


def he(net: nn.Module, gain: float = 1.0) -> nn.Module:
    """Initialise linear layers and convolutions after He, times a gain, with zero biases."""
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            module.weight.data.mul_(gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def conv_net(width: int = 8, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return two convolutions and a linear head for 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


class Residual(nn.Module):
    """Two convolutions with batch normalisation beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(nn.functional.relu(self.bn1(self.conv1(x)))))
        return nn.functional.relu(x + branch)


def res_net(width: int = 8, blocks: int = 2) -> nn.Sequential:
    """Return a ResNet for 8 x 8 images."""
    stem = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    body = [Residual(width) for _ in range(blocks)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


class Block(nn.Module):
    """A transformer block, with layer normalisation before its branches or after them."""

    def __init__(self, width: int, heads: int = 2, *, pre: bool = True, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.pre, self.causal = heads, pre, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def attend(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).reshape(b, t, w))

    def mix(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.attend(self.ln1(x))
            return x + self.mix(self.ln2(x))
        x = self.ln1(x + self.attend(x))
        return self.ln2(x + self.mix(x))


class LanguageModel(nn.Module):
    """Letters in, letters out; the head may be the embedding once more."""

    def __init__(
        self, letters: int, width: int = 24, blocks: int = 2, *, pre: bool = True, tied: bool = False, std: float = 0.02
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, width)
        nn.init.normal_(self.embedding.weight, std=std)
        self.place = nn.Parameter(0.02 * torch.randn(64, width))
        self.blocks = nn.ModuleList(Block(width, pre=pre) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, letters, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.place[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)  # as cross entropy wants it


class Recurrent(nn.Module):
    """A recurrent network and a head that reads its last state."""

    def __init__(self, cell: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.rnn = cell
        self.head = nn.Linear(cell.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])
