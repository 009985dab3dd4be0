"""How many inputs and outputs a weight connects, counted as ``torch.nn.init`` counts them.

A scheme can only be recognised by the numbers that whoever drew it used, so torch's count is kept where it differs
from the true one: for a transposed convolution ``fan_in`` is what one *input* channel feeds, and ``fan_out`` of a
grouped convolution is that of all groups together. Recurrent and attention layers stack several matrices in one
tensor, and torch counts the stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a parameter sits. A bias alone does not tell its fan; the weight beside it does.

    Attributes:
        role: What it is called in its layer, such as ``"weight"`` or ``"bias_hh_l0"``; what a parametrisation puts
            around that name is left off, except for the magnitudes of a weight norm, ``"weight_g"``.
        shape: Its whole shape.
        layer_kind: The kind of its layer, such as ``"convolution"``.
        layer_type: The class name of its layer, such as ``"Conv2d"``.
        shapes: The shapes of all parameters of the layer, by role.
    """

    role: str
    shape: Shape
    layer_kind: str
    layer_type: str = ""
    shapes: Mapping[str, Shape] = field(default_factory=dict)


def fans(shape: Shape) -> tuple[int, int] | None:
    """Return ``(fan_in, fan_out)`` of a weight, or ``None`` for what has fewer than two dimensions.

    Example:
        >>> fans((16, 3, 3, 3)), fans((10, 4096)), fans((16,))
        ((27, 144), (4096, 10), None)
    """
    if len(shape) < 2:
        return None
    field_size = math.prod(shape[2:])
    return shape[1] * field_size, shape[0] * field_size


def default_fan(place: Place) -> int | None:
    """Return the number ``n`` in PyTorch's default U(±1/sqrt(n)) of a layer's weights and biases.

    It is ``fan_in`` of the weight for linear layers and convolutions, the size of the first input for ``Bilinear`` and
    the hidden size for recurrent layers. ``None`` where the layer's default is something else or its weight is unknown.

    Example:
        >>> default_fan(Place("bias", (16,), "convolution", "Conv2d", {"weight": (16, 3, 3, 3), "bias": (16,)}))
        27
    """
    if place.layer_kind == "recurrent":
        return _hidden_size(place.shapes)
    weight = place.shapes.get("weight", ())
    counted = fans(weight)
    if place.layer_kind not in ("linear", "convolution") or counted is None:
        return None
    is_bilinear = place.layer_kind == "linear" and len(weight) == 3
    return weight[1] if is_bilinear else counted[0]


def _hidden_size(shapes: Mapping[str, Shape]) -> int | None:
    # With proj_size, weight_hh takes the projected state and only weight_hr, which projects, tells the hidden size.
    for prefix in ("weight_hr", "weight_hh"):
        for role, shape in shapes.items():
            if role.startswith(prefix) and not role.endswith("_g") and len(shape) == 2:
                return shape[1]
    return None
