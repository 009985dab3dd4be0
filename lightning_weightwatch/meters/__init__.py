"""What is measured within a step and waits on the device: losses, units without a gradient, gradients not cleared.

Each meter knows tensors and keeps numbers; none reads a number back, and none knows the Trainer that says when.
"""

from __future__ import annotations

from lightning_weightwatch.meters.clearing import ClearingMeter
from lightning_weightwatch.meters.loss import LossMeter
from lightning_weightwatch.meters.optimizers import is_lbfgs, learning_rate, leaves_gradients_alone, owned
from lightning_weightwatch.meters.replicas import ReplicaMeter
from lightning_weightwatch.meters.units import UnitMeter

__all__ = [
    "ClearingMeter",
    "LossMeter",
    "ReplicaMeter",
    "UnitMeter",
    "is_lbfgs",
    "learning_rate",
    "leaves_gradients_alone",
    "owned",
]
