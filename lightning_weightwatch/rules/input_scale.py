"""Inputs or targets that are not numbers, or far from unit scale.

What it sees:
    The first float tensors of each batch and the targets of regressions, in the forward passes that were listened to.
    Inputs: NaN or Inf; or in more than half of the passes a feature's standard deviation above ``std``, a magnitude
    above ``magnitude``, a mean more than ``offset`` deviations from zero, or deviations of features ``spread`` apart.
    Targets of a squared, absolute or Huber loss: a mean or standard deviation above ``target``.

Why it matters:
    The gradient of a first layer's weight is proportional to its input. Features in hundreds make steps that are
    hundreds of times too large for their weights and saturate what follows; a feature a thousand times smaller than
    another is not seen. One NaN in a batch is NaN in every weight one step later.

When it is not a problem:
    While the loss falls it is told as ``info``: pictures in 0 to 255, raw tables and large targets can train well, and
    a normalisation as the first layer makes its own scale. So it is until ``steps`` steps and two passes are known, and
    where the loss cannot tell. ``spread`` alone is never more, and not told while the loss falls: rare features have
    such numbers. A mean far from zero counts only where values are above 5, as nearly constant features have one. NaN
    or Inf is a note: what it breaks is told by ``non_finite_loss``, and what the model masks breaks nothing.

Limits:
    std: 10. Standardised features have 1, pixels in 0 to 255 about 70.
    magnitude: 50. Our choice.
    offset: 10. Our choice.
    spread: 1e3. Our choice.
    target: 100. Our choice.
    steps: 20. Before, no loss is called one that does not fall. With large targets that takes ``patience`` (60) steps,
        unless the loss doubled: a bias that must move to the hundreds takes its time. Our choice.
    falling: 0.9. The loss counts as falling once it is below nine tenths of its start. Our choice.
    fallen: 0.7. From ``settled`` (100) steps on it must be below this, or below nine tenths of the loss of a constant
        prediction. Our choice.

What to try:
    Subtract the mean and divide by the standard deviation of the training data, feature by feature, and do the same
    with the targets of a regression; drop or fill what is not a number before it reaches the model.

References:
    LeCun et al., Efficient BackProp, 1998, section 4.3: Normalizing the Inputs.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, InputScale, Listened, LossCall, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> pixels = InputScale("batch[0]", 64, mean=33.0, std=78.0, abs_max=255.0, largest_std=110.0, spread=9, offset=1)
    >>> for step in range(20):
    ...     sick.add(step, [1.0], loss=2.3)
    ...     well.add(step, [1.0], loss=2.3 - step / 10)
    >>> for evidence in (sick, well):
    ...     for step in (0, 10):
    ...         evidence.add_reading(Listened(step, losses=(LossCall("cross_entropy"),), inputs=(pixels,)))
    >>> RULE(sick)[0].severity, RULE(well)[0].severity
    ('warning', 'info')
    >>> RULE(Evidence([]))
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._inputs import is_normalised_first, off_scale
from lightning_weightwatch.rules._learning import chance_ratio, learns, loss_calls
from lightning_weightwatch.rules._words import listed

NAME = "input_scale"
_REGRESSIONS = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}


def check(
    evidence: Evidence,
    *,
    std: float = 10.0,
    magnitude: float = 50.0,
    offset: float = 10.0,
    spread: float = 1e3,
    target: float = 100.0,
    steps: int = 20,
    patience: int = 60,
    falling: float = 0.9,
    fallen: float = 0.7,
    settled: int = 100,
) -> Iterator[Finding]:
    """Look for what is not a number, then at the scale of inputs, then of targets."""
    if not len(evidence) or not evidence.listened:
        return
    learning = learns(evidence, falling=fallen if len(evidence) >= settled else falling)
    fails = learning is False and not chance_ratio(evidence) < 0.9
    severity: Severity = "warning" if fails and len(evidence) >= steps else "info"
    yield from _non_finite(evidence)
    yield from _inputs(
        evidence, {"largest_std": std, "abs_max": magnitude, "offset": offset, "spread": spread}, severity
    )
    ratio = evidence.loss_ratio()
    waits = ratio < fallen or (len(evidence) < patience and not ratio > 2)
    yield from _targets(evidence, target, "info" if waits else severity)


def _non_finite(evidence: Evidence) -> Iterator[Finding]:
    rows = {step: row for row, step in enumerate(evidence.steps)}
    hits = [
        (heard.step, x) for heard in evidence.listened for x in heard.inputs if x.nonfinite > 0 and heard.step in rows
    ]
    broken = [hit for hit in hits if _broke(evidence, rows[hit[0]])]
    for step, seen in (broken or hits)[:1]:
        then = (
            "and so is the loss or a gradient"
            if broken
            else "but the loss of that step is finite: the model masks them"
        )
        yield Finding(
            rule=NAME,
            severity="info",  # where it breaks the loss, that is told as critical by ``non_finite_loss``
            step=evidence.steps[-1],
            since_step=step,
            value=float(seen.nonfinite),
            limit=0.0,
            unit="elements that are NaN or Inf",
            saw=f"{seen.nonfinite:.0f} elements of {seen.name} are NaN or Inf at step {step} (limit 0), {then}.",
            try_first="Find these samples in the data, and drop or fill them before they reach the model.",
        )


def _broke(evidence: Evidence, row: int) -> bool:
    """Whether a step had a loss that is not finite, or gradients that are not where nothing scales the loss."""
    gradients = bool(np.isinf(evidence.norms[row]).any()) and not evidence.scaled_loss
    return gradients or bool(np.isinf(evidence.losses[row])) or evidence.steps[row] in evidence.broken_losses.values()


def _inputs(evidence: Evidence, limits: dict[str, float], severity: Severity) -> Iterator[Finding]:
    found = [one for one in off_scale(evidence, limits) if one.matters or severity != "info"]
    if not found:
        return
    worst = max(found, key=lambda one: (one.matters, one.value / one.limit))
    if not worst.matters or worst.passes < 2 or is_normalised_first(evidence):
        severity = "info"
    others = listed([one.name for one in found if one is not worst])
    yield Finding(
        rule=NAME,
        severity=severity,
        step=evidence.steps[-1],
        since_step=min(worst.since, evidence.steps[-1]),
        value=worst.value,
        limit=worst.limit,
        unit=worst.what,
        saw=(
            f"{worst.name}: {worst.what} {worst.value:.3g} (limit {worst.limit:g}), in {worst.passes} passes since "
            f"step {worst.since}{', and the loss does not fall' if severity != 'info' else ''}."
            + (f" Also off scale: {others}." if others else "")
        ),
        try_first="Subtract the mean and divide by the standard deviation of the training data, feature by feature.",
    )


def _targets(evidence: Evidence, target: float, severity: Severity) -> Iterator[Finding]:
    calls = [(heard.step, call) for heard, call in loss_calls(evidence) if call.function in _REGRESSIONS]
    sizes = np.array([max(abs(call.target_mean), call.target_std) for _, call in calls])
    if not (sizes > target).sum() > len(sizes) / 2:
        return
    since, function = calls[int(np.argmax(sizes > target))][0], calls[-1][1].function
    value = float(np.nan_to_num(np.nanmedian(sizes)))
    yield Finding(
        rule=NAME,
        severity=severity if len(sizes) > 1 else "info",
        step=evidence.steps[-1],
        since_step=min(since, evidence.steps[-1]),
        value=value,
        limit=target,
        unit="size of a regression's targets",
        saw=(
            f"The targets of {function} have a mean or standard deviation of {value:.3g} (limit {target:g}), since "
            f"step {since}{', and the loss does not fall' if severity != 'info' else ''}."
        ),
        try_first="Standardise the targets with mean and deviation of the training data, and undo it in predictions.",
    )


RULE = Rule(name=NAME, check=check)
