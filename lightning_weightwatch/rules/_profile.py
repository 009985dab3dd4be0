"""How gradients change with depth: a straight line through log10 gradient RMS of the matrices, in forward order.

A line through all of them is asked, never the first over the last: one odd layer would decide that alone. And the line
must explain more than a single step between two levels does: two networks that train side by side, each level within
itself, are such a step, and so is an odd layer at one end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_weightwatch.evidence import Evidence, Floats
from lightning_weightwatch.rules._robust import medians
from lightning_weightwatch.rules._runs import start_of_last_run


@dataclass(frozen=True)
class Profile:
    """A fitted depth profile.

    Attributes:
        names: The matrices it is made of, in forward order.
        log_rms: The median of log10 gradient RMS of each over the steps, shape ``[len(names)]``.
        decades: The fitted change from the first matrix to the last; positive where early layers get less.
        r_squared: The share of the variance that the line explains.
        is_trend: Whether that is more than any single step between two levels explains.
        first_step: The first of the steps.
        last_step: The last of the steps.
    """

    names: tuple[str, ...]
    log_rms: Floats
    decades: float
    r_squared: float
    is_trend: bool
    first_step: int
    last_step: int

    @property
    def ratio(self) -> float:
        """The fitted gradient RMS of the first matrix over that of the last."""
        return float(10.0**-self.decades)

    @property
    def per_layer(self) -> float:
        """Decades from one matrix to the next."""
        return self.decades / (len(self.names) - 1)


def depth_profile(
    evidence: Evidence, *, steps: int, matrices: int = 3, columns: Sequence[int] | None = None
) -> Profile | None:
    """Fit the profile over the last ``steps`` steps; ``None`` with fewer steps or fewer usable matrices.

    It is made of the matrices, or of the parameters of other ``columns``, in forward order.

    A matrix counts where a gradient was measured in a quarter of the steps at least (networks that take turns have one
    in half of them), unless half of those were exactly zero or not finite: that is other rules' business.
    """
    if len(evidence) < steps:
        return None
    chosen = tuple(evidence.matrices if columns is None else columns)
    profile = evidence.once(("depth profile", steps, chosen), lambda: _fitted(evidence, steps, chosen))
    return profile if profile is not None and len(profile.names) >= matrices else None


def _fitted(evidence: Evidence, steps: int, columns: Sequence[int]) -> Profile | None:
    chosen = np.array(columns, dtype=int)
    rms = evidence.rms[-steps:, chosen]
    measured = ~np.isnan(rms)
    usable = np.isfinite(rms) & (rms > 0)
    keep = (measured.mean(axis=0) >= 0.25) & (usable.sum(axis=0) > 0.5 * measured.sum(axis=0))
    if keep.sum() < 2:  # no line goes through a point
        return None
    logs = np.log10(np.where(usable, rms, np.nan)[:, keep])
    median = medians(logs.T, usable[:, keep].sum(axis=0))
    depth = np.linspace(0.0, 1.0, len(median))
    away = depth - 0.5
    slope = (away @ median) / (away @ away)
    spread, residual = np.var(median), np.var(median - slope * depth)
    return Profile(
        names=tuple(evidence.parameters[i].name for i in chosen[keep]),
        log_rms=median,
        decades=float(slope),
        r_squared=float(1 - residual / spread) if spread > 0 else 0.0,
        is_trend=bool(residual < _best_step(median)),
        first_step=evidence.steps[-steps],
        last_step=evidence.steps[-1],
    )


def _best_step(values: Floats) -> float:
    """Return the least variance that is left when the values are cut in two, each part taken at its mean."""
    away = values - values.mean()
    left, count = np.cumsum(away)[:-1], np.arange(1, len(away))
    explained = left**2 / count + left**2 / (len(away) - count)  # what the means of the two parts account for
    return float((np.sum(away**2) - explained.max()) / len(away))


def steep_since(evidence: Evidence, profile: Profile, decades: float) -> int:
    """Return since when the profile has been steeper than so many decades, in either direction, step by step."""
    columns = {p.name: i for i, p in enumerate(evidence.parameters)}
    rms = evidence.rms[:, [columns[name] for name in profile.names]]
    usable = np.isfinite(rms) & (rms > 0)
    logs = np.log10(np.where(usable, rms, 1.0))
    depth = np.where(usable, np.linspace(0.0, 1.0, rms.shape[1]), 0.0)
    count = np.maximum(usable.sum(axis=1), 1)[:, None]
    away = np.where(usable, depth - depth.sum(axis=1, keepdims=True) / count, 0.0)
    slopes = (away * logs).sum(axis=1) / np.maximum((away**2).sum(axis=1), 1e-9)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(slopes * np.sign(profile.decades), 2, mode="edge"), 5)
    since = evidence.steps[start_of_last_run(np.median(around, axis=1) > decades)]
    return min(since, profile.first_step)


def bias_columns(evidence: Evidence) -> list[int]:
    """Return the biases of the layers that have a matrix, in forward order, but for those that a normalisation follows.

    The gradient of a bias is that of the layer's output. That of a matrix is multiplied by the layer's input, so a
    signal that fades forwards as it fades backwards leaves no trace in it. What is normalised afterwards cancels the
    bias, whose gradient is then what is left by rounding.
    """
    order = sorted(range(len(evidence.parameters)), key=lambda i: evidence.parameters[i].place)
    layers: dict[str, dict[str, int]] = {}
    for i in order:
        parameter = evidence.parameters[i]
        layers.setdefault(parameter.layer, {}).setdefault("matrix" if parameter.is_matrix else parameter.kind, i)
    following = [*list(layers.values())[1:], {}]
    pairs = zip(layers.values(), following, strict=False)
    return [own["bias"] for own, after in pairs if {"bias", "matrix"} <= own.keys() and "norm" not in after]
