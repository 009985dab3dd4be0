"""A loss that swings up and down and gets nowhere.

What it sees:
    In more than ``swings`` of the last ``steps`` steps the loss changes by more than its median, from one step to the
    next or within 2, 4, 8 or 16 steps, upwards as well as downwards, and in the second half of them it is on average
    no lower than eight tenths of the first. And steps are large: a typical one changes a weight matrix by more than
    ``ratio`` of it.

Why it matters:
    Steps leap over the valley they are meant to go down. A smaller step would arrive where these pass by.

When it is not a problem:
    Small batches swing as far by chance, and the nearer a loss is to zero the more; their steps are small. So it is
    told as ``info`` where the size of the steps is not known or is between half of ``ratio`` and that, or where the
    learning rate is still rising; with smaller steps it is silent. Silent too while the loss is below a hundredth of
    the first one, and where it need not fall (networks that play against each other, policy gradients, losses at or
    below zero). A run at the edge of stability goes up now and then, and down all the same.

Limits:
    swings: 0.25. Two runs that oscillated by design reached 0.51 and 0.61.
    steps: 100. Our choice.
    ratio: 0.05. Of healthy matrices 95 in 100 moved by less than 0.023, as their median over the run.

What to try:
    A smaller learning rate, or one that decays; less momentum; a larger batch.

References:
    Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability, 2021, arXiv:2103.00065.
    Zhang et al., AUTOTRAINER: An automatic DNN training problem detection and repair system, 2021.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import Evidence, Snapshot, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for step in range(120):
    ...     for evidence, loss in ((sick, 3.0 if step % 2 else 0.5), (well, 3.0 * 0.98**step)):
    ...         evidence.add(step, [1.0], loss=loss)
    ...         if step % 50 == 0:
    ...             evidence.add_snapshot(Snapshot(step, ("fc.weight",), {"update_ratio": np.array([0.2])}))
    >>> RULE(sick)[0].severity, RULE(sick)[0].since_step
    ('warning', 0)
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence, Floats
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._robust import matrix_updates, must_fall, rate_rises

NAME = "oscillating_loss"
_LAGS = (1, 2, 4, 8, 16)  # steps between the two ends of a swing: momentum swings slowly
_LOWER = 0.8  # of the first half, on average, is a second half that got lower
_SHORT = 20  # steps whose share of swings says whether it swings there


def check(evidence: Evidence, *, swings: float = 0.25, steps: int = 100, ratio: float = 0.05) -> Iterator[Finding]:
    """Count the swings, and look whether the loss gets lower and how large the steps are."""
    known = np.isfinite(evidence.losses)
    losses, where = evidence.losses[known], np.array(evidence.steps)[known]
    if len(losses) < steps or not must_fall(evidence):
        return
    last, (early, late) = losses[-steps:], np.array_split(losses[-steps:], 2)
    typical = float(np.median(last))
    share, lag = max(((_share(last, lag, typical), lag) for lag in _LAGS), key=lambda found: found[0])
    if share <= swings or late.mean() < _LOWER * early.mean() or typical < 0.01 * evidence.first_losses[0]:
        return
    updates = matrix_updates(evidence)
    pace = float(np.median(updates)) if updates.size else float("nan")
    if not pace < ratio / 2:
        severity: Severity = "warning" if pace > ratio and not rate_rises(evidence) else "info"
        since = int(where[_begin(losses, lag, typical, swings)])
        yield _finding(evidence, severity, since, (share, swings), (lag, steps, typical), (pace, ratio))


def _share(losses: Floats, lag: int, typical: float) -> float:
    """Return the share of steps with a swing, if they go upwards as well as downwards, else 0."""
    changes = losses[lag:] - losses[:-lag]
    up, down = (float((sign * changes > typical).mean()) for sign in (1, -1))
    return up + down if min(up, down) > 0.25 * (up + down) else 0.0


def _begin(losses: Floats, lag: int, typical: float, swings: float) -> int:
    """Return where the stretch of swings begins that lasts until now."""
    swung = np.abs(losses[lag:] - losses[:-lag]) > typical
    calm = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(swung, _SHORT).mean(axis=1) <= swings)
    return int(calm[-1]) + 1 if calm.size and calm[-1] + 1 <= len(swung) - _SHORT else 0


def _finding(
    evidence: Evidence,
    severity: Severity,
    since: int,
    measure: tuple[float, float],
    swing: tuple[int, int, float],
    paces: tuple[float, float],
) -> Finding:
    (share, swings), (lag, steps, typical), (pace, ratio) = measure, swing, paces
    apart = "from one step to the next" if lag == 1 else f"within {lag} steps"
    size = "is not known" if np.isnan(pace) else f"is {pace:.2g}"
    return Finding(
        rule=NAME,
        severity=severity,
        step=evidence.steps[-1],
        since_step=since,
        value=share,
        limit=swings,
        unit="share of steps with a swing",
        saw=(
            f"In {share:.0%} of the last {steps} steps (limit {swings:.0%}) the loss changed by more than its median "
            f"of {typical:.3g} {apart}, since step {since}, and did not get lower; a typical update over weight {size} "
            f"(limit {ratio:g})."
        ),
        try_first="Divide the learning rate by 10.",
    )


RULE = Rule(name=NAME, check=check)
