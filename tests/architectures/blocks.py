"""What networks are put together from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Sum(nn.Module):
    """Adds what its branches make of one input; with nothing but a body, the input itself is the other one."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Beside(nn.Module):
    """Puts what its branches make of one input side by side, along the second dimension."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Weighed(nn.Module):
    """Multiplies its input by what its body makes of it: a gate."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x)


class Scale(nn.Module):
    """Multiplies each unit by a number that is learnt."""

    def __init__(self, *shape: int, begin: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full(shape, begin))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Apply(nn.Module):
    """Calls a function that has no parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Places(nn.Module):
    """Adds a vector for each place of a sequence."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, length, width), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places[:, : x.shape[1]]


class Attention(nn.Module):
    """Looks with several heads at the whole sequence, or at what came before."""

    def __init__(self, width: int, heads: int = 4, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*parts, is_causal=self.causal)
        return self.out(seen.transpose(1, 2).flatten(2))


def attending(width: int, *, causal: bool = False) -> nn.Sequential:
    """Return a transformer block that normalises before each of its branches."""
    feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    return nn.Sequential(Sum(nn.Sequential(nn.LayerNorm(width), Attention(width, causal=causal))), Sum(feed))


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers with an activation between them."""
    layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), act())]
    return nn.Sequential(*layers[:-1])


def conv_bn(i: int, o: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias and the batch normalisation behind it."""
    conv = nn.Conv2d(i, o, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o))


def conv_relu(i: int, o: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return the same with a ReLU."""
    return nn.Sequential(*conv_bn(i, o, kernel, stride=stride, groups=groups), nn.ReLU())


def head(width: int, classes: int = 10) -> nn.Sequential:
    """Return what makes classes of feature maps: their means and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def he(net: nn.Module, mode: str = "fan_out") -> nn.Module:
    """Draw convolutions after He, as published residual networks are."""
    for conv in of_kind(net, nn.Conv2d):
        nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")
    return net


def normal(net: nn.Module, std: float) -> nn.Module:
    """Draw all matrices from one normal distribution, with zero biases."""
    for layer in of_kind(net, nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding):
        nn.init.normal_(layer.weight, std=std)
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    return net


def of_kind(net: nn.Module, *kinds: type[nn.Module]) -> Iterable[nn.Module]:
    """Return the layers of some types, in order of registration."""
    return [layer for layer in net.modules() if isinstance(layer, kinds)]


def waves(length: int, width: int) -> Tensor:
    """Return sines and cosines of the places of a sequence, as many as its width."""
    speeds = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(length).unsqueeze(1) * speeds
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
