"""A forward pass, and somebody who listens to it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weightwatch import listening
from lightning_weightwatch.evidence import Listened
from lightning_weightwatch.listening import Listener
from lightning_weightwatch.meters.targets import Targets


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    """Return the same random numbers whenever it is asked."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


LAYER = nn.Linear(4, 6)
X = normal(5, 4, scale=2.0)
LABELS = torch.tensor([0, 1, 2, 3, 5])


def listener(*modules: nn.Module, batch: Any = None, targets: Targets | None = None) -> Listener:
    """Return one that knows the parameters of modules."""
    names = {id(p): name for module in modules for name, p in module.named_parameters()}
    return Listener(3, names, batch, targets or Targets())


def hear(run: Any, *modules: nn.Module, batch: Any = None, targets: Targets | None = None) -> Listened:
    """Return what is heard of a run; an error in hearing is one."""
    heard = listener(*modules, batch=batch, targets=targets)
    with heard:
        run()
    heard.close()
    if heard.failure is not None:
        raise heard.failure
    return heard.read(heard.numbers.numpy())


def stack() -> list[Any]:
    """Return the function modes that are entered, the innermost last."""
    modes = listening._taken_off()[::-1]
    listening._put_on(*modes)
    return modes
