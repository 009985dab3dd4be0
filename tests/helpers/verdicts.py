"""Parameters as an audit judges them, made up without a network."""

from types import SimpleNamespace
from typing import Any


def parameter(name: str, **fields: Any) -> SimpleNamespace:
    """Return what is said of a parameter: a weight of a linear layer of its own, as torch draws it, unless told."""
    usual = {
        "name": name,
        "shape": (64, 64),
        "kind": "linear",
        "scheme": "PyTorch default (uniform ±1/sqrt(fan_in))",
        "std": 0.0722,
        "mean": 0.0,
        "trainable": True,
        "constant": None,
        "nonfinite": 0,
        "tied": (),
        "content": name,
        "abs_max": 0.125,
        "unmeasurable": "",
    }
    return SimpleNamespace(**usual | fields)


def zeros(name: str, **fields: Any) -> SimpleNamespace:
    """Return a weight that is zero throughout."""
    return parameter(
        name, **{"scheme": "zeros", "std": 0.0, "constant": 0.0, "abs_max": 0.0, "content": "zeros"} | fields
    )
