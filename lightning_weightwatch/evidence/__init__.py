"""What is remembered: a bounded history of read-outs, which rules judge and figures draw.

It knows names, steps and numbers; no tensor, no rank, no Trainer.
"""

from __future__ import annotations

from lightning_weightwatch.evidence._curve import LossCurve
from lightning_weightwatch.evidence._evidence import FIRST, SNAPSHOTS, Evidence
from lightning_weightwatch.evidence._history import History
from lightning_weightwatch.evidence._initial import Initial, Layer, Signal, Verdict
from lightning_weightwatch.evidence._readings import (
    Activation,
    DeadUnits,
    Floats,
    InputScale,
    Listened,
    LossCall,
    Replicas,
    Setup,
    Snapshot,
    Validation,
    Watched,
)

__all__ = [
    "FIRST",
    "SNAPSHOTS",
    "Activation",
    "DeadUnits",
    "Evidence",
    "Floats",
    "History",
    "Initial",
    "InputScale",
    "Layer",
    "Listened",
    "LossCall",
    "LossCurve",
    "Replicas",
    "Setup",
    "Signal",
    "Snapshot",
    "Validation",
    "Verdict",
    "Watched",
]
