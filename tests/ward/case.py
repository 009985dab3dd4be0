"""What a case of the ward is, and how a function becomes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

Make = Callable[[], pl.LightningModule]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny training with one illness, or a healthy one that looks ill.

    Attributes:
        name: Its name.
        make: Builds the model, with its data and optimizer; the caller seeds torch first.
        steps: Optimizer steps to take, those of all optimizers together.
        doc: Why it is what its label says, or which trap it is.
        sick: The rule that names the first cause; ``None`` for a healthy case.
        also: Rules whose findings are a fair reading too; named as the first cause they are a near miss.
        layers: Shell-style patterns of the parameters that are the right place; none where it has no place.
        onset: The step, as ``self.log`` counts, at which it begins; for what creeps in, the first step that could show.
        devices: How many processes train; with two, they are replicas.
        options: Makes further arguments of the Trainer.
        falls_to: A healthy case's last losses are below this share of its first ones.
        goal: Where a loss need not fall, what ``score()`` of the trained model reaches, and of the fresh one does not.
    """

    name: str
    make: Make
    steps: int
    doc: str
    sick: str | None = None
    also: frozenset[str] = frozenset()
    layers: tuple[str, ...] = ()
    onset: int = 0
    devices: int = 1
    options: Callable[[], dict[str, Any]] = dict
    falls_to: float = 0.7
    goal: float | None = None

    def __str__(self) -> str:
        """Its name, which is also the name of its tests."""
        return self.name


SICK: dict[str, Case] = {}
HEALTHY: dict[str, Case] = {}


def sick(rule: str, *, steps: int = 100, also: str = "", layers: str = "", **fields: Any) -> Callable[[Make], Make]:
    """Register a function that makes a sick model. ``also`` and ``layers`` are words with spaces between them."""
    given = {"sick": rule, "also": frozenset(also.split()), "layers": tuple(layers.split())}
    return _register(SICK, steps=steps, **given, **fields)


def healthy(*, steps: int = 150, **fields: Any) -> Callable[[Make], Make]:
    """Register a function that makes a healthy model."""
    return _register(HEALTHY, steps=steps, **fields)


def _register(ward: dict[str, Case], **fields: Any) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        name = make.__name__
        assert name not in SICK.keys() | HEALTHY.keys(), f"two cases are called {name}"
        ward[name] = Case(name=name, make=make, doc=inspect.getdoc(make) or "", **fields)
        return make

    return register
