"""What rules ask of an initialisation, beside its parameters themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from lightning_weightwatch.evidence import Initial, Verdict

_NO_MATRICES = ("embedding", "norm", "bias")


def as_initial(subject: Initial | Sequence[Verdict]) -> Initial:
    """Take the parameters alone for what is known, where there is no more."""
    return subject if isinstance(subject, Initial) else Initial(subject)


def is_matrix(verdict: Verdict) -> bool:
    """Whether it mixes several inputs into outputs, as ``parameters.Parameter.is_matrix`` has it."""
    several_inputs = math.prod(verdict.shape[1:]) > 1
    return len(verdict.shape) >= 2 and several_inputs and verdict.kind not in _NO_MATRICES


def forward_matrices(initial: Initial) -> list[Verdict]:
    """Return the matrices in the order in which a batch passed them; those that it did not pass come first."""
    layers = () if initial.signal is None else initial.signal.layers
    places = {layer.name: place for place, layer in enumerate(layers)}
    return sorted((v for v in initial if is_matrix(v)), key=lambda v: places.get(v.name, -1))


def as_code(name: str) -> str:
    """Write a dotted name as Python reaches it.

    Example:
        >>> as_code("net.0.weight"), as_code("")
        ('model.net[0].weight', 'model')
    """
    return "model" + re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", f".{name}" if name else "")
