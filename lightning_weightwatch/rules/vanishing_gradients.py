"""Gradients that shrink on their way back, until the first layers hardly learn.

What it sees:
    Two forms. The depth profile: a straight line through log10 gradient RMS of the weight matrices in forward order,
    each the median of the last ``steps`` steps, climbs by more than ``decades``. The blocked signal: a whole matrix
    whose gradient was exactly zero in each of the last ``zero_steps`` steps while others received one.

Why it matters:
    A step of SGD moves a weight in proportion to its gradient. Where that is a thousandth of the head's, the layer
    stays what its initialisation made it; where it is exactly zero, no optimizer moves it at all.

When it is not a problem:
    While the loss falls it is told as ``info``, and a blocked matrix as ``warning``: Adam and its kin rescale each
    weight's step, and a run that has converged has small gradients because it succeeded. A residual branch, a LoRA
    matrix or a head that begins at zero blocks the signal for a step or two only. Parameters without a gradient
    (frozen, unused) are left out.

Limits:
    decades: 3. Healthy networks of many kinds stayed within 1.8, deep sigmoid networks reached 6.4.
    r_squared: 0.55, of at least ``matrices`` (5) matrices, and more than a single step between two levels explains:
        neither an odd layer nor two networks side by side are a trend. Our choice.
    steps: 20 steps make a median that a single batch cannot move. Our choice.
    zero_steps: 30, counted after the first ``settle`` (10) steps: no healthy run had a matrix at zero that long.
    falling: 0.9. The loss counts as falling once it is below nine tenths of its start. Our choice.

What to try:
    ReLU-like activations in place of sigmoid or tanh, residual connections or normalisation in deep networks, and an
    initialisation made for the activation.

References:
    Hochreiter, Untersuchungen zu dynamischen neuronalen Netzen, 1991.
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    Pascanu et al., On the difficulty of training recurrent neural networks, 2013, arXiv:1211.5063.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> layers = [Watched(f"fc{i}.weight", 1, True) for i in range(1, 6)]
    >>> sick, well = Evidence(layers), Evidence(layers)
    >>> for step in range(20):
    ...     sick.add(step, [1e-10, 1e-8, 1e-6, 1e-4, 1e-2], loss=2.3)
    ...     well.add(step, [1e-2, 2e-2, 1e-2, 3e-2, 2e-2], loss=2.3)
    >>> RULE(sick)[0].parameters
    ('fc1.weight', 'fc2.weight', 'fc3.weight')
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._profile import Profile, depth_profile
from lightning_weightwatch.rules._words import listed, start_of_last_run

NAME = "vanishing_gradients"


def check(
    evidence: Evidence,
    *,
    decades: float = 3.0,
    r_squared: float = 0.55,
    matrices: int = 5,
    steps: int = 20,
    zero_steps: int = 30,
    settle: int = 10,
    falling: float = 0.9,
) -> Iterator[Finding]:
    """Look at the depth profile, then for blocked matrices."""
    learning = evidence.loss_ratio() < falling
    profile = depth_profile(evidence, steps=steps, matrices=matrices)
    if profile is not None and profile.is_trend and profile.decades > decades and profile.r_squared > r_squared:
        yield from _fading(profile, decades, "info" if learning else "warning")
    yield from _blocked(evidence, zero_steps, settle, "warning" if learning else "critical")


def _fading(profile: Profile, decades: float, severity: Severity) -> Iterator[Finding]:
    top = int(np.argmax(profile.log_rms))
    low = profile.log_rms < profile.log_rms[top] - decades
    ill = tuple(name for name, is_low in zip(profile.names, low, strict=True) if is_low)
    if not ill:  # the line through a single step is steeper than the step
        return
    worst = int(np.argmin(profile.log_rms))
    yield Finding(
        rule=NAME,
        severity=severity,
        step=profile.last_step,
        since_step=profile.first_step,
        parameters=ill,
        value=profile.decades,
        limit=decades,
        unit="decades from the first matrix to the last",
        saw=(
            f"Gradient RMS falls by {profile.decades:.1f} decades from the last layer to the first (limit "
            f"{decades:.1f}): {10.0 ** profile.log_rms[top]:.1e} in {profile.names[top]}, "
            f"{10.0 ** profile.log_rms[worst]:.1e} in {profile.names[worst]}, over steps {profile.first_step} to "
            f"{profile.last_step}. Hardly learning: {listed(ill)}."
        ),
        try_first="Replace sigmoid or tanh between the layers by ReLU or GELU; if they are, add residual connections.",
    )


def _blocked(evidence: Evidence, zero_steps: int, settle: int, severity: Severity) -> Iterator[Finding]:
    if len(evidence) < zero_steps or evidence.steps[-zero_steps] < settle:
        return
    zero = evidence.norms == 0
    blocked = zero[-zero_steps:].all(axis=0)
    others_learn = (evidence.norms[-zero_steps:, ~blocked] > 0).any()
    columns = [i for i in evidence.matrices if blocked[i]]
    if not columns or not others_learn:
        return
    ill = tuple(evidence.parameters[i].name for i in columns)
    since = evidence.steps[min(start_of_last_run(zero[:, i]) for i in columns)]
    in_a_row = sum(step >= since for step in evidence.steps)
    yield Finding(
        rule=NAME,
        severity=severity,
        step=evidence.steps[-1],
        since_step=since,
        parameters=ill,
        value=float(in_a_row),
        limit=float(zero_steps),
        unit="steps in a row with a gradient of exactly 0",
        saw=(
            f"The gradient of {listed(ill)} was exactly 0 in each of the last {in_a_row} steps (limit {zero_steps}), "
            f"since step {since}, while other parameters received one."
        ),
        try_first="Look for units that are all dead or a zero-initialised layer between it and the loss.",
    )


RULE = Rule(name=NAME, check=check)
