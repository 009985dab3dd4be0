"""Tensors whose scheme is known, drawn by ``torch.nn.init`` or by the formula that a scheme was published with.

Fans are counted by torch, formulas are written out; of the recogniser's work nothing is used but the names it gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import init

from lightning_weightwatch.theory import Recognition, Scheme

Draw = Callable[[Tensor], object]
TF_SPREAD = 0.87962566103423978  # what TensorFlow, JAX and timm divide by to make up for a cut at two sigmas


def fans(weight: Tensor) -> tuple[int, int]:
    return init._calculate_fan_in_and_fan_out(weight)


def variance_scaling(scale: float, mode: str, *, corrected: bool) -> Draw:
    """As ``jax.nn.initializers`` and ``timm.layers`` have it: a normal cut at two of its standard deviations."""

    def draw(weight: Tensor) -> Tensor:
        fan_in, fan_out = fans(weight)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        std = math.sqrt(scale / fan) / (TF_SPREAD if corrected else 1.0)
        return init.trunc_normal_(weight, 0.0, 1.0, -2.0, 2.0).mul_(std)

    return draw


def siren(weight: Tensor) -> Tensor:
    bound = math.sqrt(6 / fans(weight)[0]) / 30
    return init.uniform_(weight, -bound, bound)


def siren_first(weight: Tensor) -> Tensor:
    return init.uniform_(weight, -1 / fans(weight)[0], 1 / fans(weight)[0])


def gpt2_residual(blocks: int) -> Draw:
    """As ``transformers`` draws every ``c_proj.weight``."""
    return lambda weight: init.normal_(weight, std=0.02 / math.sqrt(2 * blocks))


def identity(weight: Tensor) -> object:
    return init.eye_(weight) if weight.dim() == 2 else init.dirac_(weight)


def sparse(weight: Tensor) -> object:
    """``torch.nn.init.sparse_``, whose loop over the columns is slow."""
    rows, columns = weight.shape
    init.normal_(weight, std=0.01)
    order = torch.rand(rows, columns).argsort(0)  # each column is a permutation
    return weight.masked_fill_(order < math.ceil(0.9 * rows), 0.0)


@dataclass(frozen=True)
class Drawn:
    """A scheme, the name that is right for it, and how it is drawn; ``None``: as the layer itself does."""

    name: str
    draw: Draw | None

    def suits(self, weight: Tensor) -> bool:
        """Whether the scheme has such shapes and is no other there."""
        rows, columns = len(weight), weight[0].numel()
        if self.name.startswith("sparse"):
            return weight.dim() == 2 and math.ceil(0.9 * rows) < rows
        if self.name.startswith("SIREN, first"):
            return columns > 1  # for one input it is the default of a linear layer
        if self.name.startswith("identity"):
            return rows * columns > 1
        return self.name != "orthogonal (gain 0.73)" or min(rows, columns) > 1


SCHEMES = (
    Drawn("PyTorch default", None),
    Drawn("Kaiming uniform (fan_in, relu)", lambda w: init.kaiming_uniform_(w, nonlinearity="relu")),
    Drawn("Kaiming normal (fan_in, relu)", lambda w: init.kaiming_normal_(w, nonlinearity="relu")),
    Drawn("Kaiming uniform (fan_out, relu)", lambda w: init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu")),
    Drawn("Kaiming normal (fan_out, relu)", lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu")),
    Drawn("Kaiming normal (fan_in, leaky 0.2)", lambda w: init.kaiming_normal_(w, a=0.2)),
    Drawn("Kaiming normal (fan_in, selu)", lambda w: init.kaiming_normal_(w, nonlinearity="selu")),
    Drawn("Xavier uniform", init.xavier_uniform_),
    Drawn("Xavier normal", init.xavier_normal_),
    Drawn("Xavier uniform (gain tanh)", lambda w: init.xavier_uniform_(w, gain=5 / 3)),
    Drawn("Xavier normal (gain relu)", lambda w: init.xavier_normal_(w, gain=math.sqrt(2))),
    Drawn("LeCun uniform", lambda w: init.kaiming_uniform_(w, nonlinearity="linear")),
    Drawn("LeCun normal", lambda w: init.kaiming_normal_(w, nonlinearity="linear")),
    Drawn("normal (std 0.02)", lambda w: init.normal_(w, std=0.02)),
    Drawn("normal (std 0.01)", lambda w: init.normal_(w, std=0.01)),
    Drawn("truncated normal (std 0.02, cut at ±0.04)", lambda w: init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04)),
    Drawn("LeCun truncated normal", variance_scaling(1.0, "fan_in", corrected=True)),
    Drawn("Kaiming truncated normal (fan_out, relu)", variance_scaling(2.0, "fan_out", corrected=True)),
    Drawn("Xavier truncated normal (cut not made up for)", variance_scaling(1.0, "fan_avg", corrected=False)),
    Drawn("GPT-2 residual (normal 0.02/sqrt(2L), L = 12)", gpt2_residual(12)),
    Drawn("GPT-2 residual (normal 0.02/sqrt(2L), L = 48)", gpt2_residual(48)),
    Drawn("orthogonal", init.orthogonal_),
    Drawn("orthogonal (gain 1.414)", lambda w: init.orthogonal_(w, gain=math.sqrt(2))),
    Drawn("orthogonal (gain 0.73)", lambda w: init.orthogonal_(w, gain=0.73)),
    Drawn("identity", identity),
    Drawn("sparse", sparse),
    Drawn("SIREN (uniform ±sqrt(6/fan_in)/30)", siren),
    Drawn("SIREN, first layer (uniform ±1/fan_in)", siren_first),
    Drawn("constant (0.3)", lambda w: init.constant_(w, 0.3)),
    Drawn("zeros", init.zeros_),
)


def own(*shape: int) -> nn.Module:
    """Return a module with a parameter of its own, which no layer of torch's draws."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(shape))
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    return module


LARGE: dict[str, Callable[[], nn.Module]] = {
    "linear 64 x 64": lambda: nn.Linear(64, 64),
    "linear 128 x 32": lambda: nn.Linear(32, 128),
    "linear 32 x 128": lambda: nn.Linear(128, 32),
    "linear 4 x 1024": lambda: nn.Linear(1024, 4),
    "linear 16 x 256": lambda: nn.Linear(256, 16),
    "linear 10 x 4096": lambda: nn.Linear(4096, 10),
    "linear 100 x 100": lambda: nn.Linear(100, 100),
    "linear 300 x 784": lambda: nn.Linear(784, 300),
    "linear 192 x 64": lambda: nn.Linear(64, 192),
    "linear 500 x 128": lambda: nn.Linear(128, 500),
    "linear 1000 x 512": lambda: nn.Linear(512, 1000),
    "linear 768 x 768": lambda: nn.Linear(768, 768),
    "linear 512 x 2048": lambda: nn.Linear(2048, 512),
    "linear 1152 x 384": lambda: nn.Linear(384, 1152),
    "conv 64 x 3 x 7 x 7": lambda: nn.Conv2d(3, 64, 7),
    "conv 64 x 64 x 3 x 3": lambda: nn.Conv2d(64, 64, 3),
    "conv 128 x 64 x 3 x 3": lambda: nn.Conv2d(64, 128, 3, stride=2),
    "conv 256 x 64 x 1 x 1": lambda: nn.Conv2d(64, 256, 1),
    "conv 32 x 16 x 5 x 5": lambda: nn.Conv2d(16, 32, 5, dilation=2),
    "grouped conv": lambda: nn.Conv2d(64, 128, 3, groups=4),
    "depthwise conv": lambda: nn.Conv2d(192, 192, 7, groups=192),
    "conv1d 128 x 80 x 3": lambda: nn.Conv1d(80, 128, 3),
    "conv3d 32 x 8 x 3 x 3 x 3": lambda: nn.Conv3d(8, 32, 3),
    "transposed conv": lambda: nn.ConvTranspose2d(64, 32, 4, stride=2),
    "transposed conv, grouped": lambda: nn.ConvTranspose2d(64, 64, 4, stride=2, groups=2),
    "embedding 1000 x 64": lambda: nn.Embedding(1000, 64),
    "embedding 128 x 256": lambda: nn.Embedding(128, 256),
    "own 196 x 192": lambda: own(196, 192),
    "own 512 x 16": lambda: own(512, 16),
    "own 3 x 64 x 64": lambda: own(3, 64, 64),
}
SMALL: dict[str, Callable[[], nn.Module]] = {
    "linear 1 x 1": lambda: nn.Linear(1, 1),
    "linear 2 x 2": lambda: nn.Linear(2, 2),
    "linear 3 x 1": lambda: nn.Linear(1, 3),
    "linear 1 x 64": lambda: nn.Linear(64, 1),
    "linear 8 x 4": lambda: nn.Linear(4, 8),
    "linear 10 x 64": lambda: nn.Linear(64, 10),
    "linear 32 x 32": lambda: nn.Linear(32, 32),
    "linear 96 x 32": lambda: nn.Linear(32, 96),
    "conv 16 x 3 x 3 x 3": lambda: nn.Conv2d(3, 16, 3),
    "conv 8 x 1 x 1 x 1": lambda: nn.Conv2d(1, 8, 1),
    "depthwise 32 x 1 x 3 x 3": lambda: nn.Conv2d(32, 32, 3, groups=32),
    "transposed 8 x 4 x 2 x 2": lambda: nn.ConvTranspose2d(8, 4, 2),
    "embedding 10 x 16": lambda: nn.Embedding(10, 16),
    "own 5 x 7": lambda: own(5, 7),
}


SCATTER = {"uniform": 0.8, "normal": 2.0, "truncated normal": 1.3655}  # kurtosis - 1


def drawn(make: Callable[[], nn.Module], scheme: Drawn, seed: int) -> nn.Module | None:
    """Return a layer whose weight was drawn by a scheme, or ``None`` where the scheme has no such shapes."""
    torch.manual_seed(seed)
    layer = make()
    if not scheme.suits(layer.weight):
        return None
    if scheme.draw is not None:
        with torch.no_grad():
            scheme.draw(layer.weight)
    return layer


def outcome(found: Recognition, scheme: Drawn, count: int) -> Literal["first", "either", "behind", "missing"]:
    """Say how right a recognition is.

    ``first``: the true scheme, or one of exactly its numbers, is named first. ``either``: it is named behind one whose
    spread is its own within the interval of 95 % that so many elements tell it by. ``behind``: it is named behind one
    that is farther off. ``missing``: it is not named.
    """
    named = [s for s in (found.scheme, *found.alternatives) if s is not None]
    true = next((s for s in named if _is_it(s, scheme)), None)
    if true is None:
        return "missing"
    if named[0] == true or (named[0].family, named[0].std, named[0].mean) == (true.family, true.std, true.mean):
        return "first"
    interval = 1.96 * math.sqrt(SCATTER.get(true.family, 0.0) / (4 * count))
    is_near = named[0].family == true.family and abs(named[0].std / true.std - 1) <= interval
    return "either" if is_near else "behind"


def _is_it(named: Scheme, scheme: Drawn) -> bool:
    """Whether a name is right; a layer's own default is called so, and a matrix of no layer's by its formula."""
    if scheme.draw is None:
        return named.name.startswith("PyTorch default") or named.name == "uniform ±1/sqrt(fan_in)"
    if scheme.name in ("identity", "sparse"):
        return named.name.startswith(scheme.name)
    return named.name == scheme.name
