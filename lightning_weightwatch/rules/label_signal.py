"""Targets that say nothing about the inputs.

What it sees:
    Two forms. One target: in each of at least ``passes`` forward passes that were listened to every target is the same.
    No relation: after ``long`` steps the loss is still that of a network that knows nothing of its input, though most
    weight matrices have walked ``path`` times their own norm, in steps of a size that is usual.

Why it matters:
    A network learns what targets have to do with inputs. Where that is nothing it learns to ignore its input, or to
    know samples by heart.

When it is not a problem:
    Some losses have one target by design: the first of several candidates is always the right one, or a remainder is
    to be zero. So it is told as ``info`` until every loss is small and a typical one below ``fallen`` of the start,
    which with one target needs no more than a bias (a tenth of that for the first of several classes and for a single
    logit); for a regression on zero it stays ``info``. Hard tasks stay at the level of chance for a while before they
    are understood. Opponents have one target each, and are left out.

Limits:
    passes: 3. Our choice.
    fallen: 0.1. Our choice.
    long: 100 steps, if each sample was seen twice, and ten times as many otherwise. Our choice.
    path: 0.4 of the norm, step for step. Healthy slow runs had walked a tenth when they were clearly below chance.
    most: 0.1. Larger steps than that of the weights are trouble of another kind.

What to try:
    Look at a batch beside its targets, before and after every shuffle, sort, join and cast. A network that learns ten
    samples by heart, but not what others have in common, has labels of others.

References:
    Zhang et al., Understanding deep learning requires rethinking generalization, 2017, arXiv:1611.03530.
    Karpathy, A recipe for training neural networks, 2019.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Listened, LossCall, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> one = LossCall("cross_entropy", classes=10, same=1.0, target_least=4, target_greatest=4)
    >>> many = LossCall("cross_entropy", classes=10, same=0.2, target_least=0, target_greatest=9)
    >>> for evidence, call in ((sick, one), (well, many)):
    ...     for step in range(0, 40, 10):
    ...         evidence.add(step, [1.0], loss=2.3 / (step + 1))
    ...         evidence.add_reading(Listened(step, losses=(call,)))
    >>> RULE(sick)[0].saw
    'In each of 4 forward passes from step 0 to 30 every target was 4 (limit 3 passes).'
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightning_weightwatch.evidence import Evidence, Listened, LossCall
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._robust import (
    at_chance,
    last_of,
    logs,
    matrix_updates,
    since_when,
    spread,
    start_level,
    walked,
)

NAME = "label_signal"


def check(
    evidence: Evidence,
    *,
    passes: int = 3,
    fallen: float = 0.1,
    long: int = 100,
    path: float = 0.4,
    most: float = 0.1,
) -> Iterator[Finding]:
    """Look for targets that are all the same, then for a loss that stays at the level of chance."""
    heard = [forward for forward in evidence.listened if forward.losses]
    if evidence.has_opponents or len(heard) < passes:
        return
    targets = {_only_target(call) for forward in heard for call in forward.losses}
    if None not in targets and len(targets) == 1:
        learnt = _is_learnt(evidence, heard[-1].losses[-1], fallen)
        yield _one_target(evidence, heard, passes, "warning" if learnt else "info")
    elif None not in targets and _is_sorted(evidence, heard):
        yield _sorted(evidence, heard, passes)
    elif (chance := at_chance(evidence, long)) is not None:
        way = walked(evidence, 0.75)
        if way > path and np.median(matrix_updates(evidence)) < most:
            yield _no_relation(evidence, chance, way, path)


def _only_target(call: LossCall) -> float | None:
    """Return the target that all samples of a call have, or ``None``."""
    is_one = call.same == 1 or call.target_std == 0
    return call.target_least if is_one and call.target_least == call.target_greatest else None


def _is_learnt(evidence: Evidence, call: LossCall, fallen: float) -> bool:
    """Whether the loss has fallen as it does where a bias is all it takes, and no sample has another target."""
    last, start = last_of(evidence.losses, 20), start_level(evidence)
    if not call.classes and call.target_least == 0:  # a remainder that is to be zero
        return False
    by_design = call.target_least in ((0, 1) if call.classes == 1 else (0,))  # the better of two, the first of many
    limit = fallen / 10 if by_design else fallen
    return len(last) > 0 and evidence.loss_ratio() < limit and bool(last.max() < 0.5 * start)


def _is_sorted(evidence: Evidence, heard: Sequence[Listened]) -> bool:
    """Whether each batch holds one class, in order of their places in the epoch, and the loss goes along with them.

    Batches of one sample hold one class too, but theirs come in no order, and their losses have nothing to do with the
    ones before.
    """
    places = dict(zip(evidence.steps, evidence.batches.tolist(), strict=True))
    known = sorted((places.get(f.step, np.nan), f.losses[0].target_least) for f in heard if len(f.losses) == 1)
    classes = [target for place, target in known if not np.isnan(place)]
    if len(classes) < 5 or len(set(classes)) < 3 or (np.diff(classes) < 0).any():
        return False
    losses = logs(last_of(evidence.losses, evidence.window))
    return bool(spread(np.diff(losses)) < 0.5 * spread(losses))


def _one_target(evidence: Evidence, heard: Sequence[Listened], limit: int, severity: Severity) -> Finding:
    first, last, target = heard[0].step, heard[-1].step, heard[-1].losses[-1].target_least
    return Finding(
        rule=NAME,
        severity=severity,
        step=max([last, *evidence.steps[-1:]]),
        since_step=first,
        value=float(len(heard)),
        limit=float(limit),
        unit="forward passes with one target",
        saw=(
            f"In each of {len(heard)} forward passes from step {first} to {last} every target was {target:g} (limit "
            f"{limit} passes)."
        ),
        try_first="Look at the targets of a batch, and at where the dataset makes them.",
    )


def _sorted(evidence: Evidence, heard: Sequence[Listened], limit: int) -> Finding:
    classes = sorted({forward.losses[0].target_least for forward in heard})
    return Finding(
        rule=NAME,
        severity="warning",
        step=max([heard[-1].step, *evidence.steps[-1:]]),
        since_step=heard[0].step,
        value=float(len(heard)),
        limit=float(limit),
        unit="forward passes with one class each",
        saw=(
            f"In each of {len(heard)} forward passes from step {heard[0].step} to {heard[-1].step} all targets were of "
            f"one class, and classes came in order ({len(classes)} of them, limit {limit} passes): the data are sorted."
        ),
        try_first="Shuffle the training data: DataLoader(..., shuffle=True).",
    )


def _no_relation(evidence: Evidence, chance: float, way: float, path: float) -> Finding:
    since = since_when(evidence)
    now = float(np.median(evidence.curve.losses[-(len(evidence.curve) // 4) :]))
    return Finding(
        rule=NAME,
        severity="warning",
        step=evidence.steps[-1],
        since_step=since,
        value=way,
        limit=path,
        unit="norms that the weights have walked at the level of chance",
        saw=(
            f"From step {since} to {evidence.steps[-1]} the loss stayed at {now:.3g}, where a network that knows "
            f"nothing of its input has {chance:.3g}, while most weight matrices walked at least {way:.2g} times "
            f"their norm (limit {path:g}): labels may be shuffled."
        ),
        try_first="Look at inputs beside their targets: both must be of the same sample.",
    )


RULE = Rule(name=NAME, check=check)
