"""A chain of layers as rules see it: each with a weight and a bias, in forward order, made up without a network."""

from collections.abc import Callable, Sequence

import numpy as np

from lightning_weightwatch.evidence import DeadUnits, Evidence, Listened, LossCall, Snapshot, Watched
from tests.helpers.runs import STUCK

UNITS = 64
MISSING = float("nan")


def chain(
    *layers: str,
    steps: int = 40,
    norm: Callable[[int, str], float] = lambda step, name: 0.1,
    loss: Callable[[int], float | None] = STUCK,
    first: int = 0,
    rates: Callable[[int], float | None] = lambda step: None,
    kinds: Sequence[str] = (),
) -> Evidence:
    """Return the evidence of a run of ``fc1.weight, fc1.bias, fc2.weight...``.

    Args:
        layers: Their names.
        steps: The length of the run.
        norm: The gradient norm of a parameter at a step; NaN where there is none.
        loss: The loss at a step.
        first: The first step.
        rates: The learning rate at a step.
        kinds: The kind of each layer's weight; linear, if not given.
    """
    parameters = []
    for place, layer in enumerate(layers):
        kind = kinds[place] if kinds else "linear"
        weight = Watched(f"{layer}.weight", UNITS * UNITS, kind not in ("norm", "embedding"), place, kind)
        bias = Watched(f"{layer}.bias", UNITS, False, place, "bias", (UNITS,))
        parameters += [weight, bias]
    evidence = Evidence(parameters)
    for step in range(first, first + steps):
        row = np.array([norm(step, p.name) for p in parameters])
        evidence.add(step, row, measured=~np.isnan(row), loss=loss(step), learning_rate=rates(step))
    return evidence


def snapshot(evidence: Evidence, step: int, **statistics: dict[str, float]) -> None:
    """Add full statistics of some parameters; NaN for the others."""
    names = tuple(p.name for p in evidence.parameters)
    values = {key: np.array([known.get(name, MISSING) for name in names]) for key, known in statistics.items()}
    evidence.add_snapshot(Snapshot(step, names, values))


def dead(evidence: Evidence, step: int, steps: int = 20, **shares: float) -> None:
    """Add a reading of dead units: the share of each layer's bias, by the layer's name; 0 for the others."""
    share = [shares.get(p.layer, 0.0) if p.kind == "bias" else MISSING for p in evidence.parameters]
    evidence.add_reading(DeadUnits(step, steps, np.array(share)))


def hear(evidence: Evidence, step: int, *, loss: LossCall | None = None, **heard: object) -> None:
    """Add a forward pass that was listened to, with a loss that is that of a classification if none is given."""
    call = loss or LossCall("cross_entropy", evidence.parameters[-2].name, classes=10)
    evidence.add_reading(Listened(step, losses=(call,), **heard))
