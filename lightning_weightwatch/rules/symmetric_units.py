"""Units that are copies of one another: equal weights, equal gradients, and so equal for ever.

What it sees:
    Full statistics count the rows of a matrix that equal another row of it in weight and in gradient, where the
    gradient is not zero. Told where there are more than ``twins`` in two snapshots in a row, or in the first one
    already, if more than ``most`` of the rows of more than half of the hidden matrices are. In an audit that is the
    first batch.

Why it matters:
    Every optimizer that treats weights alike takes the same step for both units, so they never part: the layer is as
    wide as it has different units, often one. Random noise between the layers (dropout) parts them slowly.

When it is not a problem:
    Rows that are equal in weight alone: what follows tells them apart, and in the first step they part. Zero matrices
    (heads, residual branches, LoRA) and rows without a gradient (embeddings, pruned or dead units) are no twins. A
    single matrix drawn constant between random ones is none either.

Limits:
    twins: 0.05. Networks drawn at random have none; planted cases had 0.98.
    most: 0.5, told as critical while the loss does not fall, and in an audit, if it holds for more than half of the
        hidden matrices.
    falling: 0.9. The loss counts as falling once it is below nine tenths of its start. Our choice.

What to try:
    Draw the weights at random, with a seed of its own for each copy of a layer.

References:
    Goodfellow et al., Deep Learning, 2016, section 8.4: Parameter Initialization Strategies.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import Evidence, Snapshot, Watched
    >>> names = ("fc1.weight", "fc2.weight")
    >>> sick, well = (Evidence([Watched(name, 64, True) for name in names]) for _ in range(2))
    >>> for evidence, share in ((sick, 1.0), (well, 0.0)):
    ...     evidence.add(0, [0.1, 0.1], loss=2.3)
    ...     evidence.add_snapshot(Snapshot(0, names, {"twin_rows": np.array([share, 0.0])}))
    >>> RULE(sick)[0].parameters, RULE(sick)[0].severity
    (('fc1.weight',), 'critical')
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lightning_weightwatch.evidence import Evidence, Initial, Snapshot, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._initials import as_initial, forward_matrices
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._words import listed

NAME = "symmetric_units"


def check(
    subject: Evidence | Initial | Sequence[Verdict], *, twins: float = 0.05, most: float = 0.5, falling: float = 0.9
) -> Iterator[Finding]:
    """Look at the last two snapshots that counted twins, or at the first batch."""
    if isinstance(subject, Evidence):
        yield from _in_training(subject, twins, most, falling)
    else:
        yield from _at_the_start(as_initial(subject), twins, most)


def _at_the_start(initial: Initial, twins: float, most: float) -> Iterator[Finding]:
    if initial.signal is None:
        return
    names, counted = [v.name for v in forward_matrices(initial)], initial.signal.twins
    shares = {v.name: counted[v.name] for v in initial if v.name in counted and v.constant != 0}
    ill = [name for name in names if shares.get(name, 0.0) > twins]
    if ill and _is_everywhere(names, shares, most):
        worst = max(ill, key=shares.__getitem__)
        yield _finding(0, ill, (worst, shares[worst], twins), "critical", None)


def _in_training(evidence: Evidence, twins: float, most: float, falling: float) -> Iterator[Finding]:
    taken = [snapshot for snapshot in evidence.snapshots if "twin_rows" in snapshot.values]
    if not any((snapshot.values["twin_rows"] > twins).any() for snapshot in taken):
        return
    names = [evidence.parameters[i].name for i in evidence.matrices]
    counted = [(snapshot.step, shares) for snapshot in taken if (shares := _shares(snapshot, names))]
    if not counted:
        return
    ill = [name for name in names if all(shares.get(name, 0.0) > twins for _, shares in counted[-2:])]
    last = {name: counted[-1][1][name] for name in ill}
    is_everywhere = _is_everywhere(names, last, most)
    if ill and (is_everywhere or len(counted) > 1):
        worst = max(ill, key=last.__getitem__)
        severity: Severity = "critical" if is_everywhere and not learns(evidence, falling=falling) else "warning"
        since = _since(counted, ill, twins)
        step = max(evidence.steps[-1] if len(evidence) else 0, since)
        yield _finding(step, ill, (worst, last[worst], twins), severity, since)


def _is_everywhere(names: Sequence[str], shares: Mapping[str, float], most: float) -> bool:
    """Whether most rows of most hidden matrices are; the last matrix makes the output."""
    hidden = names[:-1]
    return sum(shares.get(name, 0.0) > most for name in hidden) > len(hidden) / 2


def _shares(taken: Snapshot, names: list[str]) -> dict[str, float]:
    """Return the share of twins of each matrix that is not zero throughout."""
    shares, norms = taken.column("twin_rows"), taken.column("weight_norm")
    return {name: shares[name] for name in names if name in shares and norms.get(name, 1.0) > 0}


def _since(counted: list[tuple[int, dict[str, float]]], ill: list[str], twins: float) -> int:
    """Return the first of the snapshots in a row that showed them."""
    since = counted[-1][0]
    for step, shares in reversed(counted):
        if not any(shares.get(name, 0.0) > twins for name in ill):
            break
        since = step
    return since


def _finding(
    step: int, ill: Sequence[str], worst: tuple[str, float, float], severity: Severity, since: int | None
) -> Finding:
    name, share, limit = worst
    when = "at the start" if since is None else f"since step {since}"
    return Finding(
        rule=NAME,
        severity=severity,
        step=step,
        since_step=since or 0,
        parameters=tuple(ill),
        value=share,
        limit=limit,
        unit="share of rows that are copies",
        saw=(
            f"{share:.0%} of the rows of {name} (limit {limit:.0%}) equal another one in weight and in gradient "
            f"{when}, so they stay copies. There are such rows in {listed(ill)}."
        ),
        try_first="Draw these weights at random, such as by the layer's reset_parameters().",
    )


RULE = Rule(name=NAME, check=check, subject="both")
