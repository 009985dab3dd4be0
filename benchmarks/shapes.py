"""Parameter shapes of well-known networks, so that costs are measured on what people train, without their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """Return the 161 shapes of ResNet-50 (25.6 million elements)."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for out, in_, k in ((width, inputs, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(out, in_, k, k), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2_small() -> Shapes:
    """Return the 148 shapes of GPT-2 small (124 million elements), its tied head counted once."""
    d = 768
    shapes: Shapes = [(50257, d), (1024, d)]
    for _ in range(12):
        shapes += [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [*shapes, (d,), (d,)]


NETWORKS = {"ResNet-50": resnet50, "GPT-2 small": gpt2_small}


def with_gradients(shapes: Sequence[tuple[int, ...]], device: torch.device) -> nn.ParameterList:
    """Return parameters of these shapes, normally distributed, with gradients that are too."""
    generator = torch.Generator(device).manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, device=device, generator=generator)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, device=device, generator=generator)
    return nn.ParameterList(parameters)
