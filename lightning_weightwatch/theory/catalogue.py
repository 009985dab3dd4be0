"""The schemes that people use, and which of them a parameter may have been drawn from.

The spread of most follows from the fans, as torch counts them; of some it is the same for every shape. Where the true
fans differ from torch's (stacked matrices, groups, transposed convolutions), those that count right are listed as well.

A gain of 0.01 for leaky ReLU is within 5e-5 of that for ReLU and is called so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from lightning_weightwatch.theory.defaults import default_scheme
from lightning_weightwatch.theory.fans import Fans, Place, fans, true_fans
from lightning_weightwatch.theory.schemes import Family, Scheme, constant, normal, truncated, uniform

_GLOROT = "Glorot and Bengio, 2010"
_HE = "He et al., 2015"
_LECUN = "LeCun et al., 1998; Klambauer et al., 2017"
_SAXE = "Saxe et al., 2014"
_SIREN = "Sitzmann et al., 2020"
_GPT2 = "Radford et al., 2019"
_SCALING = "variance scaling of TensorFlow, JAX and timm"
_CUSTOM = "a number people choose"

_RELU, _TANH, _SELU = math.sqrt(2), 5 / 3, 3 / 4  # as torch.nn.init.calculate_gain has them
_LEAKY = {"leaky 0.1": math.sqrt(2 / 1.01), "leaky 0.2": math.sqrt(2 / 1.04)}
_GAINS = {"relu": _RELU, **_LEAKY, "tanh": _TANH, "selu": _SELU}
GAINS = (1.0, _RELU, _TANH, 0.01, 0.1)
"""Those of orthogonal matrices; the small ones are for the last layer of a policy."""

STDS = {1.0: 0.02, 0.02: 0.03, 0.01: 0.02, 0.1: 0.01, 0.001: 0.005, 0.05: 0.005, 0.5: 0.002, 0.2: 0.002}
STDS |= {0.005: 0.002, 0.006: 0.002, 0.002: 0.002, 0.0002: 0.001, 0.0001: 0.002, 1e-5: 0.001, 1e-6: 0.002}
STDS |= {std: 0.0005 for d in range(1, 10) for k in range(1, 6) if (std := float(f"{d}e-{k}")) not in STDS}
"""Standard deviations of plain normals, each with how often it is met; the others have one digit as well."""

_CUT_STDS = {0.02: 0.03, 0.01: 0.005, 0.05: 0.003, 0.1: 0.003, 1.0: 0.005, 0.001: 0.002}
_BOUNDS = (0.1, 0.05, 0.08, 0.01, 0.003, 0.001, 1.0, 0.5)
_DEEPEST = 96  # blocks of the largest transformers
_DEPTHS = (2, 4, 6, 8, 12, 16, 18, 20, 24, 28, 32, 36, 40, 48, 60, 64, 80, 96)
_ENOUGH = 256  # a bias of fewer elements fits almost any spread, and nobody draws it but the layer


def candidates(place: Place) -> tuple[Scheme, ...]:
    """Return the distributions a parameter may have been drawn from, PyTorch's default of its layer first.

    Example:
        >>> for scheme in candidates(Place("weight", (8, 4), "linear", "Linear", {"weight": (8, 4)}))[3:6]:
        ...     print(scheme.name, round(scheme.std, 4))
        Kaiming uniform (fan_in, relu) 0.7071
        Kaiming normal (fan_in, relu) 0.7071
        Kaiming uniform (fan_out, relu) 0.5
    """
    defaults = [scheme for where in (place, *place.tied) if (scheme := default_scheme(where)) is not None]
    found = [*defaults, constant("zeros", 0.0), constant("ones", 1.0), *_drawn(place, bool(defaults))]
    if place.layer_kind == "norm" and not place.is_bias:
        found.append(normal("normal (mean 1, std 0.02)", 0.02, "Radford et al., 2016", mean=1.0))
    kept = defaults[:1]
    for scheme in found:
        if not any(same_numbers(scheme, default) for default in defaults[: len(kept)]):
            kept.append(scheme)
    return tuple(kept)


def same_numbers(one: Scheme, other: Scheme) -> bool:
    """Whether two schemes draw the same numbers under two names."""
    return one.family == other.family and one.mean == other.mean and math.isclose(one.std, other.std)


def _drawn(place: Place, has_default: bool) -> Iterator[Scheme]:
    counted = fans(place.shape)
    if counted is not None:
        yield uniform("uniform ±1/sqrt(fan_in)", 1 / math.sqrt(counted[0]), "torch.nn.init.kaiming_uniform_(a=sqrt(5))")
        yield from _of_fans(Fans(*counted))
        yield from _of_true_fans(place)
        yield from _cut_by_fans(Fans(*counted))
        yield from _of_siren(counted[0])
        yield from (orthogonal(place.shape, gain) for gain in GAINS)
    if counted is not None or not has_default or math.prod(place.shape) >= _ENOUGH:
        yield from _of_fixed_width()
    if counted is not None:
        yield from _of_depth()


def orthogonal(shape: tuple[int, ...], gain: float = 1.0, share: float = 0.01) -> Scheme:
    """Return the scheme whose rows, or columns where they are fewer, are at right angles and of length ``gain``."""
    longer = max(shape[0], math.prod(shape[1:]))
    name = "orthogonal" if math.isclose(gain, 1, rel_tol=1e-3) else f"orthogonal (gain {gain:.4g})"
    return Scheme(name, "orthogonal", 0.0, gain / math.sqrt(longer), None, _SAXE, share=share)


def _of_fans(both: Fans, per: str = "", share: float = 0.02) -> Iterator[Scheme]:
    """The schemes whose spread follows from the fans; the gains that are met less come last."""
    fan_in, fan_out, total = both.fan_in, both.fan_out, both.fan_in + both.fan_out
    spreads = [
        ("Kaiming", ("fan_in", "relu", per), math.sqrt(2 / fan_in), _HE, share),
        ("Kaiming", ("fan_out", "relu", per), math.sqrt(2 / fan_out), _HE, share),
        ("Xavier", (per,), math.sqrt(2 / total), _GLOROT, share),
        ("Xavier", ("gain relu", per), math.sqrt(4 / total), _GLOROT, share / 4),
        ("LeCun", (per,), math.sqrt(1 / fan_in), _LECUN, share),
        ("Kaiming", ("fan_out", "linear", per), math.sqrt(1 / fan_out), _HE, share / 4),
    ]
    for what, gain in _GAINS.items():
        if what != "relu":
            spreads.append(("Kaiming", ("fan_in", what, per), gain / math.sqrt(fan_in), _HE, share / 8))
            spreads.append(("Kaiming", ("fan_out", what, per), gain / math.sqrt(fan_out), _HE, share / 16))
            spreads.append(("Xavier", (f"gain {what}", per), gain * math.sqrt(2 / total), _GLOROT, share / 8))
    for who, how, std, source, met in spreads:
        yield uniform(_named(who, "uniform", how), std * math.sqrt(3), source, met)
        yield normal(_named(who, "normal", how), std, source, met)


def _of_true_fans(place: Place) -> Iterator[Scheme]:
    """The same by the fans of each block, group or transposed kernel; nobody who draws them looks at the stride."""
    per = "per gate" if place.layer_kind == "recurrent" else "per block"
    if not place.wiring.stacked:
        per = "true fans" if place.wiring.transposed else "per group"
    true = true_fans(replace(place, wiring=replace(place.wiring, stride=1)))
    counted = fans(place.shape)
    if place.layer_kind in ("embedding", "norm") or true is None or counted is None or true == Fans(*counted):
        return
    known = {(scheme.family, scheme.std) for scheme in _of_fans(Fans(*counted))} if not place.wiring.stacked else set()
    for scheme in _of_fans(true, per, 0.03 if place.wiring.stacked else 0.01):
        if (scheme.family, scheme.std) not in known:  # such as fan_in of a group, which torch counts as well
            yield scheme


def _cut_by_fans(both: Fans) -> Iterator[Scheme]:
    """Truncated normals, and those in which nobody made up for what the cut takes off the spread."""
    spreads = (
        ("LeCun", (), math.sqrt(1 / both.fan_in), 0.01),
        ("Kaiming", ("fan_in", "relu"), math.sqrt(2 / both.fan_in), 0.01),
        ("Kaiming", ("fan_out", "relu"), math.sqrt(2 / both.fan_out), 0.01),
        ("Xavier", (), math.sqrt(2 / (both.fan_in + both.fan_out)), 0.01),
    )
    for who, how, std, share in spreads:
        family: Family = "truncated normal"
        lost = truncated("", 1.0, "").std
        yield truncated(_named(who, family, how), std / lost, _SCALING, share)
        yield truncated(_named(who, family, (*how, "cut not made up for")), std, _SCALING, share / 3)


def _of_siren(fan_in: int) -> Iterator[Scheme]:
    yield uniform("SIREN (uniform ±sqrt(6/fan_in)/30)", math.sqrt(6 / fan_in) / 30, _SIREN, 0.002)
    yield uniform("SIREN, first layer (uniform ±1/fan_in)", 1 / fan_in, _SIREN, 0.002)


@lru_cache
def _of_fixed_width() -> tuple[Scheme, ...]:
    """The schemes whose spread is the same for every shape."""
    source = "Devlin et al., 2018"
    return (
        *(normal(f"normal (std {std:g})", std, _CUSTOM, share) for std, share in STDS.items()),
        *(truncated(_cut_at(std, 2), std, source, share) for std, share in _CUT_STDS.items()),
        *(truncated(_cut_at(std, 3), std, _CUSTOM, 0.003, cut=3.0) for std in (0.02, 1.0)),
        *(uniform(f"uniform ±{bound:g}", bound, _CUSTOM, 0.003) for bound in _BOUNDS),
        Scheme("uniform 0 to 1", "uniform", 0.5, 0.5 / math.sqrt(3), 0.5, "torch.rand", share=0.005),
    )


@lru_cache
def _of_depth() -> tuple[Scheme, ...]:
    """The projections at the end of each branch of L transformer blocks."""
    return tuple(
        normal(f"GPT-2 residual (normal 0.02/sqrt(2L), L = {depth})", 0.02 / math.sqrt(2 * depth), _GPT2, share)
        for depth in range(1, _DEEPEST + 1)
        for share in [0.001 if depth in _DEPTHS else 0.0001]
    )


def _cut_at(std: float, sigmas: int) -> str:
    return f"truncated normal (std {std:g}, cut at ±{sigmas * std:g})"


def _named(who: str, family: str, how: tuple[str, ...]) -> str:
    """Return such as ``Kaiming normal (fan_in, relu)``."""
    told = ", ".join(part for part in how if part)
    return f"{who} {family} ({told})" if told else f"{who} {family}"
