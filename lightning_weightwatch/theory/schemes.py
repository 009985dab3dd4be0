"""Which scheme a tensor was drawn from, told by its spread, its centre and its largest magnitude.

The defaults are those of the layers' ``reset_parameters`` in torch 2.4 to 2.13; the others are the well-known ones of
``torch.nn.init``. How a tensor is judged lies in ``audit``: not to recognise it is no illness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from lightning_weightwatch.theory.fans import Place, Shape, default_fan, fans

Family = Literal["uniform", "normal", "truncated normal", "constant"]

_KURTOSIS: dict[Family, float] = {"uniform": 1.8, "normal": 3.0, "truncated normal": 2.3655, "constant": 1.0}
_CUT = 2.0  # a truncated normal is cut at two standard deviations of the normal it comes from
_CUT_STD = 0.87962566  # what the cut leaves of the standard deviation
_SIGMAS = 5.0  # a tensor that was drawn by a scheme is missed once in a million
_MISSED = 1e-6  # the same for its largest magnitude
_ROUNDING = 2.0**-8  # what bfloat16 may move a bound or a standard deviation by, as a share
_COARSE_TAIL = 5.0  # float32 generators have no normal numbers beyond 5.77: no tensor is too large to stay below that

_TORCH = "the layer's reset_parameters in PyTorch"
_GLOROT = "Glorot and Bengio, 2010"
_HE = "He et al., 2015"
_LECUN = "LeCun et al., 1998; Klambauer et al., 2017"
_OWN = "a constant"


@dataclass(frozen=True)
class Scheme:
    """A way to initialise a tensor, and the numbers it leads to.

    Attributes:
        name: What people call it.
        family: The distribution.
        mean: Its expectation.
        std: Its standard deviation.
        bound: The magnitude nothing exceeds, or ``None`` where there is none.
        source: Who says so.
    """

    name: str
    family: Family
    mean: float
    std: float
    bound: float | None
    source: str


@dataclass(frozen=True)
class Recognition:
    """What the numbers of a tensor say about its origin.

    Attributes:
        scheme: The best candidate, or ``None`` where none fits.
        alternatives: Further candidates that the numbers cannot tell from it.
    """

    scheme: Scheme | None
    alternatives: tuple[Scheme, ...] = ()

    def __str__(self) -> str:
        """Name it, and what it may also be."""
        if self.scheme is None:
            return "unrecognised"
        if not self.alternatives:
            return self.scheme.name
        many = len(self.alternatives)
        return f"{self.scheme.name} or {self.alternatives[0].name if many == 1 else f'{many} others'}"


def default_scheme(place: Place) -> Scheme | None:
    """Return what PyTorch's own layer does when it is made, or ``None`` for parameters of no torch layer.

    Example:
        >>> scheme = default_scheme(Place("weight", (16, 3, 3, 3), "convolution", "Conv2d", {"weight": (16, 3, 3, 3)}))
        >>> scheme.name, round(scheme.std, 6), round(scheme.bound, 6)
        ('PyTorch default (uniform ±1/sqrt(fan_in))', 0.111111, 0.19245)
    """
    of_type = _DEFAULT_OF_TYPE.get((place.layer_type, place.role))
    if of_type is not None:
        return of_type
    if place.layer_kind == "norm":
        return _DEFAULT_ZEROS if "bias" in place.role else _DEFAULT_ONES
    if place.layer_kind == "embedding":
        return _normal("PyTorch default (normal, std 1)", 1.0, _TORCH) if place.role == "weight" else None
    if place.layer_kind == "attention":
        return _attention_default(place)
    return _default_by_fan(place)


def candidates(place: Place, zeros: int = 0) -> tuple[Scheme, ...]:
    """Return the schemes a parameter may have been drawn from, PyTorch's default of its layer first.

    Args:
        place: Where the parameter sits.
        zeros: How many of its elements are exactly 0, which tells whether an embedding has a padding row.
    """
    default = default_scheme(place)
    if default is not None and place.layer_kind == "embedding" and _has_padding_row(place.shape, zeros):
        default = _padded(place.shape[0])
    found = [_constant("zeros", 0.0), _constant("ones", 1.0)]
    counted = fans(place.shape)
    if counted is not None:
        found += _of_fans(*counted)
        found.append(_normal("orthogonal", 1 / math.sqrt(max(place.shape[0], counted[0])), "Saxe et al., 2014"))
    if counted is not None or default is None:
        found += _of_fixed_width()
    if default is None:
        return tuple(found)
    return default, *(scheme for scheme in found if not _same_numbers(scheme, default))


def recognise(readout: Mapping[str, float], among: Sequence[Scheme]) -> Recognition:
    """Name the scheme a tensor was drawn from.

    Args:
        readout: Its ``count``, ``mean``, ``std``, ``min`` and ``max``, of the finite elements.
        among: The candidates, the likeliest first.

    Example:
        >>> drawn = {"count": 432, "mean": 0.001, "std": 0.109, "min": -0.1921, "max": 0.1919}
        >>> place = Place("weight", (16, 3, 3, 3), "convolution", "Conv2d", {"weight": (16, 3, 3, 3)})
        >>> str(recognise(drawn, candidates(place)))
        'PyTorch default (uniform ±1/sqrt(fan_in))'
    """
    if not readout["count"]:
        return Recognition(None)
    fitting = [scheme for scheme in among if _fits(readout, scheme)]
    if not fitting and readout["min"] == readout["max"]:
        fitting = [_constant(f"constant ({readout['min']:.6g})", readout["min"])]
    return Recognition(fitting[0], tuple(fitting[1:])) if fitting else Recognition(None)


def std_interval(scheme: Scheme, count: float, sigmas: float = _SIGMAS) -> tuple[float, float]:
    """Return the bounds that the standard deviation of ``count`` drawn elements stays in.

    The standard deviation of a sample scatters by about std * sqrt((kurtosis - 1) / (4 * count)), which is less for a
    uniform distribution (kurtosis 1.8) than for a normal one (3).

    Example:
        >>> low, high = std_interval(Scheme("U", "uniform", 0.0, 0.111111, 0.19245, ""), 432, sigmas=1)
        >>> round((high - low) / 2, 4)
        0.0024
    """
    relative = sigmas * math.sqrt((_KURTOSIS[scheme.family] - 1) / (4 * count))
    # Variances scatter evenly in themselves rather than in their root. For few elements that matters, and the wider
    # bound is taken on either side: a handful of numbers may well lie close together.
    return scheme.std * math.sqrt(max(0.0, 1 - 2 * relative)), scheme.std * (1 + relative)


def magnitude_interval(scheme: Scheme, count: float, missed: float = _MISSED) -> tuple[float, float]:
    """Return the bounds that the largest of ``count`` drawn magnitudes stays in, each but for a share of ``missed``.

    The largest of n independent magnitudes is below x with probability P(one is below x) ** n.

    Example:
        >>> low, high = magnitude_interval(Scheme("U", "uniform", 0.0, 0.111111, 0.19245, ""), 432)
        >>> round(low, 4), high
        (0.1864, 0.19245)
    """
    if scheme.family == "uniform" and scheme.bound is not None:
        return scheme.bound * missed ** (1 / count), scheme.bound
    if scheme.bound is not None:
        inside = 2 * NormalDist().cdf(_CUT) - 1
        return scheme.bound / _CUT * _normal_magnitude(1 - inside * missed ** (1 / count)), scheme.bound
    low = min(_normal_magnitude(-math.expm1(math.log(missed) / count)), _COARSE_TAIL)
    return scheme.std * low, scheme.std * _normal_magnitude(-math.expm1(math.log1p(-missed) / count))


def _normal_magnitude(beyond: float) -> float:
    """Return the magnitude that a standard normal number exceeds with probability ``beyond``."""
    return -NormalDist().inv_cdf(beyond / 2) if beyond < 1 else 0.0


def _fits(readout: Mapping[str, float], scheme: Scheme) -> bool:
    count, low, high = readout["count"], readout["min"], readout["max"]
    if scheme.family == "constant":
        return low == high and math.isclose(low, scheme.mean, rel_tol=1e-6)
    if count > 1 and low == high:
        return False
    least, most = std_interval(scheme, count)
    if count > 1 and not least * (1 - _ROUNDING) <= readout["std"] <= most * (1 + _ROUNDING):
        return False
    # bfloat16 draws a uniform number in 256 steps and leaves the last out: the mean lies up to 2**-8 bounds too low.
    if abs(readout["mean"] - scheme.mean) > scheme.std * (_SIGMAS / math.sqrt(count) + 2 * _ROUNDING):
        return False
    least, most = magnitude_interval(scheme, count)
    largest = max(abs(low - scheme.mean), abs(high - scheme.mean))
    return least * (1 - _ROUNDING) <= largest <= most * (1 + _ROUNDING)


def _attention_default(place: Place) -> Scheme | None:
    counted = fans(place.shape)
    if place.role == "in_proj_bias":
        return _DEFAULT_ZEROS
    if counted is None:
        return None
    std = math.sqrt(2 / sum(counted))
    if place.role in ("bias_k", "bias_v"):
        return _normal("PyTorch default (Xavier normal)", std, _TORCH)
    return _uniform("PyTorch default (Xavier uniform)", std * math.sqrt(3), _TORCH)


def _default_by_fan(place: Place) -> Scheme | None:
    """U(±1/sqrt(n)) of linear, convolutional and recurrent layers."""
    n = default_fan(place)
    is_its_own = place.role in ("weight", "weight_g", "bias") or place.layer_kind == "recurrent"
    if not n or not is_its_own:
        return None
    if place.role.endswith("_g"):
        return _weight_norm_default(place, 1 / math.sqrt(n))
    what = "hidden_size" if place.layer_kind == "recurrent" else "fan_in"
    if place.layer_kind == "linear" and len(place.shapes["weight"]) == 3:
        what = "in1_features"
    return _uniform(f"PyTorch default (uniform ±1/sqrt({what}))", 1 / math.sqrt(n), _TORCH)


def _weight_norm_default(place: Place, bound: float) -> Scheme | None:
    """The norms of rows of n elements drawn from U(±bound).

    A square has mean bound²/3 and variance 4 bound⁴/45; the root of the sum of n of them is near normal.
    """
    counted = fans(place.shapes.get(place.role.removesuffix("_g"), ()))
    if counted is None:
        return None
    n = counted[0]
    mean = bound * math.sqrt(n) * (math.sqrt(1 / 3) - math.sqrt(3) / (30 * n))
    return Scheme("PyTorch default (norms under weight norm)", "normal", mean, bound / math.sqrt(15), None, _TORCH)


def _has_padding_row(shape: Shape, zeros: int) -> bool:
    return len(shape) == 2 and shape[0] > 1 and zeros == shape[1]


def _padded(rows: int) -> Scheme:
    std = math.sqrt(1 - 1 / rows)
    return Scheme("PyTorch default (normal, std 1, a padding row)", "normal", 0.0, std, None, _TORCH)


def _of_fans(fan_in: int, fan_out: int) -> Iterator[Scheme]:
    """The schemes whose spread follows from the fans."""
    yield _uniform("uniform ±1/sqrt(fan_in)", math.sqrt(1 / fan_in), "torch.nn.init.kaiming_uniform_(a=sqrt(5))")
    spreads = (
        ("Kaiming", "(fan_in, relu)", math.sqrt(2 / fan_in), _HE),
        ("Kaiming", "(fan_out, relu)", math.sqrt(2 / fan_out), _HE),
        ("Xavier", "", math.sqrt(2 / (fan_in + fan_out)), _GLOROT),
        ("Xavier", "(gain relu)", math.sqrt(4 / (fan_in + fan_out)), _GLOROT),
        ("LeCun", "", math.sqrt(1 / fan_in), _LECUN),
    )
    for who, how, std, source in spreads:
        yield _uniform(f"{who} uniform {how}".rstrip(), std * math.sqrt(3), source)
        yield _normal(f"{who} normal {how}".rstrip(), std, source)


def _of_fixed_width() -> Iterator[Scheme]:
    """The schemes whose spread is the same for every shape."""
    for std, source in ((0.02, "Radford et al., 2018"), (0.01, "Krizhevsky et al., 2012"), (1.0, "torch.randn")):
        yield _normal(f"normal (std {std:g})", std, source)
    cut = "truncated normal (std 0.02, cut at ±0.04)"
    yield Scheme(cut, "truncated normal", 0.0, 0.02 * _CUT_STD, 0.02 * _CUT, "Devlin et al., 2018")


def _same_numbers(one: Scheme, other: Scheme) -> bool:
    return one.family == other.family and one.mean == other.mean and math.isclose(one.std, other.std)


def _uniform(name: str, bound: float, source: str) -> Scheme:
    return Scheme(name, "uniform", 0.0, bound / math.sqrt(3), bound, source)


def _normal(name: str, std: float, source: str) -> Scheme:
    return Scheme(name, "normal", 0.0, std, None, source)


def _constant(name: str, value: float) -> Scheme:
    return Scheme(name, "constant", value, 0.0, abs(value), _TORCH if "PyTorch" in name else _OWN)


_DEFAULT_ZEROS = _constant("PyTorch default (zeros)", 0.0)
_DEFAULT_ONES = _constant("PyTorch default (ones)", 1.0)
_DEFAULT_OF_TYPE = {
    ("PReLU", "weight"): _constant("PyTorch default (0.25)", 0.25),
    ("NonDynamicallyQuantizableLinear", "bias"): _DEFAULT_ZEROS,  # the out_proj of MultiheadAttention
}
