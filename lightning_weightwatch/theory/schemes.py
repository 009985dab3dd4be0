"""What a scheme is: the distribution a tensor may have been drawn from, and how far its samples scatter.

Which schemes there are lies in ``catalogue`` and ``defaults``; which of them a tensor shows, in ``recognition``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

Family = Literal["uniform", "normal", "truncated normal", "constant", "orthogonal", "identity", "sparse", "mixed"]

SIGMAS = 5.0  # a tensor that was drawn by a scheme is missed once in a million
_MISSED = 1e-6  # the same for its largest magnitude
_COARSE_TAIL = 5.0  # float32 generators have no normal numbers beyond 5.77: no tensor is too large to stay below that

TORCH = "the layer's reset_parameters in PyTorch"
OWN = "the model's own"


@dataclass(frozen=True)
class Scheme:
    """A way to initialise a tensor, and the numbers it leads to.

    Attributes:
        name: What people call it.
        family: The distribution. What is ``"orthogonal"``, ``"identity"``, ``"sparse"`` or ``"mixed"`` (of several
            matrices in one tensor) is told by how the elements lie, the others by what they are.
        mean: Its expectation.
        std: Its standard deviation.
        bound: The magnitude nothing exceeds, or ``None`` where there is none.
        source: Who says so.
        cut: Where a truncated normal is cut, in standard deviations of the normal it comes from.
        share: How often it is met, roughly, among the parameters that may have it.
    """

    name: str
    family: Family
    mean: float
    std: float
    bound: float | None
    source: str
    cut: float = 2.0
    share: float = 0.01

    @property
    def parent(self) -> float:
        """The standard deviation of the normal before it was cut."""
        return self.std if self.bound is None else self.bound / self.cut


def uniform(name: str, bound: float, source: str, share: float = 0.01) -> Scheme:
    """Return U(±bound)."""
    return Scheme(name, "uniform", 0.0, bound / math.sqrt(3), bound, source, share=share)


def normal(name: str, std: float, source: str, share: float = 0.01, mean: float = 0.0) -> Scheme:
    """Return a normal distribution."""
    return Scheme(name, "normal", mean, std, None, source, share=share)


def truncated(name: str, parent: float, source: str, share: float = 0.01, cut: float = 2.0) -> Scheme:
    """Return the normal of spread ``parent``, cut at ``cut`` of its standard deviations."""
    std = parent * math.sqrt(cut_moments(cut)[0])
    return Scheme(name, "truncated normal", 0.0, std, parent * cut, source, cut, share)


def constant(name: str, value: float, source: str = OWN, share: float = 0.01) -> Scheme:
    """Return the same number throughout."""
    return Scheme(name, "constant", value, 0.0, abs(value), source, share=share)


@lru_cache
def cut_moments(cut: float) -> tuple[float, float, float, float]:
    """Return the second, fourth, sixth and eighth moment of a standard normal number that lies within ±``cut``.

    Example:
        >>> round(cut_moments(2.0)[0] ** 0.5, 8)
        0.87962566
    """
    standard = NormalDist()
    edge = 2 * standard.pdf(cut) / (2 * standard.cdf(cut) - 1)
    found = [1.0]
    for power in (1, 3, 5, 7):  # by parts: E z^(k+1) = k E z^(k-1) - what lies at the edges
        found.append(power * found[-1] - edge * cut**power)
    return found[1], found[2], found[3], found[4]


def moments(scheme: Scheme) -> tuple[float, float, float]:
    """Return the fourth, sixth and eighth moment of a scheme in powers of its variance: 3, 15 and 105 of a normal."""
    if scheme.family == "uniform":
        return 9 / 5, 27 / 7, 81 / 9
    if scheme.family == "truncated normal":
        second, fourth, sixth, eighth = cut_moments(scheme.cut)
        return fourth / second**2, sixth / second**3, eighth / second**4
    return (1.0, 1.0, 1.0) if scheme.family == "constant" else (3.0, 15.0, 105.0)


def scatter(scheme: Scheme, count: float) -> float:
    """Return the standard error of the standard deviation of ``count`` drawn elements, as a share of it.

    It is sqrt((kurtosis - 1) / (4 * count)), which is less for a uniform distribution (kurtosis 1.8) than for a normal
    one (3).
    """
    return math.sqrt((moments(scheme)[0] - 1) / (4 * count))


def std_interval(scheme: Scheme, count: float, sigmas: float = SIGMAS) -> tuple[float, float]:
    """Return the bounds that the standard deviation of ``count`` drawn elements stays in.

    Example:
        >>> low, high = std_interval(Scheme("U", "uniform", 0.0, 0.111111, 0.19245, ""), 432, sigmas=1)
        >>> round((high - low) / 2, 4)
        0.0024
    """
    relative = sigmas * scatter(scheme, count)
    # Variances scatter evenly in themselves rather than in their root. For few elements that matters, and the wider
    # bound is taken on either side: a handful of numbers may well lie close together.
    return scheme.std * math.sqrt(max(0.0, 1 - 2 * relative)), scheme.std * (1 + relative)


def kurtosis_interval(scheme: Scheme, count: float, sigmas: float = SIGMAS) -> tuple[float, float]:
    """Return the bounds that the kurtosis of ``count`` elements stays in, drawn by a scheme with mean 0.

    Its standard error follows from the moments of the scheme up to the eighth, sqrt(24 / count) for a normal one. Large
    values are the likelier side, which is allowed for on both.

    Example:
        >>> low, high = kurtosis_interval(Scheme("N", "normal", 0.0, 1.0, None, ""), 1e6, sigmas=1)
        >>> round((high - low) / 2, 4), round((24 / 1e6) ** 0.5, 4)
        (0.0049, 0.0049)
    """
    fourth, sixth, eighth = moments(scheme)
    error = math.sqrt((eighth - fourth**2 - 4 * fourth * (sixth - fourth) + 4 * fourth**2 * (fourth - 1)) / count)
    skewed = (sigmas**2 - 1) * math.sqrt(6 / count)  # Cornish and Fisher, 1938, of a normal sample's kurtosis
    return fourth - (sigmas + skewed) * error, fourth + (sigmas + skewed) * error


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
        inside = 2 * NormalDist().cdf(scheme.cut) - 1
        return scheme.parent * _normal_magnitude(1 - inside * missed ** (1 / count)), scheme.bound
    low = min(_normal_magnitude(-math.expm1(math.log(missed) / count)), _COARSE_TAIL)
    return scheme.std * low, scheme.std * _normal_magnitude(-math.expm1(math.log1p(-missed) / count))


def least_range(scheme: Scheme, count: float, missed: float = _MISSED) -> float:
    """Return what ``count`` elements of a uniform distribution span at least, between the smallest and the largest.

    All of n lie within a share u of the width with probability below n u ** (n - 1).
    """
    return 2 * (scheme.bound or 0.0) * math.pow(missed / count, 1 / (count - 1))


def _normal_magnitude(beyond: float) -> float:
    """Return the magnitude that a standard normal number exceeds with probability ``beyond``."""
    return -NormalDist().inv_cdf(beyond / 2) if beyond < 1 else 0.0
