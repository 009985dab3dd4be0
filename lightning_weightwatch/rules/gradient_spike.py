"""A gradient that is suddenly far larger than all before it.

What it sees:
    The logarithm of the global gradient norm, before clipping, more than ``z`` robust standard deviations above the
    median of the ``window`` steps before it, in one of the last ``recent`` steps.

Why it matters:
    One batch may undo what thousands have taught, and the moments that Adam keeps of it steer many steps more.

When it is not a problem:
    A single spike of less than ``times`` that leaves no mark is told as ``info``. It is a ``warning`` where the norm
    was ``times`` the largest of the 50 steps before it; where the loss jumped with it, by more than half of what had
    been learnt, and is not on its way back ``wait`` steps later; where more than half of the units of a layer died of
    it; or where spikes become frequent (at least ``often`` in the last half of the window, and three times as many as
    in the first) while the loss does not fall. Silent where the loss is below a hundredth of its start: tiny gradients
    flicker. The loss of networks that play against each other tells nothing.

Limits:
    z: 8, of at least ``least`` (32) steps. Over 33,570 healthy steps none was beyond 5.4, planted spikes reached 12.
    floor: 0.05. The least MAD of log norms: a run without noise would otherwise call its smallest change a spike.
    window: 100 steps. Our choice.
    recent: 20 steps, so that a spike is news for a while only. Our choice.
    wait: 20 steps. New data make a loss jump too; within so many steps it begins to come back. Our choice.
    often: 4. Our choice.
    times: 10. Megatron calls ten times the largest of a run's first norms a spike; we take the largest of late.

What to try:
    Look at the batch of that step for broken or extreme samples. If spikes come with many batches, clip gradients or
    lower the learning rate.

References:
    Chowdhery et al., PaLM: Scaling language modeling with pathways, 2022, arXiv:2204.02311.
    Huang et al., SPAM: Spike-aware Adam with momentum reset for stable LLM training, 2025, arXiv:2501.06842.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for step in range(60):
    ...     sick.add(step, [50.0 if step == 55 else 1.0 + step % 3 / 10], loss=1.0)
    ...     well.add(step, [1.0 + step % 3 / 10], loss=1.0)
    >>> RULE(sick)[0].since_step, RULE(sick)[0].severity
    (55, 'warning')
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence, Floats
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._origin import of_its_epoch
from lightning_weightwatch.rules._robust import jumps, last_of, logs, lost, must_fall, starts, turns
from lightning_weightwatch.rules._words import listed

NAME = "gradient_spike"


def check(
    evidence: Evidence,
    *,
    z: float = 8.0,
    least: int = 32,
    floor: float = 0.05,
    window: int = 100,
    recent: int = 20,
    wait: int = 20,
    often: int = 4,
    times: float = 10.0,
) -> Iterator[Finding]:
    """Look for a spike among the last steps, and for one that the loss has not got over."""
    if len(evidence) <= least or evidence.loss_ratio() < 0.01:
        return
    norms, scores = evidence.global_norm, np.full(len(evidence), np.nan)
    for rows in turns(evidence):
        scores[rows] = jumps(logs(norms[rows]), window=window, least=least, floor=floor)
    spikes, now = starts(scores > z), len(scores)
    if not spikes or spikes[-1] < now - 3 * max(wait, recent):
        return
    harms = {row: _harm(evidence, row, wait) for row in spikes if row >= now - 3 * wait}
    first = next((row for row, harm in harms.items() if harm), spikes[-1])
    harm = harms.get(first, "") or _more_often(evidence, spikes, least, often)
    if harm or first >= now - recent:
        yield _finding(evidence, scores, first, z, harm or _size(norms, first, times))


def _harm(evidence: Evidence, row: int, wait: int) -> str:
    """Say what has been broken since a spike, if something has."""
    if lost(evidence, row, wait):
        return "; the loss jumped with it and has not come back"
    step = evidence.steps[row]
    before = [reading.share for reading in evidence.dead if reading.step < step]
    after = [r.share for r in evidence.dead if r.step >= step + wait and r.steps >= wait]
    if not before or not after or before[-1].shape != after[-1].shape:
        return ""
    died = (after[-1] - before[-1])[~np.isnan(after[-1] - before[-1])]
    return f"; {died.max():.0%} of the units of a layer died of it" if died.size and died.max() > 0.5 else ""


def _more_often(evidence: Evidence, spikes: list[int], least: int, often: int) -> str:
    """Say how many spikes there were lately if they become frequent while the loss does not fall."""
    middle = (least + len(evidence)) // 2
    late = sum(row >= middle for row in spikes)
    before, after = last_of(evidence.losses[:middle], 20), last_of(evidence.losses[middle:], 20)
    if late < often or late < 3 * (len(spikes) - late) or not (len(before) and len(after) and must_fall(evidence)):
        return ""
    is_better = np.median(after) < np.median(before)
    return "" if is_better else f"; it is one of {late} since step {evidence.steps[middle]}"


def _size(norms: Floats, row: int, times: float) -> str:
    """Say how many times the steps before it a spike was, if that alone is worth a warning."""
    before = last_of(norms[:row], 50)
    most = float(before.max()) if before.size else 0.0
    return f"; it was {norms[row] / most:.0f} times the largest of theirs" if norms[row] >= times * most > 0 else ""


def _finding(evidence: Evidence, scores: Floats, row: int, z: float, harm: str) -> Finding:
    step, where, norm = evidence.steps[row], of_its_epoch(evidence, row), evidence.global_norm[row]
    shares = np.nan_to_num(evidence.norms[row] ** 2 / norm**2)
    order = np.argsort(-shares)
    names = [evidence.parameters[i].name for i in order[: int(np.searchsorted(np.cumsum(shares[order]), 0.9)) + 1]]
    return Finding(
        rule=NAME,
        severity="warning" if harm else "info",
        step=evidence.steps[-1],
        since_step=step,
        parameters=tuple(p.name for p in evidence.parameters if p.name in set(names)),
        value=float(scores[row]),
        limit=z,
        unit="robust standard deviations of the log gradient norm",
        saw=(
            f"The global gradient norm was {norm:.1e} at step {step}{where}, {scores[row]:.0f} robust standard "
            f"deviations (limit {z:.0f}) above the steps before it{harm}. Nine tenths of its square: {listed(names)}, "
            f"the first {shares[order[0]]:.0%}."
        ),
        try_first="Look at the batch of that step; if it is sound, clip gradients (Trainer(gradient_clip_val=1.0)).",
    )


RULE = Rule(name=NAME, check=check)
