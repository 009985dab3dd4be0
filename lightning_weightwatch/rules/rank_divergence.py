"""Copies of one model that are no longer the same on all processes.

What it sees:
    A parameter whose norm differs between processes by more than ``relative`` of it. Who has the odd copy is told
    where most of the others agree.

Why it matters:
    Data-parallel training works because every process begins with the same weights and takes the same steps. Once the
    copies differ, each process follows the gradients of somebody else's weights, the saved checkpoint is that of
    process 0 alone, and the loss looks ordinary for a long time.

When it is not a problem:
    Strategies that let processes train alone and average their weights now and then differ in between by design. The
    buffers of a batch norm, which differ on every process, are not looked at.

Limits:
    relative: 1e-6. Copies that took the same steps are equal to the last bit; norms are good to seven digits.

What to try:
    Nothing may change a weight on one process alone: look for steps, resets, loaded weights and clamps behind
    ``if rank == 0``, for layers made after the model was wrapped, and for gradients computed outside ``forward``.

References:
    Li et al., PyTorch Distributed: experiences on accelerating data parallel training, 2020, arXiv:2006.15704.
    Jiang et al., Training with confidence: catching silent errors in deep learning training with automated proactive
    checks, 2025, arXiv:2506.14813.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import Evidence, Replicas, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for evidence, spread in ((sick, 0.01), (well, 0.0)):
    ...     evidence.add(10, [1.0])
    ...     evidence.add_reading(Replicas(10, np.array([spread]), odd=(2,) if spread else ()))
    >>> RULE(sick)[0].rank
    2
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._origin import only
from lightning_weightwatch.rules._pace import named
from lightning_weightwatch.rules._runs import start_of_last_run
from lightning_weightwatch.rules._words import listed

NAME = "rank_divergence"


def check(evidence: Evidence, *, relative: float = 1e-6) -> Iterator[Finding]:
    """Look at the last comparison, and back to the first of those in a row that differ."""
    differs = np.array([(reading.spread > relative).any() for reading in evidence.replicas], dtype=bool)
    if not differs.any() or not differs[-1]:
        return
    last, since = evidence.replicas[-1], evidence.replicas[start_of_last_run(differs)].step
    ill = named(evidence, last.spread > relative)
    worst = min(float(np.nanmax(last.spread)), float(np.finfo(np.float64).max))
    who = f" on process{'es' if len(last.odd) > 1 else ''} {', '.join(map(str, last.odd))}" if last.odd else ""
    yield Finding(
        rule=NAME,
        severity="critical",
        step=max(last.step, evidence.steps[-1]) if len(evidence) else last.step,
        since_step=since,
        parameters=ill,
        value=worst,
        limit=relative,
        unit="relative difference between copies",
        saw=(
            f"The weights are not the same on all processes: {len(ill)} of {len(evidence.parameters)} parameters differ"
            f"{who} by up to {worst:.1e} of their norm (limit {relative:.0e}), since step {since}: {listed(ill)}."
        ),
        try_first="Look for code that changes weights on one process alone, such as behind `if rank == 0`.",
        rank=only(last.odd),
    )


RULE = Rule(name=NAME, check=check)
