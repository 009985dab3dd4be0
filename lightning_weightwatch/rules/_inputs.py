"""Inputs far from unit scale, in the forward passes that were listened to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lightning_weightwatch.evidence import Evidence, InputScale

LIMITS = {"largest_std": 10.0, "abs_max": 50.0, "offset": 10.0, "spread": 1e3}
_WORDS = {
    "largest_std": "standard deviation of a feature",
    "abs_max": "largest magnitude",
    "offset": "standard deviations between a feature's mean and 0",
    "spread": "largest over smallest standard deviation of the features",
}
_FAR = 5.0  # a mean that is many deviations from 0 only matters where values are larger than this


@dataclass(frozen=True)
class OffScale:
    """What is wrong with one input.

    Attributes:
        name: Where it was in the batch.
        what: The measure that is farthest beyond its limit, in words.
        value: Its median over the passes.
        limit: What it is held against.
        since: The first pass that showed it.
        passes: How many passes did.
        matters: Whether the scale itself is off, and not only that of rare features.
    """

    name: str
    what: str
    value: float
    limit: float
    since: int
    passes: int
    matters: bool


def off_scale(evidence: Evidence, limits: Mapping[str, float] = LIMITS) -> list[OffScale]:
    """Return each input that is off scale in more than half of the passes, with its worst measure."""
    passes: dict[str, list[tuple[int, InputScale]]] = {}
    for heard in evidence.listened:
        for seen in heard.inputs:
            passes.setdefault(seen.name, []).append((heard.step, seen))
    found = [_judged(name, seen, limits) for name, seen in passes.items()]
    return [one for one in found if one is not None]


def is_normalised_first(evidence: Evidence) -> bool:
    """Whether the network's first layer is a normalisation, which makes its own scale."""
    order = sorted(range(len(evidence.parameters)), key=lambda i: evidence.parameters[i].place)
    return any(evidence.parameters[i].kind == "norm" for i in order[:2])


def _judged(name: str, passes: list[tuple[int, InputScale]], limits: Mapping[str, float]) -> OffScale | None:
    found = []
    largest = float(np.median([seen.abs_max for _, seen in passes]))
    for measure, limit in limits.items():
        values = np.array([getattr(seen, measure) for _, seen in passes])
        beyond = values > limit
        if beyond.mean() > 0.5 and (measure != "offset" or largest > _FAR):
            first, value = passes[int(np.argmax(beyond))][0], float(np.nan_to_num(np.nanmedian(values)))
            found.append(OffScale(name, _WORDS[measure], value, limit, first, int(beyond.sum()), measure != "spread"))
    return max(found, key=lambda one: (one.matters, one.value / one.limit), default=None)
