"""What one step does when it is done again: where its first number that is not finite appears.

``replay`` runs the same batch from the same random numbers while every module is checked, and leaves the model, the
gradients and the random streams as it found them. When that is done in a training is decided in ``callbacks``.
"""

from lightning_weightwatch.replay._batch import Kept
from lightning_weightwatch.replay._intact import (
    RandomStates,
    accelerators,
    random_streams_kept,
    remember_the_rest,
    swapped,
)
from lightning_weightwatch.replay._numbers import all_finite
from lightning_weightwatch.replay._replay import Phase, Replayed, looked_at, replay, why_not

__all__ = [
    "Kept",
    "Phase",
    "RandomStates",
    "Replayed",
    "accelerators",
    "all_finite",
    "looked_at",
    "random_streams_kept",
    "remember_the_rest",
    "replay",
    "swapped",
    "why_not",
]
