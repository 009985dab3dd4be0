"""What PyTorch's own layers do when they are made: the ``reset_parameters`` of torch 2.4 to 2.13."""

from __future__ import annotations

import math

from lightning_weightwatch.theory.fans import Place, default_fan, fans
from lightning_weightwatch.theory.schemes import TORCH, Scheme, constant, normal, uniform

_SHARE = 0.9  # most parameters are left as their layer made them


def default_scheme(place: Place) -> Scheme | None:
    """Return what PyTorch's own layer does when it is made, or ``None`` for parameters of no torch layer.

    Example:
        >>> scheme = default_scheme(Place("weight", (16, 3, 3, 3), "convolution", "Conv2d", {"weight": (16, 3, 3, 3)}))
        >>> scheme.name, round(scheme.std, 6), round(scheme.bound, 6)
        ('PyTorch default (uniform ±1/sqrt(fan_in))', 0.111111, 0.19245)
    """
    of_type = _OF_TYPE.get((place.layer_type, place.role))
    if of_type is not None:
        return of_type
    if place.layer_kind == "norm":
        return _ZEROS if place.is_bias else _ONES
    if place.layer_kind == "embedding":
        return normal("PyTorch default (normal, std 1)", 1.0, TORCH, _SHARE) if place.role == "weight" else None
    if place.layer_kind == "attention":
        return _of_attention(place)
    return _by_fan(place)


def _of_attention(place: Place) -> Scheme | None:
    counted = fans(place.shapes.get(place.role, place.shape))  # torch counts the stack of q, k and v as one matrix
    if place.role == "in_proj_bias":
        return _ZEROS
    if counted is None:
        return None
    std = math.sqrt(2 / sum(counted))
    if place.role in ("bias_k", "bias_v"):
        return normal("PyTorch default (Xavier normal)", std, TORCH, _SHARE)
    return uniform("PyTorch default (Xavier uniform)", std * math.sqrt(3), TORCH, _SHARE)


def _by_fan(place: Place) -> Scheme | None:
    """U(±1/sqrt(n)) of linear, convolutional and recurrent layers."""
    n = default_fan(place)
    is_its_own = place.role in ("weight", "weight_g", "bias") or place.layer_kind == "recurrent"
    if not n or not is_its_own:
        return None
    if place.role.endswith("_g"):
        return _of_weight_norm(place, 1 / math.sqrt(n))
    what = "hidden_size" if place.layer_kind == "recurrent" else "fan_in"
    if place.layer_kind == "linear" and len(place.shapes["weight"]) == 3:
        what = "in1_features"
    return uniform(f"PyTorch default (uniform ±1/sqrt({what}))", 1 / math.sqrt(n), TORCH, _SHARE)


def _of_weight_norm(place: Place, bound: float) -> Scheme | None:
    """The norms of rows of n elements drawn from U(±bound).

    A square has mean bound²/3 and variance 4 bound⁴/45; the root of the sum of n of them is near normal.
    """
    counted = fans(place.shapes.get(place.role.removesuffix("_g"), ()))
    if counted is None:
        return None
    n = counted[0]
    mean = bound * math.sqrt(n) * (math.sqrt(1 / 3) - math.sqrt(3) / (30 * n))
    return normal("PyTorch default (norms under weight norm)", bound / math.sqrt(15), TORCH, _SHARE, mean)


_ZEROS = constant("PyTorch default (zeros)", 0.0, TORCH, _SHARE)
_ONES = constant("PyTorch default (ones)", 1.0, TORCH, _SHARE)
_OF_TYPE = {
    ("PReLU", "weight"): constant("PyTorch default (0.25)", 0.25, TORCH, _SHARE),
    ("NonDynamicallyQuantizableLinear", "bias"): _ZEROS,  # the out_proj of MultiheadAttention
}
