"""A network that gets better on what it has seen and worse on what it has not.

What it sees:
    The last ``rounds`` validation losses, each above ``rise`` times the best, while the training loss went on falling
    since then. Their rise is more than ``noises`` times what the loss changes by from one validation to the next, and
    the best is taken with its neighbours, so that no lucky one counts.

Why it matters:
    From there on each step learns samples by heart. The best weights lie behind.

When it is not a problem:
    A validation loss of few samples is noisy, and so is its best. Where the rise is less than ``lost`` of what
    validation had gained, it is told as ``info``: a network that trains on long after it has understood becomes too
    sure of itself, and its loss rises although it is right as often. Losses at or below zero have no such ratio.

Limits:
    rise: 1.1. Of 85 healthy runs 46 had a validation loss so far above their training loss: that alone says nothing.
    rounds: 3. Our choice.
    noises: 2.0. Our choice.
    lost: 0.1. Our choice.

What to try:
    Stop at the best validation loss (EarlyStopping, ModelCheckpoint(monitor="val_loss")). Then more data, augmentation,
    weight decay or dropout, or a smaller network.

References:
    Prechelt, Early stopping: but when?, 1998.
    Guo et al., On calibration of modern neural networks, 2017, arXiv:1706.04599.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Validation, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for step in range(80):
    ...     sick.add(step, [1.0], loss=2.3 * 0.95**step)
    ...     well.add(step, [1.0], loss=2.3 * 0.95**step)
    >>> for step, worse in zip(range(10, 80, 10), (1.8, 1.4, 1.2, 1.3, 1.5, 1.7, 1.9)):
    ...     sick.add_reading(Validation(step, worse))
    ...     well.add_reading(Validation(step, 1.3))
    >>> RULE(sick)[0].since_step, RULE(sick)[0].severity
    (30, 'warning')
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence, Floats
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._robust import last_of, levels, spread, start_level

NAME = "overfitting"
_FALLS = 0.95  # of what it was at the best validation, or less, is a training loss that went on falling


def check(
    evidence: Evidence, *, rise: float = 1.1, rounds: int = 3, noises: float = 2.0, lost: float = 0.1
) -> Iterator[Finding]:
    """Hold the last validations against the best, and the training loss against what it was then."""
    name = evidence.validations[-1].name if evidence.validations else ""
    found = [v for v in evidence.validations if v.name == name and np.isfinite(v.loss)]
    values = np.array([v.loss for v in found])
    if len(found) <= rounds or values.min() <= 0:
        return
    place, now = int(np.argmin(values)), float(values[-rounds:].min())
    best, around = found[place], float(np.median(values[max(place - 1, 0) : place + 2]))
    is_noise = any(rose <= noises * spread(np.diff(v)) / 2**0.5 for rose, v in _scales(values, now, around))
    if now <= rise * around or is_noise:
        return
    before, after = _training_at(evidence, best.step), last_of(evidence.losses, 20)
    if not len(after) or not np.median(after) < _FALLS * before:
        return
    gained = np.fmax(values[0], start_level(evidence)) - best.loss
    yield Finding(
        rule=NAME,
        severity="warning" if now - best.loss > lost * gained else "info",
        step=max(evidence.steps[-1], found[-1].step),
        since_step=best.step,
        value=now / best.loss,
        limit=rise,
        unit="times the best validation loss",
        saw=(
            f"{name} rose from its best of {best.loss:.3g} at step {best.step} to {now:.3g} or more in each of the "
            f"last {rounds} validations, {now / best.loss:.2f} times as much (limit {rise:g}), while the training loss "
            f"fell from {before:.3g} to {np.median(after):.3g}."
        ),
        try_first=f"Keep the weights of step {best.step} (ModelCheckpoint(monitor='{name}')), and stop there.",
    )


def _scales(values: Floats, now: float, before: float) -> tuple[tuple[float, Floats], ...]:
    """Return a rise and the losses it is among, as they are and as logarithms."""
    return (now - before, values), (float(np.log(now / before)), np.log(values))


def _training_at(evidence: Evidence, step: int) -> float:
    """Return the training loss around a step; NaN if it is not known."""
    steps, smooth = levels(evidence)
    until = smooth[steps <= step][-4:]
    return float(np.median(until)) if until.size else float("nan")


RULE = Rule(name=NAME, check=check)
