"""A loss that stays where it is, with a reason to be seen.

What it sees:
    Two things together. The loss does not get anywhere: its progress is below ``progress`` (the median of the first
    quarter of the run minus that of the last, in robust standard deviations of the last), or it has been that of a
    network which knows nothing of its input for ``long`` steps. And there is a sign that does not come from the loss:
    most weight matrices with a gradient of exactly 0, a typical step of less than ``least`` or of more than ``most`` of
    the weights, most units dead; or a typical matrix has walked ``path`` times its norm, all in vain.

Why it matters:
    Nothing will come of it, however long it trains.

When it is not a problem:
    Noise can hide slow learning, so a loss that does not fall is never enough. A network that was trained before and is
    well below the loss of chance is left out, and so is a run whose learning rate is still rising. Networks that play
    against each other and losses at or below zero are left out.

Limits:
    progress: 0.5. 4 of 85 healthy runs were below 0.6, among them a policy gradient and two opponents.
    steps: 100. Fewer have no quarters to speak of. Our choice.
    least: 1e-6. A typical matrix of healthy runs moved by 7e-4 to 5e-3 of it.
    most: 0.1. Of healthy matrices 95 in 100 moved by less than 0.023, as their median over the run.
    dead: 0.5 of the units of a typical layer. Healthy layers lost up to 0.25.
    long: 100, if each sample was seen twice; ten times as many otherwise: hard tasks stay at the level of chance for a
        while before they are understood. Our choice.
    path: 0.4, step for step. Healthy slow runs had walked a tenth when they were clearly below chance.

What to try:
    Let the network learn ten samples by heart. If it cannot, look at its gradients and learning rate; if it can, at
    the data.

References:
    Zhang et al., AUTOTRAINER: An automatic DNN training problem detection and repair system, 2021.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for step in range(100):
    ...     sick.add(step, [0.0], loss=2.3)
    ...     well.add(step, [1.0], loss=2.3)
    >>> RULE(sick)[0].since_step
    0
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._robust import (
    at_chance,
    knows,
    last_of,
    matrix_updates,
    rate_rises,
    since_when,
    stays_positive,
    walked,
)
from lightning_weightwatch.rules._robust import progress as progress_of

NAME = "no_learning"
_RECENT = 20  # steps that are the present


def check(
    evidence: Evidence,
    *,
    progress: float = 0.5,
    steps: int = 100,
    least: float = 1e-6,
    most: float = 0.1,
    dead: float = 0.5,
    long: int = 100,
    path: float = 0.4,
) -> Iterator[Finding]:
    """Ask whether the loss got anywhere, and then for a sign that it will not."""
    losses, seen = last_of(evidence.losses, 2 * _RECENT), len(evidence.curve) * evidence.curve.stride
    if len(losses) < 2 * _RECENT or seen < steps or not stays_positive(evidence):
        return
    now = float(np.median(losses))
    if rate_rises(evidence) or knows(evidence, now):
        return
    got, since = progress_of(evidence), since_when(evidence)
    if evidence.steps[-1] - since < steps // 2:
        return
    chance = at_chance(evidence, long)
    sign = _zeros(evidence) or _pace(evidence, least, most) or _dead(evidence, dead)
    sign = sign if got < progress or chance is not None else ""
    if not sign and (chance is None or walked(evidence, 0.5) < path):
        return
    sign = sign or f"a network that knows nothing of its input has {chance:.3g}, though most weight matrices move"
    yield Finding(
        rule=NAME,
        severity="warning",
        step=evidence.steps[-1],
        since_step=since,
        value=max(got, -1e300),
        limit=progress,
        unit="robust standard deviations that the loss fell",
        saw=(
            f"Since step {since} the loss stays at {now:.3g}; over the run it fell by {got:.2g} of its robust standard "
            f"deviations (limit {progress:g}), and {sign}."
        ),
        try_first="Let the network learn ten samples by heart: if it cannot, look at gradients and learning rate.",
    )


def _zeros(evidence: Evidence) -> str:
    norms = evidence.norms[-_RECENT:, evidence.matrices]
    known = ~np.isnan(norms)
    measured = known.sum(axis=0) > 0.25 * len(norms)
    blocked = (((norms == 0) & known).sum(axis=0) > 0.9 * known.sum(axis=0)) & measured
    if not measured.any() or blocked.sum() <= 0.5 * measured.sum():
        return ""
    return f"{blocked.sum()} of {measured.sum()} weight matrices have a gradient of exactly 0"


def _pace(evidence: Evidence, least: float, most: float) -> str:
    ratios = matrix_updates(evidence)
    typical = float(np.median(ratios)) if ratios.size else float("nan")
    if typical < least:
        return f"a typical step changes the weights by {typical:.1e} of them (limit {least:g})"
    return f"a typical step changes the weights by {typical:.1e} of them (limit {most:g})" if typical > most else ""


def _dead(evidence: Evidence, limit: float) -> str:
    shares = evidence.dead[-1].share if evidence.dead and evidence.dead[-1].steps >= _RECENT else np.empty(0)
    typical = float(np.median(shares[~np.isnan(shares)])) if (~np.isnan(shares)).any() else 0.0
    return f"{typical:.0%} of the units of a typical layer are dead" if typical > limit else ""


RULE = Rule(name=NAME, check=check)
