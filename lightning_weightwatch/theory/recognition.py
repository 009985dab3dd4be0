"""Which distribution a tensor was drawn from, told by spread, centre, largest magnitude and kurtosis.

Two questions are kept apart. *May it be?* Each number must lie where the samples of a scheme lie but for one in a
million; what passes is told, and so the true scheme is never left out. *Which is it?* Of what passes, the likeliest is
named first. The families here have two sufficient statistics, the second moment and the largest magnitude, so that the
likelihood of every element together follows from these without looking at the elements again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from lightning_weightwatch.theory.schemes import (
    SIGMAS,
    TORCH,
    Scheme,
    constant,
    kurtosis_interval,
    least_range,
    magnitude_interval,
    scatter,
    std_interval,
)

Readout = Mapping[str, float]

_DIGITS = (8, 11, 24)  # binary, of bfloat16, float16 and float32
_FINEST = 1e-6  # by which float32 may miss a bound, as a share
_BEYOND = math.log(100)  # against a bound that is exceeded, be it by no more than rounding
_FAR = math.log(1e8)  # a likelihood ratio that the true scheme exceeds once in so many tensors, at most
_MOST = 100_000  # elements that tell families apart many times over
_FEW = 200  # elements of which the kurtosis tells nothing
_OWN_SHARE = 0.05  # of parameters that are drawn in a way of the model's own
_RANGE = 20.0  # natural logarithms over which the spread of those may lie
_OF_QR = 2e-5  # the error of a QR decomposition in float32, as a share of a length; the largest seen was a half of it


@dataclass(frozen=True)
class Recognition:
    """What the numbers of a tensor say about its origin.

    Attributes:
        scheme: The likeliest, or ``None`` where none fits.
        alternatives: Further candidates that the numbers do not rule out, likeliest first.
        confidence: The probability of ``scheme`` among all that fit and some other distribution of its family, by how
            often each is met; 0 where there is none.
        interval: The standard deviations it may have been drawn with, at 95 %, or ``None``.
        untold: What could not be looked at, in words.
    """

    scheme: Scheme | None
    alternatives: tuple[Scheme, ...] = ()
    confidence: float = 0.0
    interval: tuple[float, float] | None = None
    untold: str = ""

    def __str__(self) -> str:
        """Name it, and what it may also be."""
        if self.scheme is None:
            return "unrecognised"
        if not self.alternatives:
            return self.scheme.name
        many = len(self.alternatives)
        return f"{self.scheme.name} or {self.alternatives[0].name if many == 1 else f'{many} others'}"


def recognise(readout: Readout, among: Sequence[Scheme]) -> Recognition:
    """Name the distribution a tensor was drawn from.

    Args:
        readout: Its ``count``, ``mean``, ``std``, ``min`` and ``max``, of the finite elements; with ``kurtosis`` and
            ``kurtosis_count`` its shape is looked at as well.
        among: The candidates; PyTorch's default, if there is one, first.

    Example:
        >>> from lightning_weightwatch.theory import Place, candidates
        >>> drawn = {"count": 432, "mean": 0.001, "std": 0.109, "min": -0.1921, "max": 0.1919}
        >>> place = Place("weight", (16, 3, 3, 3), "convolution", "Conv2d", {"weight": (16, 3, 3, 3)})
        >>> str(recognise(drawn, candidates(place)))
        'PyTorch default (uniform ±1/sqrt(fan_in))'
    """
    if not readout["count"]:
        return Recognition(None)
    fitting = [scheme for scheme in among if fits(readout, scheme)]
    if readout["min"] == readout["max"]:
        return _of_constant(readout, fitting)
    if not fitting:
        return Recognition(None)
    weights = {scheme: _weight(readout, scheme) for scheme in _not_far_behind(readout, fitting)}
    first, *others = sorted(weights, key=lambda scheme: -weights[scheme])
    rivals = [*weights.values(), _weight_of_own(readout, first)]
    confidence = 1 / sum(math.exp(min(weight - weights[first], 0.0)) for weight in rivals)
    spread = 1.96 * scatter(first, readout["count"])
    interval = readout["std"] * max(0.0, 1 - spread), readout["std"] * (1 + spread)
    return Recognition(first, tuple(others), confidence, interval)


def _not_far_behind(readout: Readout, fitting: Sequence[Scheme]) -> list[Scheme]:
    """Leave out what accounts for all numbers together far worse than another.

    Rounding to bfloat16 moves the spread a little, which the likelihood of very many elements would overrate.
    """
    seen = min(1.0, _MOST / readout["count"])
    found = {scheme: _log_likelihood(readout, scheme) * seen for scheme in fitting}
    best = max(found.values())
    return [scheme for scheme, likelihood in found.items() if likelihood >= best - _FAR]


def _of_constant(readout: Readout, fitting: Sequence[Scheme]) -> Recognition:
    """A number that stands for all of them; where there is but one, it may also have been drawn."""
    constants = [scheme for scheme in fitting if scheme.family == "constant"]
    drawn = [scheme for scheme in fitting if scheme.family != "constant"]
    is_default = bool(drawn) and drawn[0].source == TORCH
    made = constants or [constant(f"constant ({readout['min']:.6g})", readout["min"])]
    found = [*drawn, *made] if is_default and not constants else [*made, *drawn]
    return Recognition(found[0], tuple(found[1:]), 0.5 if drawn else 1.0)


def fits(readout: Readout, scheme: Scheme) -> bool:
    """Whether a scheme may have drawn these numbers."""
    count, low, high = readout["count"], readout["min"], readout["max"]
    if scheme.family == "constant":
        return low == high and math.isclose(low, scheme.mean, rel_tol=1e-6)
    if count > 1 and low == high:
        return False
    if scheme.family == "orthogonal":
        return abs(math.hypot(readout["std"], readout["mean"]) / scheme.std - 1) <= _rounding_of_length(readout)
    # bfloat16 draws a uniform number in 256 steps and leaves the last out: the mean lies up to 2**-8 bounds too low.
    if abs(readout["mean"] - scheme.mean) > scheme.std * (SIGMAS / math.sqrt(count) + 2 * _rounding(readout)):
        return False
    return (
        (count == 1 or _within(readout, readout["std"], std_interval(scheme, count)))
        and _within(readout, _largest(readout, scheme), magnitude_interval(scheme, count))
        and _has_its_shape(readout, scheme)
    )


def rounding_of_angles(count: float, epsilon: float) -> float:
    """Return what rounding may make of a cosine of 0 between vectors of so many elements, or of their length of 1."""
    return _OF_QR + 4 * epsilon / math.sqrt(count)


def epsilon(readout: Readout) -> float:
    """Return by how much two neighbouring numbers differ, as a share, in the coarsest type that a tensor was ever of.

    What was rounded to bfloat16 is so in float32, in every shard, and in its smallest and largest element.
    """
    return _epsilon_of(readout["min"], readout["max"])


@lru_cache
def _epsilon_of(*numbers: float) -> float:
    for digits in _DIGITS[:-1]:
        if all((math.frexp(number)[0] * 2**digits).is_integer() for number in numbers):
            return 2.0 ** (1 - digits)
    return 2.0 ** (1 - _DIGITS[-1])


def _rounding_of_length(readout: Readout) -> float:
    return rounding_of_angles(readout["count"], epsilon(readout))


def _rounding(readout: Readout) -> float:
    return max(epsilon(readout) / 2, _FINEST)


def _within(readout: Readout, value: float, interval: tuple[float, float]) -> bool:
    return interval[0] * (1 - _rounding(readout)) <= value <= interval[1] * (1 + _rounding(readout))


def _has_its_shape(readout: Readout, scheme: Scheme) -> bool:
    spanned = (readout["max"] - readout["min"]) * (1 + 2 * _rounding(readout))  # a step of bfloat16 is left out
    if scheme.family == "uniform" and readout["count"] > 1 and spanned < least_range(scheme, readout["count"]):
        return False
    count, found = readout.get("kurtosis_count", 0.0), readout.get("kurtosis", math.nan)
    if scheme.mean != 0 or count < _FEW or math.isnan(found):
        return True
    return _within(readout, found, kurtosis_interval(scheme, count))


def _weight(readout: Readout, scheme: Scheme) -> float:
    """Return the logarithm of how well a scheme accounts for the numbers, times how often it is met."""
    found = math.log(scheme.share) + _log_likelihood(readout, scheme)
    if scheme.family == "orthogonal":  # of random matrices few have this length so nearly
        found += max(0.0, math.log(scatter(scheme, readout["count"]) / _rounding_of_length(readout)))
    is_beyond = scheme.bound is not None and _largest(readout, scheme) > scheme.bound * (1 + _FINEST)
    return found - _BEYOND if is_beyond else found


def _log_likelihood(readout: Readout, scheme: Scheme) -> float:
    """Return the logarithm of the density at all elements together."""
    count = readout["count"]
    if scheme.family == "uniform":
        return -count * math.log(2 * max(scheme.bound or 0.0, _largest(readout, scheme)))
    square = readout["std"] ** 2 + (readout["mean"] - scheme.mean) ** 2
    found = -count / 2 * (math.log(2 * math.pi * scheme.parent**2) + square / scheme.parent**2)
    if scheme.family == "truncated normal":
        found -= count * math.log(math.erf(scheme.cut / math.sqrt(2)))
    return found


def _weight_of_own(readout: Readout, like: Scheme) -> float:
    """Return the weight of a distribution of the same family whose spread is any number of the model's own."""
    count = readout["count"]
    if like.family == "uniform" and like.bound is not None:
        ratio, breadth = _largest(readout, like) / like.bound, 1 / count
    else:
        ratio = math.hypot(readout["std"], readout["mean"] - like.mean) / like.std
        breadth = scatter(like, count) * math.sqrt(2 * math.pi)
    best = replace(like, std=like.std * ratio, bound=None if like.bound is None else like.bound * ratio)
    return math.log(_OWN_SHARE * breadth / _RANGE) + _log_likelihood(readout, best)


def _largest(readout: Readout, scheme: Scheme) -> float:
    return max(abs(readout["min"] - scheme.mean), abs(readout["max"] - scheme.mean))
