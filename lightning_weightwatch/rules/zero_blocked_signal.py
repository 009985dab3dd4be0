"""A weight matrix that is zero throughout and stays so: no gradient passes it, and what lies before it never learns.

What it sees:
    A matrix that was exactly zero at the last snapshot and was not moved by that step, and matrices before it in the
    forward pass (or itself) whose gradient was exactly zero in each of the last ``steps`` steps, or in each step of
    the run so far, if there were ``first_steps``. In an audit the backward passes at the start and after each of the
    first steps, if there were ``passes``, and at least one matrix of zeros that got no gradient in any of them.

Why it matters:
    The gradient that a layer passes back is multiplied by its weights. Behind a matrix of zeros nothing arrives; and
    where a ReLU or tanh stands between two such matrices, neither gets a gradient that could ever move it away from
    zero. Only the last biases learn, and the network predicts the same for every input.

When it is not a problem:
    A residual branch, a LoRA matrix, a head or a gate that begins at zero gets a gradient itself and moves in the first
    step; what lies before it waits for one step or two. While the loss falls it is told as a warning: only a part of
    the network is blocked. So it is in an audit, unless more than ``most`` of the trained matrices get no gradient.
    An audit says nothing where no step may have moved anything yet, where several optimizers take turns, of an output
    that has no part in the first loss, and of what lies before a layer that is dead for another reason.

Limits:
    first_steps: 10, from the first step on: healthy networks were blocked for two steps at most.
    steps: 30, later in a run. No healthy run had a matrix at zero that long.
    falling: 0.9. The loss counts as falling once it is below nine tenths of its start. Our choice.
    passes: 3, in an audit: a head, a branch and a gate that all begin at zero have let everything pass by then.
    most: 0.5 of the trained matrices make it critical in an audit. Our choice.

What to try:
    Draw the weights at random; at most one matrix of a chain may begin at zero, and one of LoRA's two. A zero matrix
    that is frozen, or in no optimizer, blocks for ever as well.

References:
    Goodfellow et al., Deep Learning, 2016, section 8.4: Parameter Initialization Strategies.
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685: one of two begins at zero.
    Zhang et al., Fixup Initialization, 2019, arXiv:1901.09321: branches that begin at zero.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import Evidence, Snapshot, Watched
    >>> layers, names = [Watched(f"fc{i}.weight", 4, True) for i in (1, 2)], ("fc1.weight", "fc2.weight")
    >>> sick, well = Evidence(layers), Evidence(layers)
    >>> for step in range(10):
    ...     sick.add(step, [0.0, 0.0], loss=2.3)
    ...     well.add(step, [0.0 if step == 0 else 0.1, 0.2], loss=2.3)
    >>> still = {"weight_norm": np.array([0.0, 0.0]), "update_norm": np.array([0.0, 0.0])}
    >>> moved = {"weight_norm": np.array([1.0, 0.0]), "update_norm": np.array([0.0, 0.1])}
    >>> sick.add_snapshot(Snapshot(0, names, still))
    >>> well.add_snapshot(Snapshot(0, names, moved))
    >>> RULE(sick)[0].parameters, RULE(sick)[0].severity
    (('fc1.weight', 'fc2.weight'), 'critical')
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lightning_weightwatch.evidence import Evidence, Initial, Signal, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._initials import as_initial, forward_matrices
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._words import listed
from lightning_weightwatch.rules._zeros import last_order, order, streak, zero_matrices

NAME = "zero_blocked_signal"


def check(
    subject: Evidence | Initial | Sequence[Verdict],
    *,
    first_steps: int = 10,
    steps: int = 30,
    falling: float = 0.9,
    passes: int = 3,
    most: float = 0.5,
) -> Iterator[Finding]:
    """Look for zero matrices, then for what they block: in a training, or in the first passes of an audit."""
    if isinstance(subject, Evidence):
        yield from _in_training(subject, first_steps, steps, falling)
    else:
        yield from _at_the_start(as_initial(subject), passes, most)


def _at_the_start(initial: Initial, passes: int, most: float) -> Iterator[Finding]:
    signal = initial.signal
    if signal is None or len(signal.optimizers) > 1:
        return
    ordered = forward_matrices(initial)
    places = {v.name: place for place, v in enumerate(ordered)}
    zero = [v.name for v in ordered if v.constant == 0]
    trained = [name for name in places if len(signal.gradients.get(name, ())) >= passes]
    silent = [name for name in trained if not any(signal.gradients[name])]
    blocking = _blocking(zero, silent, places, signal)
    if blocking and _has_moved(zero, signal):
        behind = [name for name in silent if name not in zero and places[name] < places[blocking[-1]]]
        yield _finding(
            blocking,
            behind,
            "critical" if len(silent) > most * len(trained) else "warning",
            value=passes,
            limit=passes,
            unit="backward passes",
            when=f"of the first {passes} backward passes (limit {passes}), at the start and after each step",
        )


def _blocking(zero: Sequence[str], silent: Sequence[str], places: Mapping[str, int], signal: Signal) -> list[str]:
    """Return matrices of zeros without a gradient; and untrained ones that are asked for one, with such before them.

    No fault of its zeros is an output that has no part in this loss, and what lies before a layer that is dead though
    something comes in.
    """
    asked = {layer.name for layer in signal.layers if layer.gradient > 0}
    unused = {layer.name for layer in signal.layers if layer.feeds_loss and layer.gradient == 0}
    drawn = [layer for layer in signal.layers if layer.name in places and layer.name not in zero]
    dead = [places[layer.name] for layer in drawn if layer.dead == 1 and layer.came_in > 0]
    first = min((places[name] for name in silent), default=len(places))
    stopping = [n for n in zero if n not in signal.gradients and n in asked and places[n] > first]
    found = [n for n in zero if (n in silent and n not in unused) or n in stopping]
    return [n for n in found if not any(place > places[n] for place in dead)]


def _has_moved(zero: Sequence[str], signal: Signal) -> bool:
    """Whether steps were made, as far as they show: a matrix of zeros that moved lets others have a gradient.

    None moves where a GradScaler skips the first steps, or where the learning rate is still 0.
    """
    woken = any(not any(passes[:1]) and any(passes) for passes in signal.gradients.values())
    return woken or not _moving(zero, signal)


def _moving(zero: Sequence[str], signal: Signal) -> list[str]:
    """Return the matrices of zeros that had a gradient in the first pass."""
    return [name for name in zero if any(signal.gradients.get(name, ())[:1])]


def _in_training(evidence: Evidence, first_steps: int, steps: int, falling: float) -> Iterator[Finding]:
    zero = zero_matrices(evidence)
    if not zero:
        return
    last = last_order(evidence, zero)
    begins: dict[int, int] = {}
    for i in evidence.matrices:
        norms = evidence.norms[:, i]
        in_a_row, begin = streak(norms)
        from_the_first = len(evidence) < evidence.window and not (norms > 0).any()
        if in_a_row >= (first_steps if from_the_first else steps) and order(evidence, i) <= last:
            begins[i] = begin
    blocked = [i for i in begins if i not in zero]
    blocking = [i for i in zero if i in begins or any(order(evidence, j) < order(evidence, i) for j in blocked)]
    if blocking:
        begin = min(begins.values())
        since, in_a_row, limit = evidence.steps[begin], len(evidence) - begin, steps if begin else first_steps
        found = _finding(
            [evidence.parameters[i].name for i in blocking],
            [evidence.parameters[i].name for i in blocked],
            "warning" if learns(evidence, falling=falling) else "critical",
            value=in_a_row,
            limit=limit,
            unit="steps in a row",
            when=f"of the last {in_a_row} steps (limit {limit}), since step {since}",
        )
        yield replace(found, step=evidence.steps[-1], since_step=since)


def _finding(
    zero: Sequence[str], behind: Sequence[str], severity: Severity, *, value: int, limit: int, unit: str, when: str
) -> Finding:
    before = f" No gradient reaches {listed(behind)} before it." if behind else ""
    return Finding(
        rule=NAME,
        severity=severity,
        step=0,
        since_step=0,
        parameters=(*zero, *behind),
        value=float(value),
        limit=float(limit),
        unit=f"{unit} without a gradient, behind a matrix of zeros",
        saw=(
            f"Exactly zero throughout, and not moving: {listed(zero)}.{before} Their gradients were exactly 0 in each "
            f"{when}."
        ),
        try_first="Draw these weights at random, such as by the layer's reset_parameters().",
    )


RULE = Rule(name=NAME, check=check, subject="both")
