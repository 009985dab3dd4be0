"""A learning rate so low that the training would take forever.

What it sees:
    At the last ``snapshots`` snapshots in a row the update over the weight (median over the matrices that have a
    gradient) was below ``ratio``, though gradients flow; and even if every step led straight downhill, the next 1,000
    could not lower the loss by more than ``reach``: that is gradient norm times update norm, summed over the
    parameters. A rate that rises is taken to rise on for these 1,000 steps. Or the rate was exactly 0 in each of the
    last ``zeros`` steps.

Why it matters:
    Nothing is broken, so nothing is reported: the loss moves in its fourth digit, and the run ends where it began.

When it is not a problem:
    A warm-up that gets anywhere, and a rate that has fallen (the end of a schedule), are not told, nor is a run whose
    loss has fallen already or began low, as it does in fine-tuning. Where hardly any gradient arrives (``flow``), a
    higher rate would not help. Losses that need not fall (rewards, opponents) are not judged, nor unknown ones.

Limits:
    ratio: 1e-4. Healthy runs were at 9e-4 and more in nine of ten cases, fine-tuning at 2e-5 to 4e-4.
    reach: 0.05 of the loss in 1,000 steps. Healthy runs had 3.6 or more in nine of ten cases, fine-tuning 0.1 or more,
        and of the runs that got nowhere for their rate three of four stayed below 0.05.
    flow: 1e-4, gradient over weight. Networks whose gradients vanish were at 1e-5 and below.
    snapshots: 3, the first three of which are taken in the first 20 steps. Our choice.
    zeros: 50. A warm-up begins at 0 for a step, or for a short epoch. Our choice.

What to try:
    Multiply the learning rate by 10, and again while that helps; or find a good one with Lightning's
    ``Tuner(trainer).lr_find(model)``.

References:
    Bengio, Practical recommendations for gradient-based training of deep architectures, 2012, arXiv:1206.5533.
    Smith, Cyclical learning rates for training neural networks, 2017, arXiv:1506.01186.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import Evidence, Snapshot, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for evidence, update in ((sick, 1e-7), (well, 1e-3)):
    ...     numbers = {"grad_norm": 0.5, "weight_norm": 2.0, "update_norm": update, "update_ratio": update / 2}
    ...     for step in range(30):
    ...         evidence.add(step, [0.5], loss=2.3, learning_rate=0.1)
    ...         if step % 10 == 0:
    ...             columns = {name: np.array([number]) for name, number in numbers.items()}
    ...             evidence.add_snapshot(Snapshot(step, ("fc.weight",), columns))
    >>> RULE(sick)[0].value
    5e-08
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch.evidence import Evidence, Floats
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._pace import middle, rates, table
from lightning_weightwatch.rules._robust import must_fall
from lightning_weightwatch.rules._runs import run_up

NAME = "learning_rate_too_low"
_FAR = 1000  # steps ahead
_FALLEN = 0.5  # of the highest rate
_LEVEL = 5  # losses that make a level


def check(
    evidence: Evidence,
    *,
    ratio: float = 1e-4,
    reach: float = 0.05,
    flow: float = 1e-4,
    snapshots: int = 3,
    zeros: int = 50,
) -> Iterator[Finding]:
    """Look whether the loss speaks against it, then at the rate and at the last snapshots."""
    if learns(evidence) or not must_fall(evidence) or np.isnan(evidence.loss_ratio()):
        return
    none = run_up(evidence.learning_rates == 0)
    if len(evidence) - none >= zeros:
        count, since = len(evidence) - none, evidence.steps[none]
        words = f"The learning rate was 0 in each of the last {count} steps (limit {zeros}), since step {since}."
        yield _finding(evidence, since, (float(count), float(zeros), "steps in a row at a rate of 0"), words)
        return
    typical, share, flows = _pace(evidence)
    slow = (typical < ratio) & (share < reach) & (flows > flow) & ~_had_no_rate(evidence)
    begin = run_up(slow)
    steps = [snapshot.step for snapshot in evidence.snapshots[begin:]]
    if len(steps) < snapshots or _has_fallen(evidence, steps[-1]):
        return
    growth = _growth(evidence, steps)
    value, most = float(np.median(typical[begin:])), float(share[-1]) * growth
    if most < reach:
        words = (
            f"A step changes the typical matrix by {value:.1e} of it (limit {ratio:.0e}), at {len(steps)} snapshots "
            f"since step {steps[0]}: the next {_FAR:,} steps can lower the loss by {most:.2%} at most."
        )
        yield _finding(evidence, steps[0], (value, ratio, "update over weight"), words)


def _finding(evidence: Evidence, since: int, measure: tuple[float, float, str], words: str) -> Finding:
    value, limit, unit = measure
    return Finding(
        rule=NAME,
        severity="warning",
        step=evidence.steps[-1],
        since_step=since,
        value=value,
        limit=limit,
        unit=unit,
        saw=words,
        try_first="Multiply the learning rate by 10, and look at its schedule.",
    )


def _pace(evidence: Evidence) -> tuple[Floats, Floats, Floats]:
    """Return, for each snapshot, update over weight, the share of the loss within reach, and gradient over weight."""
    updates, gradients, weights = (
        table(evidence, evidence.snapshots, name) for name in ("update_norm", "grad_norm", "weight_norm")
    )
    usable = np.isfinite(gradients) & (gradients > 0) & np.isfinite(updates) & (weights > 0)
    downhill = np.where(usable, updates, 0.0) * np.where(usable, gradients, 0.0)
    known = evidence.losses[np.isfinite(evidence.losses)]
    loss = float(np.median(known[-_LEVEL:])) if len(known) else float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios, flows = (
            np.where(usable, part / weights, np.nan)[:, evidence.matrices] for part in (updates, gradients)
        )
        return middle(ratios), _FAR * downhill.sum(axis=1) / loss, middle(flows)


def _has_fallen(evidence: Evidence, step: int) -> bool:
    """Whether the rate is far below the highest one remembered; not, where nobody knows it."""
    return rates(evidence).get(step, np.nan) < _FALLEN * float(np.nanmax(evidence.learning_rates, initial=0.0))


def _had_no_rate(evidence: Evidence) -> NDArray[np.bool_]:
    known = rates(evidence)
    return np.array([known.get(snapshot.step) == 0 for snapshot in evidence.snapshots], dtype=bool)


def _growth(evidence: Evidence, steps: list[int]) -> float:
    """Return the mean rate of the steps ahead over that of the last one, if it rises on as it did; 1 if it does not."""
    known = rates(evidence)
    first, last = known.get(steps[0], np.nan), known.get(steps[-1], np.nan)
    slope = (last - first) / max(steps[-1] - steps[0], 1)
    return 1 + _FAR / 2 * slope / last if slope > 0 else 1.0


RULE = Rule(name=NAME, check=check)
