"""Steps too small for the precision of the weights: they are rounded away.

What it sees:
    Weights kept in float16 or bfloat16 of whose elements with a gradient more than ``share`` were left exactly as
    they were, by each of the last ``snapshots`` measured steps.

Why it matters:
    bfloat16 has eight significant bits: next to 1 the nearest number is 1.0078. An update below half of that distance
    changes nothing, however often it is repeated, so the loss stops falling long before the network has learnt what it
    could, and neither gradients nor learning rate look wrong.

When it is not a problem:
    While the loss falls it is told as ``info``: gradients shrink as a network learns, and the last small steps are lost
    first. So it is where few elements are lost: norm gains, which lie at 1, are rounded in any such training. Elements
    whose gradient is zero (sparse embeddings, dead units) do not count; nor do steps of a warm-up, of the end of a
    schedule, or such as a GradScaler skipped. Mixed precision (``"bf16-mixed"``) keeps its weights in float32.

Limits:
    share: 0.5. With updates below half the distance 99.5 % of the elements never moved. Our choice.
    snapshots: 2. Our choice.
    most: 0.5. So much of all elements in half precision must be lost for a ``warning``. Our choice.

What to try:
    Keep the weights in float32 and compute in half precision: ``Trainer(precision="bf16-mixed")``. Where memory forbids
    that, use an optimizer with float32 copies or stochastic rounding.

References:
    Micikevicius et al., Mixed precision training, 2018, arXiv:1710.03740.
    Zamirai et al., Revisiting BFloat16 training, 2020, arXiv:2010.06192.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import Evidence, Setup, Snapshot, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for evidence, lost in ((sick, 0.99), (well, 0.1)):
    ...     evidence.setup = Setup(half=("fc.weight",))
    ...     for step in range(20):
    ...         evidence.add(step, [1.0], loss=2.3, learning_rate=1e-4)
    ...         if step % 10 == 0:
    ...             numbers = {"update_zero_share": np.array([lost]), "grad_zero_share": np.array([0.0])}
    ...             evidence.add_snapshot(Snapshot(step, ("fc.weight",), numbers))
    >>> RULE(sick)[0].parameters
    ('fc.weight',)
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence, Floats, Snapshot
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._learning import eased, is_warming_up, learns
from lightning_weightwatch.rules._pace import named, table, took_a_step
from lightning_weightwatch.rules._words import listed

NAME = "lost_updates"
_FULL = 0.5  # of the highest remembered rate: below it a schedule is near its end, or a warm-up at its beginning


def check(evidence: Evidence, *, share: float = 0.5, snapshots: int = 2, most: float = 0.5) -> Iterator[Finding]:
    """Look at the last measured steps that were neither skipped nor part of a warm-up."""
    half = [p.name in evidence.setup.half and p.kind != "bias" for p in evidence.parameters]
    taken = took_a_step(evidence, least=_FULL)[-snapshots:]
    if not any(half) or len(taken) < snapshots or taken[-1] is not evidence.snapshots[-1] or is_warming_up(evidence):
        return
    lost = np.where(half, _lost(evidence, taken), np.nan)
    struck = (lost > share).all(axis=0)
    if not struck.any():
        return
    least, elements = lost.min(axis=0), np.array([p.numel for p in evidence.parameters])
    known = ~np.isnan(least)
    whole = float(np.average(least[known], weights=elements[known]))
    ill, typical = named(evidence, struck), float(np.median(least[struck]))
    yield Finding(
        rule=NAME,
        severity=eased("warning", learns(evidence)) if whole > most else "info",
        step=evidence.steps[-1],
        since_step=taken[0].step,
        parameters=ill,
        value=typical,
        limit=share,
        unit="share of elements that a step leaves as they were",
        saw=(
            f"Each of the last {len(taken)} measured steps, since step {taken[0].step}, left {typical:.0%} of the "
            f"elements as they were (limit {share:.0%}) in {len(ill)} of {sum(half)} weights in half precision, "
            f"though they have a gradient: {listed(ill)}."
        ),
        try_first="Keep the weights in float32: Trainer(precision='bf16-mixed').",
    )


def _lost(evidence: Evidence, taken: list[Snapshot]) -> Floats:
    """Return which share of the elements with a gradient did not move; NaN where most have none."""
    still, zero = table(evidence, taken, "update_zero_share"), table(evidence, taken, "grad_zero_share")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(zero < 0.5, (still - zero) / (1 - zero), np.nan)


RULE = Rule(name=NAME, check=check)
