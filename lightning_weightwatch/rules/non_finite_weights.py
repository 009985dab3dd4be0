"""Weights that hold NaN or Inf before the first step is taken.

What it sees:
    Parameters with at least one element that is NaN or Inf, counted element by element, and how many there are.

Why it matters:
    Whatever passes through such a weight is not finite either: the first loss is NaN, and the first step writes NaN
    into every other weight. Nothing that is done in training brings them back.

When it is not a problem:
    A frozen tensor that belongs to no layer of torch's may be an attention mask of -Inf; it is told as ``warning``.

Limits:
    elements: 0. One is enough.

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
from typing import Protocol

from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._words import listed

NAME = "non_finite_weights"


class Judged(Protocol):
    """What is asked of a ``ParameterVerdict``."""

    @property
    def name(self) -> str:
        """The parameter."""

    @property
    def kind(self) -> str:
        """What it is for."""

    @property
    def trainable(self) -> bool:
        """Whether it asks for a gradient."""

    @property
    def nonfinite(self) -> int:
        """How many of its elements are NaN or Inf."""


def check(verdicts: Sequence[Judged], *, elements: float = 0) -> Iterator[Finding]:
    """Look for NaN and Inf; what may be a mask is told apart."""
    ill = [v for v in verdicts if v.nonfinite > elements]
    masks = [v for v in ill if v.kind == "other" and not v.trainable]
    weights = [v for v in ill if v not in masks]
    if weights:
        yield _finding(weights, len(verdicts), elements, "critical", "Initialise them, or load an earlier checkpoint.")
    if masks:
        yield _finding(masks, len(verdicts), elements, "warning", "Make a mask of -Inf a buffer, not a parameter.")


def _finding(ill: Sequence[Judged], of: int, limit: float, severity: Severity, try_first: str) -> Finding:
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


RULE = Rule(name=NAME, check=check, subject="initialisation")
