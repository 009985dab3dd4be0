"""A loss that jumps from one step to the next.

What it sees:
    The logarithm of the loss more than ``z`` robust standard deviations above the median of the ``window`` steps before
    it, in one of the last ``recent`` steps; the loss itself where it may be zero or less.

Why it matters:
    A loss that jumps and stays has lost what was learnt: a batch, or a step that was too long, moved the weights to
    where they are of no use.

When it is not a problem:
    A jump that comes back is told as ``info``: a hard batch, a bad sample. It is a ``warning`` where one batch cost
    ``times`` the largest loss of the 50 steps before it and more than the first of the run, and the next ones do not:
    no hard batch of a network that has learnt costs more than one that has not. And where the loss stands higher by
    more than half of what had been learnt, and by more than half of where it stood, and is not on its way back ``wait``
    steps later; new data are learnt. Silent where the loss stays below a hundredth of its start. Losses that need not
    fall (networks that play against each other, policy gradients) are told as ``info`` only.

Limits:
    z: 8, of at least ``least`` (32) steps. Five healthy runs of 500 steps had no loss beyond it; single samples do.
    floor: 0.05. The least MAD of log losses: a run without noise would otherwise call its smallest change a spike.
    window: 64 steps. A loss that falls fast widens the spread of a longer one.
    recent: 20 steps, so that a spike is news for a while only. Our choice.
    wait: 20 steps. New data make a loss jump too; within so many steps it begins to come back. Our choice.
    times: 3. Our choice.

What to try:
    Look at the batch of that step and at what changed there: learning rate, data, loss weights. Go back to the last
    checkpoint before it, leave the batch out or lower the learning rate.

References:
    Chowdhery et al., PaLM: Scaling language modeling with pathways, 2022, arXiv:2204.02311.
    Zhang et al., OPT: Open pre-trained transformer language models, 2022, arXiv:2205.01068.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for step in range(100):
    ...     loss = 2.0 if step < 10 else 0.5 + step % 3 / 20
    ...     sick.add(step, [1.0], loss=loss if step < 70 else 2.5)
    ...     well.add(step, [1.0], loss=loss)
    >>> RULE(sick)[0].since_step, RULE(sick)[0].severity
    (70, 'warning')
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence, Floats
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._origin import of_its_epoch
from lightning_weightwatch.rules._robust import jumps, last_of, logs, lost, must_fall, start_level, starts

NAME = "loss_spike"


def check(
    evidence: Evidence,
    *,
    z: float = 8.0,
    least: int = 32,
    floor: float = 0.05,
    window: int = 64,
    recent: int = 20,
    wait: int = 20,
    times: float = 3.0,
) -> Iterator[Finding]:
    """Look for a jump among the last steps, and for one that has not come back."""
    losses = np.where(np.isfinite(evidence.losses), evidence.losses, np.nan)
    if np.isfinite(losses).sum() <= least:
        return
    scores = jumps(_scale(losses), window=window, least=least, floor=floor)
    start = start_level(evidence)
    tiny = (losses < 0.01 * start) if start > 0 else np.zeros(len(losses), dtype=bool)
    spikes, now = starts((scores > z) & ~tiny), len(scores)
    stays = [row for row in spikes if row >= now - 3 * wait and lost(evidence, row, wait)]
    if stays:
        yield _finding(evidence, scores, stays[0], z, stays=True)
    elif spikes and spikes[-1] >= now - recent:
        beyond = must_fall(evidence) and _is_beyond(losses, spikes[-1], start, times)
        yield _finding(evidence, scores, spikes[-1], z, stays=False, beyond=beyond)


def _is_beyond(losses: Floats, row: int, start: float, times: float) -> bool:
    """Whether one loss was beyond where the run began, and far from all before it; new data cost more for longer."""
    before, after = last_of(losses[:row], 50), last_of(losses[row + 1 : row + 6], 5)
    if not start > 0 or not before.size or len(after) < 3 or not losses[row] > max(start, times * before.max()):
        return False
    return bool(np.median(after) < 0.5 * (before.max() + losses[row]))


def _scale(losses: Floats) -> Floats:
    """Return logarithms of positive losses; others in units of their usual size, so that one floor fits both."""
    known = losses[~np.isnan(losses)]
    if (known > 0).all():
        return logs(losses)
    size = float(np.median(np.abs(known)))
    return losses / size if size > 0 else np.full(len(losses), np.nan)


def _finding(evidence: Evidence, scores: Floats, row: int, z: float, *, stays: bool, beyond: bool = False) -> Finding:
    step, where, loss = evidence.steps[row], of_its_epoch(evidence, row), evidence.losses[row]
    before, now = np.median(last_of(evidence.losses[:row], 20)), np.median(last_of(evidence.losses, 10))
    return Finding(
        rule=NAME,
        severity="warning" if stays or beyond else "info",
        step=evidence.steps[-1],
        since_step=step,
        value=float(scores[row]),
        limit=z,
        unit="robust standard deviations of the loss",
        saw=(
            f"The loss jumped from {before:.3g} to {loss:.3g} at step {step}{where}, {scores[row]:.0f} robust standard "
            f"deviations (limit {z:.0f}) above the steps before it; "
            + ("it stays at" if stays else "it is now")
            + f" {now:.3g}."
        ),
        try_first="Look at the batch of that step, and at what changed there: learning rate, data, loss weights.",
    )


RULE = Rule(name=NAME, check=check)
