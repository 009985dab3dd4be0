"""What a number usually is, how far it jumped, and whether a loss got anywhere: medians and spreads that rules share.

Medians and MADs (median absolute deviations) rather than means: less than half of the values cannot move them far. So
an outlier does not raise the bar for the next one, and a level that stays for more than half of the window becomes what
is usual, without any bookkeeping. Values that are unknown or not finite are left out before anything is counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch.evidence import Evidence, Floats, LossCall
from lightning_weightwatch.rules._pace import table

SIGMA = 1.4826  # a normal distribution's standard deviation over its MAD
SMOOTH = 5  # losses that make a level, as many as a point of a young curve has


def logs(values: Floats) -> Floats:
    """Return natural logarithms; NaN where a value is not finite or not above zero.

    Example:
        >>> logs(np.array([1.0, 0.0, np.inf]))
        array([ 0., nan, nan])
    """
    usable = np.isfinite(values) & (values > 0)
    return np.asarray(np.log(np.where(usable, values, 1.0)) + np.where(usable, 0.0, np.nan))


def jumps(values: Floats, *, window: int, least: int, floor: float) -> Floats:
    """Return how far each value lies above those before it, in robust standard deviations.

    Args:
        values: In order; NaN or Inf where a value does not count.
        window: How many known values before it a value is held against, at most.
        least: And at least; before that nothing is said.
        floor: The least MAD: a run without noise has none, and its smallest change would be a jump.

    Returns:
        One number per value, NaN where nothing can be said.

    Example:
        >>> jumps(np.array([0.0, 1.0, 0.0, 1.0, 9.0]), window=4, least=4, floor=0.05).round(2).tolist()
        [nan, nan, nan, nan, 11.47]
    """
    scores = np.full(len(values), np.nan)
    where = np.flatnonzero(np.isfinite(values))[least:]
    if where.size:
        known = values[np.isfinite(values)]
        padded = np.concatenate([np.full(window, np.nan), known])
        before = np.lib.stride_tricks.sliding_window_view(padded, window)[least:-1]
        counts = np.minimum(np.arange(least, len(known)), window)
        middle = medians(before, counts)
        mad = medians(np.abs(before - middle[:, None]), counts)
        scores[where] = (known[least:] - middle) / (SIGMA * np.maximum(mad, floor))
    return scores


def medians(rows: Floats, counts: NDArray[np.int64]) -> Floats:
    """Return the median of the ``counts`` known values of each row; sorting puts NaN last."""
    ordered, row = np.sort(rows, axis=1), np.arange(len(rows))
    return np.asarray((ordered[row, (counts - 1) // 2] + ordered[row, counts // 2]) / 2)


def starts(flags: NDArray[np.bool_], apart: int = 5) -> list[int]:
    """Return where runs of true flags begin; flags less than ``apart`` away from one another are one run.

    Example:
        >>> starts(np.array([True, False, True, False, False, False, False, False, True]))
        [0, 8]
    """
    where = np.flatnonzero(flags)
    return where[np.diff(where, prepend=-apart) >= apart].tolist() if where.size else []


def spread(values: Floats) -> float:
    """Return the robust standard deviation of known values."""
    return SIGMA * float(np.median(np.abs(values - np.median(values))))


def last_of(values: Floats, count: int) -> Floats:
    """Return the last ``count`` known values, or as many as there are."""
    return values[np.isfinite(values)][-count:]


def start_level(evidence: Evidence) -> float:
    """Return the median of the run's first losses; NaN while none is known."""
    return float(np.median(evidence.first_losses)) if evidence.first_losses else float("nan")


def levels(evidence: Evidence) -> tuple[Floats, Floats]:
    """Return the smoothed loss of the whole run, and the step at which each level begins.

    The curve makes the beginning; where single losses are remembered, each level is the median of ``SMOOTH`` of them,
    and there is one for every step.
    """
    losses = evidence.losses
    known = np.isfinite(losses)
    steps, values = np.array(evidence.steps, dtype=np.float64)[known], losses[known]
    if len(values) < SMOOTH:
        return np.empty(0), np.empty(0)
    fine = np.median(np.lib.stride_tricks.sliding_window_view(values, SMOOTH), axis=1)
    early = np.array(evidence.curve.steps, dtype=np.float64)
    coarse = evidence.curve.losses[early + evidence.curve.stride <= steps[0]]
    return np.concatenate([early[: len(coarse)], steps[: len(fine)]]), np.concatenate([coarse, fine])


def since_when(evidence: Evidence) -> int:
    """Return the step since which the loss has been where it is now."""
    last = last_of(evidence.losses, 40)
    now, (steps, smooth) = float(np.median(last)), levels(evidence)
    elsewhere = np.flatnonzero(np.abs(smooth - now) > 0.05 * abs(now) + 3 * spread(last))
    return int(steps[min(elsewhere[-1] + 1, len(steps) - 1)]) if elsewhere.size else int(steps[0])


def progress(evidence: Evidence) -> float:
    """Return by how many robust standard deviations of the last losses the loss has fallen; NaN with too few losses.

    Measured between the first and the last quarter of the run; a fall without any noise is infinite.
    """
    whole = len(evidence.curve) * evidence.curve.stride > evidence.window
    losses = evidence.curve.losses if whole else last_of(evidence.losses, evidence.window)
    quarter = len(losses) // 4
    if quarter < 2:
        return float("nan")
    first, last = losses[:quarter], losses[-quarter:]
    fall, noise = float(np.median(first) - np.median(last)), spread(last)
    if noise == 0:
        return float(np.sign(fall)) * np.inf if fall else 0.0
    return fall / noise


def stays_positive(evidence: Evidence) -> bool:
    """Whether one objective is trained whose loss has always been above zero, so that shares of it mean something."""
    values = np.concatenate([evidence.curve.losses, last_of(evidence.losses, evidence.window)])
    return not evidence.has_opponents and bool((values > 0).all())


def must_fall(evidence: Evidence) -> bool:
    """Whether the loss ought to fall where a training is well.

    Opponents' losses need not. Nor need a loss that is below zero now and then, or one in which no loss function of
    torch was heard: a policy gradient has such a loss, and it grows with the rewards.
    """
    heard = [bool(forward.losses) for forward in evidence.listened]
    return stays_positive(evidence) and (not heard or any(heard))


def target_growth(evidence: Evidence) -> float:
    """Return how many times larger the squares of the targets have become, at least 1.

    Networks that learn from their own predictions have targets that grow, and errors that grow with them.
    """
    calls = [call for forward in evidence.listened for call in forward.losses]
    sizes = [call.target_mean**2 + call.target_std**2 for call in calls if np.isfinite(call.target_std)]
    known = [size for size in sizes if size > 0]
    return max(float(np.median(known[-3:]) / np.median(known[:3])), 1.0) if known else 1.0


def jumped(before: float, after: float, start: float) -> bool:
    """Whether a loss rose by more than half of what had been learnt, and by more than half of where it stood."""
    learnt = start - before if np.isfinite(start) else 0.0
    return after - before > 0.5 * max(learnt, abs(before))


def lost(evidence: Evidence, row: int, wait: int) -> bool:
    """Whether the loss jumped at a row, still stands there ``wait`` losses later, and is not on its way back."""
    before, after = last_of(evidence.losses[:row], 20), last_of(evidence.losses[row + 1 :], evidence.window)
    if len(before) < SMOOTH or len(after) < wait or not must_fall(evidence):
        return False
    early, late = np.array_split(after, 2)
    stays = jumped(float(np.median(before)), float(np.median(after[-wait // 2 :])), start_level(evidence))
    return stays and bool(np.median(late) > 0.9 * np.median(early))


def turns(evidence: Evidence, most: int = 4) -> list[NDArray[np.intp]]:
    """Return the rows in which the same parameters had gradients, one array per such set.

    Networks and tasks that take turns have gradients of different sizes. Where there are more than ``most`` sets, as
    with experts that are chosen sample by sample, all rows are of one kind.
    """
    measured = np.packbits(~np.isnan(evidence.norms), axis=1)
    rows: dict[bytes, list[int]] = {}
    for row, key in enumerate(measured):
        rows.setdefault(key.tobytes(), []).append(row)
    return [np.array(kind) for kind in rows.values()] if len(rows) <= most else [np.arange(len(measured))]


def only_calls(evidence: Evidence) -> list[LossCall]:
    """Return the calls of a loss function, if each forward pass made one, the same, whose level of chance is known."""
    calls = [heard.losses[0] for heard in evidence.listened if len(heard.losses) == 1]
    is_one = len(calls) == len(evidence.listened) and len({call.function for call in calls}) == 1
    return calls if is_one and all(np.isfinite(call.chance) for call in calls) else []


def at_chance(evidence: Evidence, long: int) -> float | None:
    """Return the loss of a network that knows nothing of its input, if the loss has stood there for ``long`` losses.

    It must never have been better. And each sample must have been seen twice, as far as batches tell; where they do
    not, it takes ten times as long: a large set of data, or a hard task, is not understood before.
    """
    curve, calls = evidence.curve.losses, only_calls(evidence)
    seen_twice = int((np.diff(last_of(evidence.batches, evidence.window)) < 0).sum()) >= 2
    if len(curve) * evidence.curve.stride < (long if seen_twice else 10 * long) or len(curve) < 20:
        return None
    if len(calls) < 5 or len(last_of(evidence.losses, long)) < 40 or not must_fall(evidence) or rate_rises(evidence):
        return None
    if evidence.steps[-1] + 1 - since_when(evidence) < 0.9 * long:
        return None
    last = curve[-(len(curve) // 2) :]
    now, best = (
        float(np.median(last)),
        float(np.median(np.lib.stride_tricks.sliding_window_view(curve, 5), axis=1).min()),
    )
    unsure = 1.25 * spread(np.diff(curve)) / (2 * len(last)) ** 0.5
    for chance, below, above in _bands(calls):
        is_there = 1 - below < now / chance < 1 + above and best > (1 - 3 * below) * chance
        if is_there and unsure < below / 2 * now:
            return chance
    return None


def _bands(calls: Sequence[LossCall]) -> list[tuple[float, float, float]]:
    """Return levels of chance, each with the share below and above it that still counts as there.

    Of a classification that is the entropy of its targets, or the logarithm of the number of classes where not even
    that is learnt. The variance of a regression's targets is not known as well, and must have come to rest.
    """
    chance, classes = calls[-1].chance, calls[-1].classes
    if classes:
        most = float(np.log(max(classes, 2)))
        return [(level, 0.01, 0.02) for level in (min(_entropy(calls), most), most) if level > 0]
    rests = chance > 0 and all(abs(np.log(max(call.chance, 1e-30) / chance)) < 0.1 for call in calls[-3:])
    return [(chance, 0.07, 0.15)] if rests else []


def _entropy(calls: Sequence[LossCall]) -> float:
    """Return the entropy of all targets: that of those heard of falls short of it by a part in their number."""
    part = 1 / np.arange(1, len(calls) + 1)
    _, whole = np.polyfit(part, [call.chance for call in calls], 1)
    return float(max(whole, calls[-1].chance))


def walked(evidence: Evidence, share: float) -> float:
    """Return how many times their norm so large a share of the weight matrices has walked, step for step, or more."""
    ratios = matrix_updates(evidence)
    return float(np.quantile(ratios, 1 - share)) * len(evidence.curve) * evidence.curve.stride if ratios.size else 0.0


def matrix_updates(evidence: Evidence, last: int = 5) -> Floats:
    """Return update over weight of each matrix, the median of the last full statistics but for the first of the run.

    Where there is no matrix, of each parameter. Those of the first step are left out, since a warm-up begins at zero;
    matrices without a gradient have none.
    """
    snapshots = [s for s in evidence.snapshots[-last:] if s is not evidence.first_snapshot]
    ratios = table(evidence, snapshots, "update_ratio")[:, evidence.matrices or list(range(len(evidence.parameters)))]
    known = ratios[:, np.isfinite(ratios).all(axis=0)]
    return np.median(known, axis=0) if known.size else np.empty(0)


def rate_rises(evidence: Evidence) -> bool:
    """Whether the learning rate is higher than half of the remembered steps ago: a warm-up is going on."""
    rates = last_of(evidence.learning_rates, evidence.window)
    return len(rates) > 1 and bool(rates[-1] > 1.05 * rates[len(rates) // 2])


def knows(evidence: Evidence, level: float) -> bool:
    """Whether a loss is well below that of a network that knows nothing of its input; else, well below the first loss.

    A run may have learnt all there is in its first hundredth, or before it began.
    """
    calls, first = only_calls(evidence), evidence.first_losses[0]
    if calls:
        return level < 0.9 * calls[-1].chance
    return level < min(0.9 * first, first - 3 * spread(last_of(evidence.losses, 40)))
