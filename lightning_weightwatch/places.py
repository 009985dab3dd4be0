"""Where each parameter sits: its role in its layer, and what lies beside it there.

What follows from that for its numbers lies in ``theory``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_weightwatch.parameters import Parameter
from lightning_weightwatch.theory import Place, Wiring

_THIRDS = ("first third", "second third", "last third")


def places(parameters: Sequence[Parameter]) -> dict[str, Place]:
    """Put every parameter beside the others of its layer; one that several layers share, beside those of each.

    Example:
        >>> from torch import nn
        >>> from lightning_weightwatch.parameters import describe
        >>> places(describe(nn.Linear(4, 2)))["bias"].shapes
        {'weight': (2, 4), 'bias': (2,)}
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    kinds: dict[str, str] = {}
    for p in (use for parameter in parameters for use in (parameter, *parameter.tied_as)):
        layer, role = layer_and_role(p.name)
        shapes.setdefault(layer, {})[role] = p.shape
        if p.kind != "bias":
            kinds[layer] = p.kind

    def place(p: Parameter) -> Place:
        layer, role = layer_and_role(p.name)
        return Place(role, p.shape, kinds.get(layer, p.kind), p.layer_type, shapes[layer], wiring(p))

    return {p.name: replace(place(p), tied=tuple(place(use) for use in p.tied_as)) for p in parameters}


def layer_and_role(name: str) -> tuple[str, str]:
    """Split a name into its layer and its role there, without what a parametrisation or pruning adds.

    Example:
        >>> layer_and_role("net.0.parametrizations.weight.original1"), layer_and_role("net.0.weight_v")
        (('net.0', 'weight'), ('net.0', 'weight'))
    """
    head, found, tail = f".{name}".rpartition(".parametrizations.")
    if found:
        role, _, part = tail.partition(".")
        return head[1:], role + "_g" if part == "original0" else role  # weight norm keeps the norms in original0
    layer, _, role = name.rpartition(".")
    if role.startswith("weight"):  # bias_v is a parameter of MultiheadAttention
        role = role.removesuffix("_v")
    return layer, role.removesuffix("_orig")


def wiring(p: Parameter) -> Wiring:
    """Return how its layer uses it; a matrix three times as high as wide holds queries, keys and values, it seems."""
    is_packed = len(p.shape) == 2 and p.shape[0] == 3 * p.shape[1] and p.kind in ("linear", "other")
    return replace(p.wiring, stacked=_THIRDS) if is_packed and not p.wiring.stacked else p.wiring
