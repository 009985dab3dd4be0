"""Weights that shrink to nothing.

What it sees:
    More than half of the weight matrices have a norm below ``left`` of that at the first snapshot, while the loss does
    not fall.

Why it matters:
    A signal that passes through weights near zero comes out as nothing, and so does its gradient. The network gives the
    same answer whatever it is asked. Most often weight decay pulls harder than the gradient.

When it is not a problem:
    Nothing is told while the loss falls: weights before a normalisation have no scale of their own, and may shrink or
    grow as they like. Matrices that began at zero are left out. Networks that play against each other may clamp their
    weights, and their losses tell nothing: there it is ``info``.

Limits:
    left: 0.1 of the first norm. No healthy run lost so much without its loss falling.
    gone: 0.01. Below that it is told as ``critical``, if the loss is known not to fall. Our choice.

What to try:
    Divide ``weight_decay`` by 10, and mind that SGD and Adam multiply it with the learning rate.

References:
    Krogh and Hertz, A simple weight decay can improve generalization, 1991.
    Loshchilov and Hutter, Decoupled weight decay regularization, 2019, arXiv:1711.05101.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import Evidence, Snapshot, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for evidence, end in ((sick, 0.001), (well, 1.5)):
    ...     for step in range(20):
    ...         evidence.add(step, [1.0], loss=2.3)
    ...     for step, norm in ((0, 2.0), (10, end)):
    ...         evidence.add_snapshot(Snapshot(step, ("fc.weight",), {"weight_norm": np.array([norm])}))
    >>> RULE(sick)[0].severity
    'critical'
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._pace import middle, table
from lightning_weightwatch.rules._words import listed

NAME = "weight_collapse"
_WHOLE = 0.9  # of the first norm: after the last snapshot that shows so much the collapse began


def check(evidence: Evidence, *, left: float = 0.1, gone: float = 0.01) -> Iterator[Finding]:
    """Hold the last snapshot against the first."""
    first = evidence.first_snapshot
    if first is None or len(evidence) == 0:
        return
    columns, snapshots = (
        np.array(evidence.matrices, dtype=int),
        [first, *(s for s in evidence.snapshots if s.step > first.step)],
    )
    norms = table(evidence, snapshots, "weight_norm")[:, columns]
    began = np.isfinite(norms[0]) & (norms[0] > 0)
    kept = norms[:, began] / norms[0, began]
    low, learning = kept[-1] < left, learns(evidence)
    if not 2 * low.sum() > len(low) or learning:
        return
    typical = middle(kept)
    ill = tuple(evidence.parameters[i].name for i in columns[began][low])
    since = snapshots[int(np.flatnonzero(typical >= _WHOLE)[-1])].step
    yield Finding(
        rule=NAME,
        severity=_severity(evidence, learning, float(typical[-1]) < gone),
        step=evidence.steps[-1],
        since_step=since,
        parameters=ill,
        value=float(typical[-1]),
        limit=left,
        unit="norm over that of the first snapshot",
        saw=(
            f"{len(ill)} of {len(low)} matrices have less than {left:g} of their first norm left at step "
            f"{snapshots[-1].step} (median {typical[-1]:.1e}), shrinking since step {since}, and the loss does not "
            f"fall: {listed(ill)}."
        ),
        try_first="Divide the weight decay by 10.",
    )


def _severity(evidence: Evidence, learning: bool | None, is_gone: bool) -> Severity:
    if evidence.has_opponents:
        return "info"
    return "critical" if is_gone and learning is False else "warning"


RULE = Rule(name=NAME, check=check)
