"""An output activation that does not fit the loss, so that the best predictions are out of reach.

What it sees:
    The loss functions called in the forward passes that were listened to, and the activation function whose output each
    takes. A loss of logits (``cross_entropy``, ``binary_cross_entropy_with_logits``) on outputs that were squashed
    before; a softmax, or a cross entropy, over a single unit; ``nll_loss`` on what is no log probability;
    ``binary_cross_entropy`` on what is no probability or with targets outside 0 to 1; and a regression whose targets
    reach more than ``margin`` of their deviations beyond the range of the output activation.

Why it matters:
    A softmax before a cross entropy, which takes a softmax itself, leaves logits between 0 and 1: with ten classes the
    loss never falls below 1.46, and its gradients are small. A softmax over one unit is always 1, and no gradient
    passes it. A ReLU never predicts a negative target, and where it is silent it does not learn to.

When it is not a problem:
    ``log_softmax`` before a cross entropy changes nothing. A ReLU before one is told as ``info`` only, as some networks
    end so on purpose, until the loss has not fallen in ``steps`` steps. What cannot be traced (clamped, written out by
    hand) is not told, but for ``nll_loss`` where the loss is negative, which no log probability gives. Targets of a
    regression that are partly out of reach are ``info`` where nine tenths of their variance are explained anyway.

Limits:
    margin: 0.5. Our choice.
    steps: 50. Our choice.
    falling: 0.9. The loss counts as falling once it is below nine tenths of its start. Our choice.

What to try:
    Hand the last layer's raw outputs to ``cross_entropy`` or ``binary_cross_entropy_with_logits``, and apply softmax or
    sigmoid to predictions only. For a regression, end in a linear layer, or bring the targets into the range.

References:
    Goodfellow et al., Deep Learning, 2016, section 6.2.2: Output Units.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Listened, LossCall, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 4, True)]), Evidence([Watched("fc.weight", 4, True)])
    >>> for evidence, fed_by in ((sick, "softmax"), (well, "")):
    ...     evidence.add(0, [1.0], loss=2.3)
    ...     evidence.add_reading(Listened(0, losses=(LossCall("cross_entropy", "fc.weight", fed_by, classes=10),)))
    >>> RULE(sick)[0].severity, round(RULE(sick)[0].value, 3)
    ('warning', 1.461)
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lightning_weightwatch.evidence import Evidence, LossCall
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._learning import chance_ratio, learns, loss_calls

NAME = "loss_output_mismatch"
_INF = float("inf")
_RANGES = {  # of the activation functions
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "relu": (0.0, _INF),
    "softplus": (0.0, _INF),
    "gelu": (-0.17, _INF),
    "silu": (-0.28, _INF),
    "elu": (-1.76, _INF),  # selu's, the widest of its family
    "log_softmax": (-_INF, 0.0),
    "logsigmoid": (-_INF, 0.0),
}
_LOGITS = "Hand the raw outputs of the last layer to the loss; it applies softmax or sigmoid itself."
_LOGS = "Hand the output of log_softmax to nll_loss, or the raw outputs to cross_entropy."
_PROBABILITIES = "Hand the raw outputs to binary_cross_entropy_with_logits, which applies the sigmoid itself."
_NO_PROBABILITY = "outputs that are no probabilities"
_WANTED = {
    "binary_cross_entropy": {"sigmoid", "hardsigmoid", "hardtanh", "softmax"},
    "nll_loss": {"log_softmax", "logsigmoid"},
}
_REGRESSIONS = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}


@dataclass(frozen=True)
class _Run:
    """What is asked of the run beside its calls."""

    learning: bool | None
    is_stuck: bool
    is_negative: bool
    level: float
    margin: float


@dataclass(frozen=True)
class _Fault:
    """What is wrong with a call, without its place."""

    severity: Severity
    value: float
    limit: float
    unit: str
    why: str
    try_first: str = _LOGITS


def check(evidence: Evidence, *, margin: float = 0.5, steps: int = 50, falling: float = 0.9) -> Iterator[Finding]:
    """Look at every kind of call; one that is at fault in half of the passes is told."""
    calls = loss_calls(evidence)
    if not calls or not len(evidence):
        return
    learning = learns(evidence, falling=falling)
    is_stuck = learning is False and len(evidence) >= steps
    is_negative = bool((evidence.losses < -1e-3).any())
    run = _Run(learning, is_stuck, is_negative, chance_ratio(evidence), margin)
    kinds: dict[tuple[str, str, str], list[tuple[int, _Fault | None]]] = {}
    for heard, call in calls:
        fault = next(filter(None, (look(call, run) for look in _LOOKS)), None)
        kinds.setdefault((call.function, call.after, call.fed_by), []).append((heard.step, fault))
    for (_, after, _), seen in kinds.items():
        faults = [(step, fault) for step, fault in seen if fault is not None]
        if faults and len(faults) >= len(seen) / 2:
            yield _finding(evidence, after, faults[0][0], faults[-1][1])


def _single_unit(call: LossCall, _: _Run) -> _Fault | None:
    is_class = call.function in ("cross_entropy", "nll_loss") and call.classes == 1
    if not (call.one_unit or is_class):
        return None
    why = f"{call.function} sees a softmax over a single unit, which is 1 whatever the network says"
    remedy = "Give the last layer one unit per class, or use binary_cross_entropy_with_logits on the single one."
    return _Fault("critical", 1.0, 2.0, "units of a softmax", why, remedy)


def _squashed(call: LossCall, run: _Run) -> _Fault | None:
    """Look for logits that were squashed; what the loss cannot undercut then follows from their range."""
    is_binary = call.function == "binary_cross_entropy_with_logits"
    if call.fed_by not in _RANGES or not (is_binary or call.function == "cross_entropy"):
        return None
    low, high = _RANGES[call.fed_by]
    if is_binary:
        floor = float(np.logaddexp(0.0, -high) + np.logaddexp(0.0, low)) / 2
    else:
        floor = float(np.log1p((max(call.classes, 2) - 1) * np.exp(low - high)))
    if not is_binary and floor == 0:  # an open range: one end is enough to tell classes apart
        if call.fed_by != "relu":
            return None
        severity: Severity = "warning" if run.is_stuck else "info"
    else:
        severity = "warning"
    why = f"{call.function} takes logits but is fed by {call.fed_by}, so that the loss stays above {floor:.3g}"
    return _Fault(severity, floor, 0.0, "nats, the least loss within reach", why)


def _no_probability(call: LossCall, run: _Run) -> _Fault | None:
    """Look for outputs that are no probabilities, or no logarithms of them; what is fed by nothing known may be."""
    wanted = _WANTED.get(call.function)
    is_known = bool(call.fed_by) or (call.function == "nll_loss" and run.is_negative)
    if wanted is None or call.fed_by in wanted or not is_known:
        return None
    source = f"is fed by {call.fed_by}" if call.fed_by else "the loss is negative, which none of them gives"
    if call.function == "nll_loss":
        return _Fault("warning", 1.0, 0.0, _NO_PROBABILITY, f"nll_loss takes log probabilities, but {source}", _LOGS)
    why = f"binary_cross_entropy takes probabilities, but {source}"
    return _Fault("warning", 1.0, 0.0, _NO_PROBABILITY, why, _PROBABILITIES)


def _targets_of_no_class(call: LossCall, _: _Run) -> _Fault | None:
    away = max(-call.target_least, call.target_greatest - 1)
    if not call.function.startswith("binary_cross_entropy") or not away > 1e-3:
        return None
    span = f"{call.target_least:.3g} to {call.target_greatest:.3g}"
    why = f"{call.function} takes targets from 0 to 1, and they go from {span}"
    return _Fault("warning", away, 0.0, "distance of a target from 0 to 1", why, "Bring the targets to 0 and 1.")


def _out_of_range(call: LossCall, run: _Run) -> _Fault | None:
    """Look for targets of a regression beyond the range of the output activation."""
    low, high = _RANGES.get(call.fed_by, (-_INF, _INF))
    beyond, room = max(low - call.target_least, call.target_greatest - high), run.margin * call.target_std
    if call.function not in _REGRESSIONS or not beyond > max(room, 1e-3):
        return None
    severity: Severity = "info" if run.level < 0.1 else "warning"
    if not low <= call.target_mean <= high:
        severity = "warning" if run.learning else "critical"
    span = f"{call.target_least:.3g} to {call.target_greatest:.3g}"
    why = f"{call.function} has targets from {span}, but is fed by {call.fed_by}, which gives {low:g} to {high:g}"
    remedy = f"End in a linear layer in place of {call.fed_by}, or bring the targets into its range."
    return _Fault(severity, beyond, room, "distance of a target from the range of the output", why, remedy)


def _finding(evidence: Evidence, after: str, since: int, fault: _Fault) -> Finding:
    since = min(since, evidence.steps[-1])
    return Finding(
        rule=NAME,
        severity=fault.severity,
        step=evidence.steps[-1],
        since_step=since,
        parameters=(after,) if after else (),
        value=float(fault.value),
        limit=float(fault.limit),
        unit=fault.unit,
        saw=f"{fault.why} (limit {fault.limit:.3g}), {f'after {after}, ' if after else ''}since step {since}.",
        try_first=fault.try_first,
    )


_LOOKS: tuple[Callable[[LossCall, _Run], _Fault | None], ...] = (
    _single_unit,
    _squashed,
    _no_probability,
    _targets_of_no_class,
    _out_of_range,
)
RULE = Rule(name=NAME, check=check)
