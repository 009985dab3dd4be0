"""A learning rate so high that steps undo what was learnt.

What it sees:
    Two things together. The loss suffers: it stays above ``rise`` times its start, breaks, leaps and comes back to
    where it began, or gets nowhere; in a run that had learnt, half of that is lost. And steps are large: at the last
    snapshot before that, or at one within ``near`` steps, the update over the weight (median over the matrices) was
    above ``ratio``, or that of one matrix above ten times as much; or the learning rate had just risen. A loss that
    climbed step by step until it broke, after an ordinary start, speaks for itself. What happens for many reasons takes
    steps ten times as large: a sudden break, a loss that stays high after small steps, or a guess after 50 steps.

Why it matters:
    A step as large as a tenth of the weights leaves the region in which its gradient was right. The loss leaps, units
    die or saturate, and gradients vanish or become NaN: what is seen at the end is not what was wrong.

When it is not a problem:
    While the loss falls nothing is told, as in a healthy run Adam's first steps are a tenth of the weights too.
    Matrices that begin at zero are left out. A first loss above ``ordinary`` times that of a guess, or a huge first
    gradient, speaks of the initialisation or the data, and a loss that leaps after small steps of its batch. Weights
    that shrink are ``weight_collapse``. Opponents' losses, and those at or below zero, are told only where they break.

Limits:
    ratio: 0.05. In 125 sweeps over the rate no run at or below the best one was told, and 19 of 20 that learnt nothing
        for their rate were.
    rise: 2.0 times the first loss. At the best rate the median of five losses never rose above 1.4 times.
    near: 20 steps between a large step and the trouble, at most. Our choice.
    ordinary: 3.0 times the loss of a guess. Also too large is a first gradient above a thousand: healthy runs began at
        390 at most, bad initialisations at 545 and more. Our choice.

What to try:
    Divide the learning rate by 10. If it must be high later, begin with a warm-up.

References:
    Bengio, Practical recommendations for gradient-based training of deep architectures, 2012, arXiv:1206.5533.
    Karpathy et al., CS231n: Neural networks part 3, ratio of weights to updates.
    Lewkowycz et al., The large learning rate phase of deep learning, 2020, arXiv:2003.02218.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import Evidence, Snapshot, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for evidence, rate in ((sick, 3.0), (well, 0.003)):
    ...     evidence.add_snapshot(Snapshot(0, ("fc.weight",), {"update_ratio": np.array([rate])}))
    >>> for step in range(10):
    ...     sick.add(step, [1.0], loss=2.3 * 4**step)
    ...     well.add(step, [1.0], loss=2.3 - step / 20)
    >>> RULE(sick)[0].severity, RULE(sick)[0].since_step
    ('critical', 0)
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch.evidence import Evidence, Floats
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._pace import matrix_ratios, middle, table
from lightning_weightwatch.rules._start import began_high
from lightning_weightwatch.rules._trouble import Trouble, trouble
from lightning_weightwatch.rules._words import listed

NAME = "learning_rate_too_high"
_TIMES = 10  # the limit: what one matrix alone must exceed, and all where there may be many reasons
_RISEN = 1.2  # times the learning rate of shortly before
_LEAP = 3.0  # the same where nothing was learnt yet: no linear warm-up rises so fast after its first steps
_GRADIENT = 1e3  # a first gradient that is larger was so before any step


def check(
    evidence: Evidence, *, ratio: float = 0.05, rise: float = 2.0, near: int = 20, ordinary: float = 3.0
) -> Iterator[Finding]:
    """Look for trouble first, which is rare, and then for what may have made it."""
    found = trouble(evidence, rise)
    if found is None or _shrank(evidence) or not (found.learnt or _began_well(evidence, ordinary)):
        return
    before, now = _rates(evidence, found.step, near)
    if now > before * (_RISEN if found.learnt else _LEAP):
        why = f"the learning rate had risen from {before:.1e} to {now:.1e} within {near} steps"
        yield _finding(evidence, found, found.step, (now, before, "learning rate"), why)
        return
    ratios = matrix_ratios(evidence)
    chain = _chain(evidence, ratios, ratio, found, near)
    if chain:
        yield _large(evidence, found, chain, ratios[chain], ratio)
    elif found.kind == "climbed" and not found.learnt:
        first, last = evidence.first_losses[0], float(evidence.losses[np.isfinite(evidence.losses)].max())
        why = "initial loss and gradient had been ordinary"
        yield _finding(evidence, found, found.step, (last, rise * first, "loss"), why)


def _began_well(evidence: Evidence, ordinary: float) -> bool:
    """Whether the first loss and the first gradient are those of a sound initialisation and sound data."""
    gradients = table(evidence, [evidence.first_snapshot] if evidence.first_snapshot else [], "grad_norm")
    norm = float(np.sqrt(np.nansum(gradients**2)))
    is_large = norm > _GRADIENT * max(1.0, abs(evidence.first_losses[0])) ** 0.5
    return not is_large and not began_high(evidence, ordinary)


def _shrank(evidence: Evidence) -> bool:
    """Whether most matrices have lost half of their weights: then it was the decay that moved them."""
    if evidence.first_snapshot is None:
        return False
    norms = table(evidence, [evidence.first_snapshot, evidence.snapshots[-1]], "weight_norm")[:, evidence.matrices]
    return bool(np.mean(norms[1] < 0.5 * norms[0]) > 0.5) if norms.size else False


def _rates(evidence: Evidence, step: int, near: int) -> tuple[float, float]:
    """Return the learning rate a while before a step, and the largest since then; NaN where it is unknown."""
    row = evidence.steps.index(step)
    if row < 1.5 * near:  # a warm-up has just begun
        return float("nan"), float("nan")
    rates = evidence.learning_rates[row - near : row]
    return float(rates[0]), float(rates.max())


def _chain(evidence: Evidence, ratios: Floats, limit: float, found: Trouble, near: int) -> list[int]:
    """Return which snapshots in a row show large steps that may have made the trouble; none, if there are none."""
    typical = middle(ratios)
    large, huge = (typical > limit) | (ratios > _TIMES * limit).any(axis=1), typical > _TIMES * limit
    end = _end_of_chain([snapshot.step for snapshot in evidence.snapshots], large, huge, found, near)
    begin = end
    while begin > 0 and large[begin - 1]:
        begin -= 1
    return list(range(begin, end + 1)) if end >= 0 else []


def _end_of_chain(
    taken: list[int], large: NDArray[np.bool_], huge: NDArray[np.bool_], found: Trouble, near: int
) -> int:
    """Return the last snapshot whose large steps may have made the trouble; -1, if there is none.

    A loss is computed before the step is taken, so steps before it count. In a run that had learnt, that takes two
    snapshots in a row, as any run may begin with large steps. In one that never learnt, large steps that go on since
    then count too, unless the loss leapt too suddenly for the small ones before. What happens for many reasons takes
    huge steps: a sudden break, a loss that gets nowhere or keeps high though steps are small by now.
    """
    go_on = len(taken) > 1 and bool(large[-2:].all())
    if found.kind in ("still", "idle"):
        early = [i for i, step in enumerate(taken) if huge[i] and step < found.step + near and found.kind == "idle"]
        return len(taken) - 1 if go_on else next(iter(early), -1)
    before = sum(step < found.step for step in taken)
    near_by = [i for i, step in enumerate(taken[:before]) if i == before - 1 or step >= found.step - near]
    if found.learnt and found.kind != "broke":
        return before - 1 if before and large[max(before - 2, 0) : before].all() else -1
    if go_on and found.kind in ("left", "leapt") and not found.sudden:
        return len(taken) - 1
    small_by_now = found.kind == "left" and len(taken) > before and not large[-1]
    counts = huge if found.kind == "broke" or small_by_now else large
    return next((i for i in reversed(near_by) if counts[i]), -1)


def _large(evidence: Evidence, found: Trouble, chain: list[int], ratios: Floats, limit: float) -> Finding:
    typical, each = middle(ratios), np.where(np.isnan(ratios), 0.0, ratios).max(axis=0)
    is_whole = bool(typical.max() > limit)
    value = float(typical.max() if is_whole else each.max())
    names = [evidence.parameters[i].name for i, r in zip(evidence.matrices, each, strict=True) if r > _TIMES * limit]
    since, until = (evidence.snapshots[i].step for i in (chain[0], chain[-1]))
    span = f"at step {since}" if since == until else f"from step {since} to {until}"
    whose = f"a step changed the {'typical matrix' if is_whole else 'weights of ' + listed(names)}"
    why = f"{span} {whose} by {value:.2g} of it (limit {limit if is_whole else _TIMES * limit:g})"
    measure = (value, limit if is_whole else _TIMES * limit, "update over weight")
    return _finding(evidence, found, since, measure, why, () if is_whole else tuple(names))


def _finding(
    evidence: Evidence,
    found: Trouble,
    since: int,
    measure: tuple[float, float, str],
    why: str,
    names: tuple[str, ...] = (),
) -> Finding:
    value, limit, unit = measure
    return Finding(
        rule=NAME,
        severity="critical" if found.grave else "warning",
        step=evidence.steps[-1],
        since_step=since,
        parameters=names,
        value=min(value, float(np.finfo(np.float64).max)),
        limit=limit,
        unit=unit,
        saw=f"The loss {found.words}, and {why}.",
        try_first="Divide the learning rate by 10.",
    )


RULE = Rule(name=NAME, check=check)
