"""Gradients that nobody clears: each step follows the sum of all batches so far.

What it sees:
    At least ``steps`` steps in a row before which the gradients of the last step were still there as the first
    backward pass began.

Why it matters:
    ``backward`` adds to what is there. Without ``zero_grad`` the gradient becomes the sum over all batches since the
    start: it grows, it points where old weights wanted to go, and the training oscillates or diverges as if its
    learning rate were too high.

When it is not a problem:
    Accumulating gradients over a few batches for one step is not this: there they are cleared after the step. Where no
    backward pass was announced, nobody can tell, and nothing is told.

Limits:
    steps: 10. One step can be left out on purpose; so many in a row cannot. Our choice.

What to try:
    Call ``optimizer.zero_grad()`` before each ``self.manual_backward(loss)`` that begins a new step; where
    ``optimizer_zero_grad`` is overridden, let it clear them.

References:
    Paszke et al., PyTorch: an imperative style, high-performance deep learning library, 2019, arXiv:1912.01703.
    Jiang et al., Training with confidence: catching silent errors in deep learning training with automated proactive
    checks, 2025, arXiv:2506.14813.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for step in range(20):
    ...     sick.add(step, [1.0], stale=1.0 if step else None)
    ...     well.add(step, [1.0], stale=0.0 if step else None)
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
from lightning_weightwatch.rules._pace import named
from lightning_weightwatch.rules._runs import first_run
from lightning_weightwatch.rules._words import listed

NAME = "stale_gradients"


def check(evidence: Evidence, *, steps: int = 10) -> Iterator[Finding]:
    """Look for the first such run, steps of which nobody can tell left out."""
    known = np.flatnonzero(~np.isnan(evidence.stale))
    run = first_run(evidence.stale[known] == 1, max(steps, 1))
    rows = known[run] if run is not None else known[:0]
    ill = named(evidence, (~np.isnan(evidence.norms[rows])).any(axis=0))
    if not ill or not rows.size:
        return
    in_a_row, since = len(rows), evidence.steps[rows[0]]
    yield Finding(
        rule=NAME,
        severity="warning",
        step=evidence.steps[-1],
        since_step=since,
        parameters=ill,
        value=float(in_a_row),
        limit=float(steps),
        unit="steps in a row whose gradients were not cleared before",
        saw=(
            f"In {in_a_row} steps in a row (limit {steps}), since step {since}, backward passes added to the gradients "
            f"of the step before, which nobody had cleared: {listed(ill)}."
        ),
        try_first="Call optimizer.zero_grad() before the first backward pass of each step.",
    )


RULE = Rule(name=NAME, check=check)
