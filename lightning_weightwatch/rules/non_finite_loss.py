"""A loss that is NaN or Inf: the forward pass broke, whatever the gradients say.

What it sees:
    The first remembered step whose loss is not finite, on any process; its batch, and the processes whose own loss
    broke, if not all did.

Why it matters:
    Its gradients are broken too, and the next step writes NaN into every weight. A loss that is cut off by
    ``torch.where``, a clamp or ``detach`` can be NaN while its gradients are finite, and the training then goes on
    without learning what it seems to.

When it is not a problem:
    Where gradients broke in an earlier step, the loss followed them: ``non_finite_gradients`` tells that, and this is
    silent. A loss may be Inf by design where a sample is impossible (a log-likelihood outside its support). Steps
    whose loss is unknown are left out.

Limits:
    steps: 1. So many broken losses among the remembered ones are told; raise it where single ones are by design.

What to try:
    Look at the batch of that step: NaN among inputs or targets, a target outside the classes, an empty mask whose mean
    is 0 / 0. Then at logarithms, divisions and square roots, and at the learning rate if the loss grew before.

References:
    Goodfellow et al., Deep Learning, 2016, chapter 4: Numerical Computation.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> sick.add(0, [1.0], loss=0.7)
    >>> sick.add(1, [1.0], loss=float("nan"))
    >>> well.add(0, [1.0], loss=1e30)
    >>> RULE(sick)[0].since_step
    1
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._origin import broken_processes, on_processes, only, with_batch

NAME = "non_finite_loss"


def check(evidence: Evidence, *, steps: int = 1) -> Iterator[Finding]:
    """Look for the first loss that is not finite."""
    broken = np.isposinf(evidence.losses)
    if broken.sum() < max(steps, 1):
        return
    first = int(np.argmax(broken))
    if np.isposinf(evidence.norms[:first]).any() and not evidence.scaled_loss:
        return  # what a GradScaler skips reaches no weight
    since, count = evidence.steps[first], int(broken.sum())
    ranks = broken_processes(evidence, since)
    yield Finding(
        rule=NAME,
        severity="critical",
        step=evidence.steps[-1],
        since_step=since,
        value=float(count),
        limit=float(steps),
        unit="steps with a non-finite loss",
        saw=(
            f"The loss of {with_batch(evidence, first)} is not finite; {count} of the last {len(broken)} steps have "
            f"such a loss (limit {steps}).{on_processes(ranks)}"
        ),
        try_first="Look at the batch of that step, then at logarithms and divisions of the loss.",
        rank=only(ranks),
    )


RULE = Rule(name=NAME, check=check)
