"""Dropout that takes away so much that hardly anything is left to learn from.

What it sees:
    The probability of every dropout module that trains, and of every call of ``torch.nn.functional.dropout`` in the
    forward passes that were listened to.

Why it matters:
    What is kept is multiplied by 1 / (1 - p), so the variance that dropout adds is p / (1 - p) times the mean square of
    what passes: 1 times at 0.5, 4 times at 0.8, 19 times at 0.95. At 1 nothing passes, forwards or backwards. A
    probability to *keep* handed over as one to drop is the usual reason.

When it is not a problem:
    Up to a half in wide layers, and somewhat more on inputs with many redundant features. Stochastic depth, masked
    pictures and random words left out are no dropout and are not looked at.

Limits:
    many: 0.8. Four fifths of what passes is noise from there on. Our choice.
    nearly_all: 0.95, told as critical: of twenty units one is left. Our choice.

What to try:
    0.1 to 0.5, and 0 until the network learns its training data; ``p`` is the share that is dropped.

References:
    Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, 2014.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Setup, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> sick.add(0, [1.0], loss=2.3)
    >>> well.add(0, [1.0], loss=2.3)
    >>> sick.setup, well.setup = Setup(dropout={"drop": 0.9}), Setup(dropout={"drop": 0.1})
    >>> RULE(sick)[0].severity
    'warning'
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._words import listed

NAME = "dropout_range"
_IN_A_CALL = "a call of F.dropout"


def check(evidence: Evidence, *, many: float = 0.8, nearly_all: float = 0.95) -> Iterator[Finding]:
    """Look at the modules, then at calls that no module explains."""
    modules = {name or "the module": p for name, p in evidence.setup.dropout.items() if p >= many}
    called = {p for heard in evidence.listened for p in heard.dropout if p >= many}
    elsewhere = called - set(evidence.setup.dropout.values())
    if not modules and not elsewhere:
        return
    largest = max([*modules.values(), *elsewhere])
    limit = nearly_all if largest >= nearly_all else many
    places = [*modules, *([_IN_A_CALL] if elsewhere else [])]
    yield Finding(
        rule=NAME,
        severity="critical" if largest >= nearly_all else "warning",
        step=evidence.steps[-1] if len(evidence) else 0,
        since_step=0,
        value=float(largest),
        limit=limit,
        unit="probability to drop",
        saw=f"Dropout takes away up to {largest:.0%} (limit {limit:.0%}), from the start, in {listed(places)}.",
        try_first="Lower p to at most 0.5; it is the share that is dropped, not the share that is kept.",
    )


RULE = Rule(name=NAME, check=check)
