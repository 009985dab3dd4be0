"""A GradScaler that skips step after step and never finds a scale: nothing is learnt any more.

What it sees:
    Under a GradScaler, more than ``skips`` steps in a row with a gradient that is not finite.

Why it matters:
    The scaler skips each such step and halves its scale. After twenty halvings the scale is a millionth of what it
    was: what is still not finite then is broken whatever the scale, and as no step is taken, it stays so. No error is
    raised and the progress bar goes on.

When it is not a problem:
    A GradScaler begins with a scale that is too large, and tries a larger one now and then: a few skips in a row are
    how it works. Without a GradScaler the step is taken, and ``non_finite_gradients`` tells it.

Limits:
    skips: 20. From a scale of 2**24 a healthy run skipped 7. Our choice.

What to try:
    Train a few steps in 32 bits. If gradients are broken there too, look for the formula that breaks them; if not, a
    number exceeds 65504, the largest of float16: bfloat16 reaches as far as float32 and needs no scaler.

References:
    Micikevicius et al., Mixed precision training, 2018, arXiv:1710.03740.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> layers = [Watched("fc.weight", 4, True)]
    >>> sick, well = Evidence(layers, scaled_loss=True), Evidence(layers, scaled_loss=True)
    >>> for step in range(30):
    ...     sick.add(step, [float("inf")])
    ...     well.add(step, [float("inf") if step < 7 else 1.0])
    >>> RULE(sick)[0].value
    30.0
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

NAME = "overflow_skips"


def check(evidence: Evidence, *, skips: int = 20) -> Iterator[Finding]:
    """Look for the first unbroken run of so many skipped steps."""
    struck = np.isposinf(evidence.norms)
    run = first_run(np.asarray(struck.any(axis=1)), skips + 1) if evidence.scaled_loss else None
    if run is None:
        return
    in_all = struck[run].all(axis=0)
    ill = named(evidence, in_all if in_all.any() else struck[run][0])
    steps = evidence.steps[run]
    yield Finding(
        rule=NAME,
        severity="critical",
        step=evidence.steps[-1],
        since_step=steps[0],
        parameters=ill,
        value=float(len(steps)),
        limit=float(skips),
        unit="steps in a row that were skipped",
        saw=(
            f"In {len(steps)} steps in a row (limit {skips}), {steps[0]} to {steps[-1]}, gradients were not finite and "
            f"the GradScaler skipped the step: {listed(ill)}."
        ),
        try_first="Train a few steps in 32 bits (precision='32-true') to see which number breaks.",
    )


RULE = Rule(name=NAME, check=check)
