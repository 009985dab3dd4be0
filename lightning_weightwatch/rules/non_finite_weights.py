"""Weights that hold NaN or Inf while gradients were still sound: before the first step, or by one that broke them.

What it sees:
    Before the training, parameters with at least one element that is NaN or Inf, and how many elements there are. In
    training, the first snapshot at which the norm of a weight, or that of what the step did to it, is not finite,
    though no gradient of the steps before was broken, nor that of the step: then the weights came first. A gradient
    that broke before them is told as ``non_finite_gradients``.

Why it matters:
    Whatever passes through such a weight is not finite either: the first loss is NaN, and the first step writes NaN
    into every other weight. Nothing that is done in training brings them back.

When it is not a problem:
    A frozen tensor that belongs to no layer of torch's may be an attention mask of -Inf; it is told as ``warning``
    before the training, and left out in it. A GradScaler skips steps with broken gradients, so these break no weight.

Limits:
    elements: 0. One is enough. In training they are not counted, and 1 or more silences the rule there.

What to try:
    Memory that was never written (``torch.empty``, ``to_empty`` after the meta device) needs its ``reset_parameters``;
    a checkpoint that holds NaN was saved too late; a division by a fan or a norm of zero gives Inf.

References:
    Goodfellow et al., Deep Learning, 2016, chapter 4: Numerical Computation.

Example:
    >>> from types import SimpleNamespace
    >>> well = SimpleNamespace(name="fc.weight", kind="linear", trainable=True, nonfinite=0)
    >>> sick = SimpleNamespace(name="fc.weight", kind="linear", trainable=True, nonfinite=3)
    >>> RULE([well])
    ()
    >>> [(finding.severity, finding.parameters, finding.value) for finding in RULE([sick])]
    [('critical', ('fc.weight',), 3.0)]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightning_weightwatch.evidence import Evidence, Initial, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._pace import named, table
from lightning_weightwatch.rules._words import listed

NAME = "non_finite_weights"


def check(subject: Evidence | Initial | Sequence[Verdict], *, elements: float = 0) -> Iterator[Finding]:
    """Look for NaN and Inf: in the verdicts of an audit, or in the snapshots of a training."""
    if isinstance(subject, Evidence):
        yield from _in_training(subject, elements)
        return
    ill = [v for v in subject if v.nonfinite > elements]
    masks = [v for v in ill if v.kind == "other" and not v.trainable]
    weights = [v for v in ill if v not in masks]
    if weights:
        yield _finding(weights, len(subject), elements, "critical", "Initialise them, or load an earlier checkpoint.")
    if masks:
        yield _finding(masks, len(subject), elements, "warning", "Make a mask of -Inf a buffer, not a parameter.")


def _in_training(evidence: Evidence, elements: float) -> Iterator[Finding]:
    """Look for the first remembered snapshot with broken weights; a norm does not tell how many elements are."""
    snapshots = [s for s in evidence.snapshots if len(evidence) and s.step >= evidence.steps[0]]
    has_gradient = ~np.isnan(evidence.norms).all(axis=0)
    may_be_mask = np.array([p.kind == "other" for p in evidence.parameters], dtype=bool) & ~has_gradient
    weights, updates, gradients = (
        np.isinf(table(evidence, snapshots, name)) for name in ("weight_norm", "update_norm", "grad_norm")
    )
    sound = ~gradients.any(axis=1, keepdims=True)
    broken = (weights | (updates & sound)) & ~may_be_mask
    if not broken.any() or elements >= 1:
        return
    row = int(np.argmax(broken.any(axis=1)))
    step = snapshots[row].step
    before = np.array(evidence.steps) < step
    is_next = not before.any() or evidence.steps[int(before.sum()) - 1] == step - 1  # else nobody saw the step before
    if not is_next or (np.isposinf(evidence.norms[before]).any() and not evidence.scaled_loss):
        return
    names = named(evidence, broken[row])
    yield Finding(
        rule=NAME,
        severity="critical",
        step=evidence.steps[-1],
        since_step=step,
        parameters=names,
        value=float(len(names)),
        limit=0.0,
        unit="parameters that hold NaN or Inf",
        saw=(
            f"{'At' if weights[row].any() else 'After'} step {step} the weights of {len(names)} of "
            f"{len(evidence.parameters)} parameters hold NaN or Inf (limit 0), before any gradient: {listed(names)}."
        ),
        try_first="Load sound weights, and look at what writes them: a checkpoint, the optimizer, code after its step.",
    )


def _finding(ill: Sequence[Verdict], of: int, limit: float, severity: Severity, try_first: str) -> Finding:
    names = tuple(v.name for v in ill)
    count = sum(v.nonfinite for v in ill)
    return Finding(
        rule=NAME,
        severity=severity,
        step=0,
        since_step=0,
        parameters=names,
        value=float(count),
        limit=float(limit),
        unit="elements that are NaN or Inf",
        saw=(
            f"{count} element{'s' if count > 1 else ''} of {len(names)} of {of} parameters "
            f"{'are' if count > 1 else 'is'} NaN or Inf (limit {limit:g}) at the start: {listed(names)}."
        ),
        try_first=try_first,
    )


RULE = Rule(name=NAME, check=check, subject="both")
