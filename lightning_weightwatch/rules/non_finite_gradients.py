"""A gradient that holds NaN or Inf: the next step writes it into the weights.

What it sees:
    The first remembered step with a parameter whose gradient norm is not finite, and the parameters it struck. A norm
    taken without overflow is finite if and only if every element is.

Why it matters:
    One NaN in a gradient makes its weight NaN, then every activation behind it, then all gradients. Nothing recovers
    by itself, and norm clipping spreads it to all parameters at once.

When it is not a problem:
    In float16 training a GradScaler looks for its scale by letting gradients overflow and skips those steps; only
    more than ``skips`` of them in a row are told.

Limits:
    skips: 20. From a scale of 2**24 a healthy run skipped 7. Our choice.

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
from lightning_weightwatch.rules._words import listed

NAME = "non_finite_gradients"


def check(evidence: Evidence, *, skips: int = 20) -> Iterator[Finding]:
    """Look for the first non-finite gradient that counts."""
    struck = np.isposinf(evidence.norms)
    rows = np.asarray(struck.any(axis=1))
    if evidence.scaled_loss:
        rows = _long_runs(rows, skips)
    if not rows.any():
        return
    first = int(np.argmax(rows))
    ill = tuple(p.name for p, hit in zip(evidence.parameters, struck[first], strict=True) if hit)
    step, loss = evidence.steps[first], evidence.losses[first]
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
            f"At step {step} the gradient of {len(ill)} of {len(evidence.parameters)} parameters is not finite: "
            f"{listed(ill)}. {_where_from(ill, loss)}"
        ),
        try_first=(
            "Look at the batch of that step and at logarithms, divisions and the learning rate of the forward pass."
            if np.isinf(loss)
            else "Look for sqrt, norm or division at exactly zero next to that layer; add a small epsilon inside."
        ),
    )


def _where_from(ill: tuple[str, ...], loss: float) -> str:
    if np.isnan(loss):
        return f"The backward pass reached {ill[-1]} first."
    if np.isinf(loss):
        return "The loss of that step is not finite either, so it began in the forward pass."
    return f"The loss of that step is finite ({loss:.3g}), so it began in the backward pass, at or behind {ill[-1]}."


def _long_runs(flags: np.ndarray, longer_than: int) -> np.ndarray:
    """Keep true flags that stand in an unbroken run of more than ``longer_than``."""
    kept = np.zeros_like(flags)
    start = 0
    for end in range(len(flags) + 1):
        if end < len(flags) and flags[end]:
            continue
        if end - start > longer_than:
            kept[start:end] = True
        start = end + 1
    return kept


RULE = Rule(name=NAME, check=check)
