"""How many inputs and outputs a weight connects: as ``torch.nn.init`` counts them, and as they truly are.

A scheme can only be recognised by the numbers that whoever drew it used, so torch's count is kept: ``fans``. What a
unit really sums over, which is what keeps a signal at its size, is told by ``true_fans``. They differ where torch sees
the shape alone:

========================= ================================ =========================================================
weight                    torch's fan_in, fan_out          the true ones
========================= ================================ =========================================================
grouped convolution       in/groups * k, out * k           in/groups * k, out/groups * k / stride
transposed convolution    out/groups * k, in * k           in/groups * k / stride, out/groups * k
stacked gates or q, k, v  in, all blocks together          in, one block
embedding                 width, rows                      1, width: a row is looked up, nothing is summed
norm, PReLU, magnitudes   of whatever shape they have      1, 1: each unit has its own
========================= ================================ =========================================================

k is the number of elements of the kernel, stride that of all dimensions multiplied: of the outputs that an input may
reach, a stride keeps one in so many. Edges, where padding takes the place of inputs, are left out, and dilation changes
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Wiring:
    """How a layer uses a parameter, as far as the shape does not tell.

    Attributes:
        groups: The groups of a convolution, which do not see each other's channels.
        stride: The strides of a convolution, multiplied.
        transposed: Whether the convolution is one, so that the weight's first dimension counts inputs.
        stacked: The names of the matrices that lie below each other in one tensor, such as the gates of an LSTM.
    """

    groups: int = 1
    stride: int = 1
    transposed: bool = False
    stacked: tuple[str, ...] = ()


PLAIN = Wiring()
"""That of most parameters: a matrix that sums over its second dimension."""


@dataclass(frozen=True)
class Fans:
    """How many products a unit sums (``fan_in``), and how many sums an input goes into (``fan_out``), on average."""

    fan_in: float
    fan_out: float


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
        wiring: How the layer uses it.
        tied: Where else the same tensor sits.
    """

    role: str
    shape: Shape
    layer_kind: str
    layer_type: str = ""
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    wiring: Wiring = PLAIN
    tied: tuple[Place, ...] = ()

    @property
    def is_bias(self) -> bool:
        """Whether it is added rather than multiplied."""
        return "bias" in self.role

    @property
    def blocks(self) -> tuple[Place, ...]:
        """Each of the matrices that are stacked in it, as if it had a tensor of its own; empty where there is one.

        Blocks of one element are none: whatever they are, they are constant.
        """
        stacked = len(self.wiring.stacked)
        if not stacked or not self.shape or self.shape[0] % stacked or math.prod(self.shape) == stacked:
            return ()
        shape = (self.shape[0] // stacked, *self.shape[1:])
        return (replace(self, shape=shape, wiring=replace(self.wiring, stacked=()), tied=()),) * stacked


def fans(shape: Shape) -> tuple[int, int] | None:
    """Return torch's ``(fan_in, fan_out)`` of a weight, or ``None`` for what has fewer than two dimensions.

    Example:
        >>> fans((16, 3, 3, 3)), fans((10, 4096)), fans((16,))
        ((27, 144), (4096, 10), None)
    """
    if len(shape) < 2:
        return None
    field_size = math.prod(shape[2:])
    return shape[1] * field_size, shape[0] * field_size


def true_fans(place: Place) -> Fans | None:
    """Return what a unit really sums over, or ``None`` for biases and for what is used in an unknown way.

    Of stacked matrices it is that of each: a gate of a recurrent layer sums over the inputs by one and over the hidden
    state by another. An ``EmbeddingBag`` sums as many rows as its bags hold, which no weight tells.

    Example:
        >>> true_fans(Place("weight", (24, 6, 4, 4), "convolution", wiring=Wiring(stride=4, transposed=True)))
        Fans(fan_in=96.0, fan_out=96)
        >>> true_fans(Place("weight_hh_l0", (48, 12), "recurrent", wiring=Wiring(stacked=("i", "f", "g", "o"))))
        Fans(fan_in=12, fan_out=12.0)
    """
    counted = fans(place.shape)
    if place.is_bias or not place.shape:
        return None
    if place.layer_kind == "norm" or place.layer_type == "PReLU" or place.role.endswith("_g"):
        return Fans(1, 1)
    if counted is None:
        return None
    if place.layer_kind == "embedding":
        return Fans(1, place.shape[1])
    return _of_matrix(place, *counted)


def _of_matrix(place: Place, fan_in: int, fan_out: int) -> Fans:
    wiring = place.wiring
    of_rows = fan_out / max(len(wiring.stacked), 1)
    if place.layer_kind != "convolution":
        return Fans(fan_in, of_rows)
    of_rows /= wiring.groups * wiring.stride
    return Fans(of_rows, fan_in) if wiring.transposed else Fans(fan_in, of_rows)


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
