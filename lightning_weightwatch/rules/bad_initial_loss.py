"""A first loss that is not that of a network which knows nothing yet.

What it sees:
    The loss of the first batch beside what it is for an output that says nothing: the logarithm of the number of
    classes, and for a squared error what a prediction of 0 gives. Only where a single loss function of torch is called,
    its loss is the plain mean, and the targets tell what guessing would give.

Why it matters:
    An untrained classifier that is sure of itself is mostly wrong: its first steps only take back what the weights say
    by chance. A regression whose targets lie far from 0 spends them on moving one bias. A loss far below that of a
    guess means that the answer reaches the network, or that its weights have been trained.

When it is not a problem:
    It often passes by itself in some hundred steps, so regressions are never more than ``info``. Where inputs are far
    from unit scale, that is told by ``input_scale``, and here as ``info``. Where outputs are known to be small,
    something else is in the loss (a penalty, a factor), and nothing is said. Heads that begin at the frequencies of the
    classes are below the logarithm, and right. Nothing is said of weights from a checkpoint.

Limits:
    times: 10 times the loss of a guess, told as ``warning`` for a classification. Of 462 plain networks with gains of
        0.3 to 3 that were trained on digits by SGD, 68 began above it and 59 of these failed; by Adam 32 of 68.
    note: 3 times, told as ``info``: 22 more began there, and all trained. PyTorch's default weights had 1.0 times, ReLU
        networks drawn by He's rule 2.1 at most, and 137 networks of torchvision, timm and transformers 2.0, but for
        one that had 3.7.
    leak: 0.5 times the loss of a guess that knows how frequent each target is. Our choice.
    offset: 0.5. So much of a regression's loss is the square of the mean of its targets. Our choice.

What to try:
    A last layer that begins small or at zero; its bias at the mean of the targets, or at the logarithm of the
    frequencies of rare classes.

References:
    Karpathy, A Recipe for Training Neural Networks, 2019: verify the loss at initialisation.
    Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002, on the bias of a last layer.

Example:
    >>> from lightning_weightwatch.evidence import Initial, Layer, LossCall, Signal
    >>> def passed(loss):
    ...     call = LossCall("cross_entropy", after="head.weight", classes=10, chance=2.29)
    ...     head = Layer("head.weight", rms=9.0, feeds_loss=True)
    ...     return Initial([], Signal((head,), loss=loss, losses=(call,)))
    >>> sick, well = RULE(passed(31.0)), RULE(passed(2.4))
    >>> sick[0].severity, round(sick[0].value, 1)
    ('warning', 13.5)
    >>> well
    ()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightning_weightwatch.evidence import Evidence, Initial, Layer, Listened, LossCall, Signal, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._code import line
from lightning_weightwatch.rules._initials import as_code, as_initial
from lightning_weightwatch.rules._inputs import off_scale
from lightning_weightwatch.rules._start import guess

NAME = "bad_initial_loss"
_LOUD = 1.0  # logits of such a size add about a half to the loss of a guess
_LARGE = 3.0  # times what comes in is more than a last layer should make of it


def check(
    subject: Initial | Sequence[Verdict],
    *,
    times: float = 10.0,
    note: float = 3.0,
    leak: float = 0.5,
    offset: float = 0.5,
) -> Iterator[Finding]:
    """Hold the first loss against that of a guess."""
    initial = as_initial(subject)
    signal = initial.signal
    if signal is None or not initial.is_drawn or len(signal.losses) != 1 or not np.isfinite(signal.loss):
        return
    call = signal.losses[0]
    if not call.chance > 0:  # not a plain mean, or nothing is to be learnt
        return
    head = next((layer for layer in signal.layers if layer.name == call.after), None)
    if signal.loss < leak * call.chance and not initial.pretrained:
        yield _low(signal, call, leak)
    elif call.classes:
        yield from _high(initial, signal, call, head, (note, times))
    elif call.target_mean**2 > offset * signal.loss and signal.loss > note * call.chance:
        yield _raw(initial, signal, call, note)


def _high(
    initial: Initial, signal: Signal, call: LossCall, head: Layer | None, levels: tuple[float, float]
) -> Iterator[Finding]:
    """Tell of a classifier that is sure of itself, if its outputs are not known to be too small for that."""
    ratio, raw = signal.loss / guess(call), _off_scale(signal)
    if ratio <= levels[0] or (head is not None and head.rms < _LOUD):
        return
    is_far = ratio > levels[1] and not raw
    limit = levels[is_far]
    size = f"; the outputs of {head.name} have a root mean square of {head.rms:.2g}" if head is not None else ""
    if raw:
        try_first = f"Normalise {raw}."
    elif head is not None:
        try_first = f"Begin the last layer smaller: {_smaller(initial, head)}."
    else:
        try_first = "Begin the last layer smaller, or at zero."
    saw = f"{_guessed(signal, call)}, {ratio:.1f} times as much (limit {limit:g}){size}."
    yield _finding(call, "warning" if is_far else "info", ratio, limit, saw, try_first)


def _low(signal: Signal, call: LossCall, leak: float) -> Finding:
    ratio = signal.loss / call.chance
    saw = (
        f"{_guessed(signal, call)}, {ratio:.2g} times what the frequencies of the targets alone allow (limit {leak:g})."
    )
    try_first = (
        "See whether the target reaches the network among its inputs, or whether its weights were trained before."
    )
    return _finding(call, "info", ratio, leak, saw, try_first)


def _raw(initial: Initial, signal: Signal, call: LossCall, times: float) -> Finding:
    ratio = signal.loss / call.chance
    saw = (
        f"{_guessed(signal, call)}, {ratio:.1f} times the variance of the targets (limit {times:g}), as their mean is "
        f"{call.target_mean:.3g}."
    )
    owner = call.after.rpartition(".")[0]
    biases = (v for v in initial if call.after and v.kind == "bias" and v.name.rpartition(".")[0] == owner)
    bias = next((v for v in biases if len(v.shape) == 1), None)
    try_first = "Standardise the targets, or start the last bias at their mean."
    if bias is not None:
        where = f"nn.init.constant_({as_code(bias.name)}, {call.target_mean:.3g})"
        try_first = f"Start the last bias at the mean of the targets: {where}."
    return _finding(call, "info", ratio, times, saw, try_first)


def _guessed(signal: Signal, call: LossCall) -> str:
    return f"The first {call.function} is {signal.loss:.3g} where a guess has {guess(call):.3g}"


def _smaller(initial: Initial, head: Layer) -> str:
    """Return the line that draws a last layer anew; at zero, where what comes in is too large for any draw."""
    shape = next((v.shape for v in initial if v.name == head.name), (head.units, 1))
    is_own = head.kind == "embedding" or not head.spread <= _LARGE * head.came_in
    return line(head.name, head.kind, shape, "") if is_own else f"nn.init.zeros_({as_code(head.name)})"


def _off_scale(signal: Signal) -> str:
    """Return which input is far from unit scale, and how far; nothing where none is."""
    evidence = Evidence([])
    evidence.add_reading(Listened(0, inputs=signal.inputs))
    found = [one for one in off_scale(evidence) if one.matters]
    return f"{found[0].name} ({found[0].what} {found[0].value:.3g})" if found else ""


def _finding(call: LossCall, severity: Severity, value: float, limit: float, saw: str, try_first: str) -> Finding:
    return Finding(
        rule=NAME,
        severity=severity,
        step=0,
        since_step=0,
        parameters=(call.after,) if call.after else (),
        value=value,
        limit=limit,
        unit="times the loss of a guess",
        saw=saw,
        try_first=try_first,
    )


RULE = Rule(name=NAME, check=check, subject="initialisation")
