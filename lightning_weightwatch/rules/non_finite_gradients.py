"""A gradient that holds NaN or Inf: the next step writes it into the weights.

What it sees:
    The first remembered step with a parameter whose gradient norm is not finite, and the parameters it struck; its
    batch, and the processes whose own loss broke, if not all did. A norm taken without overflow is finite if and only
    if every element is.

Why it matters:
    One NaN in a gradient makes its weight NaN, then every activation behind it, then all gradients. Nothing recovers
    by itself, and norm clipping spreads it to all parameters at once.

When it is not a problem:
    In float16 training a GradScaler looks for its scale by letting gradients overflow and skips those steps, so
    nothing is told here: one that never finds its scale is ``overflow_skips``, and a broken loss ``non_finite_loss``.

Limits:
    steps: 1. One such step is enough; raise it where single ones are caught by design, as by a custom optimizer.

What to try:
    If the loss is finite, a backward formula broke: the square root or the norm of zero, 0 * Inf, atan2 at the origin.
    If it is not, the forward pass did: look at the batch, at logarithms and divisions, at the learning rate.

References:
    Micikevicius et al., Mixed precision training, 2018, arXiv:1710.03740.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> layers = [Watched("fc1.weight", 4, True), Watched("fc2.weight", 4, True)]
    >>> sick, well = Evidence(layers), Evidence(layers)
    >>> sick.add(0, [1.0, 1.0], loss=0.7)
    >>> sick.add(1, [float("nan"), 1.0], loss=0.7)
    >>> well.add(0, [0.0, 1e30], loss=0.7)
    >>> RULE(sick)[0].parameters, RULE(sick)[0].since_step
    (('fc1.weight',), 1)
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._origin import broken_processes, on_processes, only, with_batch
from lightning_weightwatch.rules._words import listed

NAME = "non_finite_gradients"


def check(evidence: Evidence, *, steps: int = 1) -> Iterator[Finding]:
    """Look for the first non-finite gradient."""
    struck = np.isposinf(evidence.norms)
    rows = np.asarray(struck.any(axis=1))
    if evidence.scaled_loss or rows.sum() < max(steps, 1):
        return
    first = int(np.argmax(rows))
    ill = tuple(p.name for p, hit in zip(evidence.parameters, struck[first], strict=True) if hit)
    step, loss = evidence.steps[first], evidence.losses[first]
    ranks = () if np.isfinite(loss) else broken_processes(evidence, step)
    yield Finding(
        rule=NAME,
        severity="critical",
        step=evidence.steps[-1],
        since_step=step,
        parameters=ill,
        value=float(len(ill)),
        limit=0.0,
        unit="parameters with a non-finite gradient",
        saw=(
            f"At {with_batch(evidence, first)} the gradient of {len(ill)} of {len(evidence.parameters)} parameters is "
            f"not finite: {listed(ill)}. {_where_from(ill, loss)}{on_processes(ranks)}"
        ),
        try_first=(
            "Look at the batch of that step and at logarithms, divisions and the learning rate of the forward pass."
            if np.isinf(loss)
            else "Look for sqrt, norm or division at exactly zero next to that layer; add a small epsilon inside."
        ),
        rank=only(ranks),
    )


def _where_from(ill: tuple[str, ...], loss: float) -> str:
    if np.isnan(loss):
        return f"The backward pass reached {ill[-1]} first."
    if np.isinf(loss):
        return "The loss of that step is not finite either, so it began in the forward pass."
    return f"The loss of that step is finite ({loss:.3g}), so it began in the backward pass, at or behind {ill[-1]}."


RULE = Rule(name=NAME, check=check)
