"""What was to be expected: fans and initialisation schemes.

Shapes, layer types, numbers and functions in, expected numbers and names out; no tensor, no torch.
"""

from __future__ import annotations

from lightning_weightwatch.theory.catalogue import candidates
from lightning_weightwatch.theory.defaults import default_scheme
from lightning_weightwatch.theory.fans import PLAIN, Fans, Place, Wiring, default_fan, fans, true_fans
from lightning_weightwatch.theory.gains import Gain, gain
from lightning_weightwatch.theory.origins import origin
from lightning_weightwatch.theory.recognition import Readout, Recognition, recognise
from lightning_weightwatch.theory.schemes import Scheme, kurtosis_interval, magnitude_interval, std_interval

__all__ = [
    "PLAIN",
    "Fans",
    "Gain",
    "Place",
    "Readout",
    "Recognition",
    "Scheme",
    "Wiring",
    "candidates",
    "default_fan",
    "default_scheme",
    "fans",
    "gain",
    "kurtosis_interval",
    "magnitude_interval",
    "origin",
    "recognise",
    "std_interval",
    "true_fans",
]
