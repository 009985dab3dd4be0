"""Two small networks as people train them: a residual network for 32 x 32 images and a language model."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]

_DIFFERENT = 8  # batches; a training goes round them


class _Trained(pl.LightningModule):
    """Any network with a cross entropy on classes along the last dimension."""

    net: nn.Module

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]).flatten(0, -2), batch[1].flatten())
        self.log("loss", loss)
        return loss


class ResNet(_Trained):
    """ResNet-20: 65 parameters, 0.3 million elements, batches of 64 images."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            _Residual(a, b) for a, b in ((16, 16),) * 3 + ((16, 32), (32, 32), (32, 32), (32, 64), (64, 64), (64, 64))
        ]
        self.net = nn.Sequential(
            _convolution(3, 16), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    @staticmethod
    def batches(steps: int) -> Batches:
        """Return random images and classes."""
        return _around([(torch.randn(64, 3, 32, 32), torch.randint(10, (64,))) for _ in range(_DIFFERENT)], steps)


class GPT(_Trained):
    """A decoder of 4 layers of width 192: 53 parameters, 2.6 million elements, batches of 8 x 128 tokens."""

    WORDS, CONTEXT, WIDTH, LAYERS = 2000, 128, 192, 4

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _Embedding(self.WORDS, self.CONTEXT, self.WIDTH),
            *(_Block(self.WIDTH, heads=6) for _ in range(self.LAYERS)),
            nn.LayerNorm(self.WIDTH),
            nn.Linear(self.WIDTH, self.WORDS, bias=False),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-4)

    @classmethod
    def batches(cls, steps: int) -> Batches:
        """Return random tokens; each is to be told from those before it."""
        tokens = torch.randint(cls.WORDS, (_DIFFERENT, 8, cls.CONTEXT + 1))
        return _around([(batch[:, :-1], batch[:, 1:]) for batch in tokens], steps)


def _around(different: Batches, steps: int) -> Batches:
    return [different[i % len(different)] for i in range(steps)]


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.body = nn.Sequential(_convolution(inputs, outputs, stride), nn.ReLU(), _convolution(outputs, outputs))
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*(shortcut if stride > 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))


class _Embedding(nn.Module):
    def __init__(self, words: int, context: int, width: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(words, width), nn.Embedding(context, width)
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens) + self.place.weight[: tokens.shape[1]]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.feed(self.norm_2(x))
