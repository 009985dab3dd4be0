"""What an architecture of the zoo is, and how a function becomes one.

They lie in ``own``, ``own_others`` and ``of_transformers``; ``everything`` has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Trial:
    """A batch as the architecture is trained with, and its loss.

    Attributes:
        batch: Makes the input and the target; the caller seeds torch first.
        loss: Takes the output and the target.
    """

    batch: Callable[[], tuple[Any, Tensor]]
    loss: Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Architecture:
    """A network as its library or its paper initialises it, in small.

    Attributes:
        name: Its name, which is also that of its tests.
        source: Where it comes from: a library, or this folder.
        build: Builds it; ``make`` seeds torch first.
        trial: What it is tried with, if it is.
        everyday: Whether it is looked at whenever the tests run, or in the long run alone.
    """

    name: str
    source: str
    build: Make
    trial: Trial | None = None
    everyday: bool = True

    def __str__(self) -> str:
        """Its source and its name."""
        return f"{self.source}-{self.name}"

    def make(self) -> nn.Module:
        """Build it, the same in every run."""
        torch.manual_seed(0)
        return self.build()

    def batch(self) -> tuple[Any, Tensor]:
        """Return the batch that it is tried with, the same in every run."""
        assert self.trial is not None, f"{self.name} has no trial"
        torch.manual_seed(1)
        return self.trial.batch()


OWN: dict[str, Architecture] = {}


def own(trial: Trial) -> Callable[[Make], Make]:
    """Register a function that builds an architecture; it goes by the function's name."""

    def register(build: Make) -> Make:
        name = build.__name__
        assert name not in OWN, f"two architectures are called {name}"
        OWN[name] = Architecture(name, "own", build, trial)
        return build

    return register
