"""What a remedy is, and the order in which remedies are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Cheap and fundamental first: what comes later is judged on top of what comes before.
ORDER = (
    "initialisation",
    "batch size",
    "epochs",
    "learning rate",
    "structure",
    "loss",
    "activation",
    "regularisation",
)


@dataclass(frozen=True)
class Remedy:
    """Something to change in a training, and the illnesses it helps against.

    Attributes:
        topic: Its place in ``ORDER``.
        treats: What to do against each illness, one sentence per rule.
    """

    topic: str
    treats: Mapping[str, str]
