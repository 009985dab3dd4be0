"""A weight matrix that is zero throughout and stays so: no gradient passes it, and what lies before it never learns.

What it sees:
    A matrix that was exactly zero at the last snapshot and was not moved by that step, and matrices before it in the
    forward pass (or itself) whose gradient was exactly zero in each of the last ``steps`` steps, or in each step of
    the run so far, if there were ``first_steps``.

Why it matters:
    The gradient that a layer passes back is multiplied by its weights. Behind a matrix of zeros nothing arrives; and
    where a ReLU or tanh stands between two such matrices, neither gets a gradient that could ever move it away from
    zero. Only the last biases learn, and the network predicts the same for every input.

When it is not a problem:
    A residual branch, a LoRA matrix, a head or a gate that begins at zero gets a gradient itself and moves in the first
    step; what lies before it waits for one step or two. While the loss falls it is told as a warning: only a part of
    the network is blocked.

Limits:
    first_steps: 10, from the first step on: healthy networks were blocked for two steps at most.
    steps: 30, later in a run. No healthy run had a matrix at zero that long.
    falling: 0.9. The loss counts as falling once it is below nine tenths of its start. Our choice.

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

from collections.abc import Iterator

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._words import listed
from lightning_weightwatch.rules._zeros import last_order, order, streak, zero_matrices

NAME = "zero_blocked_signal"


def check(evidence: Evidence, *, first_steps: int = 10, steps: int = 30, falling: float = 0.9) -> Iterator[Finding]:
    """Look for zero matrices, then for what they block."""
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
        since = min(begins.values())
        yield _finding(
            evidence, blocking, blocked, since, steps if since else first_steps, learns(evidence, falling=falling)
        )


def _finding(
    evidence: Evidence, blocking: list[int], blocked: list[int], begin: int, limit: int, learning: bool | None
) -> Finding:
    zero, behind = ([evidence.parameters[i].name for i in columns] for columns in (blocking, blocked))
    since, in_a_row = evidence.steps[begin], len(evidence) - begin
    before = f" No gradient reaches {listed(behind)} before it." if behind else ""
    return Finding(
        rule=NAME,
        severity="warning" if learning else "critical",
        step=evidence.steps[-1],
        since_step=since,
        parameters=(*zero, *behind),
        value=float(in_a_row),
        limit=float(limit),
        unit="steps in a row without a gradient, behind a matrix of zeros",
        saw=(
            f"Exactly zero throughout, and not moving: {listed(zero)}.{before} Their gradients were exactly 0 in each "
            f"of the last {in_a_row} steps (limit {limit}), since step {since}."
        ),
        try_first="Draw these weights at random, such as by the layer's reset_parameters().",
    )


RULE = Rule(name=NAME, check=check)
