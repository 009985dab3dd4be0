"""How gradients change with depth: a straight line through log10 gradient RMS of the matrices, in forward order.

A line through all of them is asked, never the first over the last: one odd layer would decide that alone. And the line
must explain more than a single step between two levels does: two networks that train side by side, each level within
itself, are such a step, and so is an odd layer at one end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_weightwatch.evidence import Evidence, Floats


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
    def per_layer(self) -> float:
        """Decades from one matrix to the next."""
        return self.decades / (len(self.names) - 1)


def depth_profile(evidence: Evidence, *, steps: int, matrices: int = 3) -> Profile | None:
    """Fit the profile over the last ``steps`` steps; ``None`` with fewer steps or fewer usable matrices.

    A matrix counts where a gradient was measured in a quarter of the steps at least (networks that take turns have one
    in half of them), unless half of those were exactly zero or not finite: that is other rules' business.
    """
    if len(evidence) < steps:
        return None
    columns = np.array(evidence.matrices, dtype=int)
    rms = evidence.rms[-steps:, columns]
    measured = ~np.isnan(rms)
    usable = np.isfinite(rms) & (rms > 0)
    keep = (measured.mean(axis=0) >= 0.25) & (usable.sum(axis=0) > 0.5 * measured.sum(axis=0))
    if keep.sum() < matrices:
        return None
    logs = np.log10(np.where(usable, rms, np.nan)[:, keep])
    median = np.nanmedian(logs, axis=0)
    depth = np.linspace(0.0, 1.0, len(median))
    slope, start = np.polyfit(depth, median, 1)
    spread, residual = np.var(median), np.var(median - (start + slope * depth))
    return Profile(
        names=tuple(evidence.parameters[i].name for i in columns[keep]),
        log_rms=median,
        decades=float(slope),
        r_squared=float(1 - residual / spread) if spread > 0 else 0.0,
        is_trend=bool(residual < _best_step(median)),
        first_step=evidence.steps[-steps],
        last_step=evidence.steps[-1],
    )


def _best_step(values: Floats) -> float:
    """Return the least variance that is left when the values are cut in two, each part taken at its mean."""
    cuts = range(1, len(values))
    return min(float(np.var(values[:i]) * i + np.var(values[i:]) * (len(values) - i)) for i in cuts) / len(values)
