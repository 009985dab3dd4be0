"""What was to be expected: fans and initialisation schemes.

Shapes and layer types in, expected numbers out; no tensor, no torch.
"""

from __future__ import annotations

from lightning_weightwatch.theory.fans import Place, default_fan, fans
from lightning_weightwatch.theory.schemes import (
    Recognition,
    Scheme,
    candidates,
    default_scheme,
    magnitude_interval,
    recognise,
    std_interval,
)

__all__ = [
    "Place",
    "Recognition",
    "Scheme",
    "candidates",
    "default_fan",
    "default_scheme",
    "fans",
    "magnitude_interval",
    "recognise",
    "std_interval",
]
