"""Gradients that shrink on their way back, until the first layers hardly learn.

What it sees:
    Three forms. The depth profile: a straight line through log10 gradient RMS of the weight matrices in forward order,
    each the median of the last ``steps`` steps, makes the first less than ``ratio`` of the last. The same line through
    the biases of these layers, where the loss does not fall. The blocked signal: a whole matrix whose gradient was
    exactly zero in each of the last ``zero_steps`` steps while others received one.

Why it matters:
    A step of SGD moves a weight in proportion to its gradient. Where that is a thousandth of the head's, the layer
    stays what its initialisation made it; where it is exactly zero, no optimizer moves it at all. Weights that are too
    small let the signal fade forwards as they let it fade backwards, and the two cancel in the matrices' gradients, but
    not in those of the biases.

When it is not a problem:
    Adam and its kin rescale each weight's step. Where full statistics show that these layers move like the others, it
    is ``info`` until the loss has not fallen in ``patience`` steps, and biases count only if the square of ``ratio`` is
    passed. Where it is not known how they move, it is ``info`` while the loss falls: a run that has converged has small
    gradients because it succeeded. A residual branch, a LoRA matrix or a head that begins at zero blocks the signal for
    a step or two only. Parameters without a gradient (frozen, unused) are left out. A blocked matrix is ``critical``,
    one step less while the loss falls, and one step less where matrices before it receive a gradient by another way,
    as beside an expert that is not asked. It is not told where a layer of dead units or a matrix of zeros explains it:
    ``dead_units`` and ``zero_blocked_signal`` tell these.

Limits:
    ratio: 1e-3. Healthy networks of many kinds stayed above 1.6e-2, deep sigmoid networks reached 4e-7.
    r_squared: 0.55, of at least ``matrices`` (5) matrices, and more than a single step between two levels explains:
        neither an odd layer nor two networks side by side are a trend. Our choice.
    steps: 20 steps make a median that a single batch cannot move; half of them, where it is a tenth of ``ratio``. Our
        choice.
    moving: 0.1. Layers move like the others if their update ratio is above a tenth of the largest. Our choice.
    patience: 100 steps. Our choice.
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

from collections.abc import Iterator, Sequence

import numpy as np

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import SEVERITIES, Finding, Rule, Severity
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._profile import Profile, bias_columns, depth_profile, steep_since
from lightning_weightwatch.rules._runs import start_of_last_run
from lightning_weightwatch.rules._units import dead_parameters
from lightning_weightwatch.rules._words import listed
from lightning_weightwatch.rules._zeros import last_order, order, zero_matrices

NAME = "vanishing_gradients"
_REPLACE = "Replace sigmoid or tanh between the layers by ReLU or GELU; if they are, add residual connections."
_RESCALE = "Draw the weights with a larger gain, made for the activation, or normalise between the layers."
_DEAD = 0.9  # of a layer's units: then it is told as dead


def check(
    evidence: Evidence,
    *,
    ratio: float = 1e-3,
    r_squared: float = 0.55,
    matrices: int = 5,
    steps: int = 20,
    moving: float = 0.1,
    patience: int = 100,
    zero_steps: int = 30,
    settle: int = 10,
    falling: float = 0.9,
) -> Iterator[Finding]:
    """Look at the depth profile of the matrices, then of the biases, then for blocked matrices."""
    learning = learns(evidence, falling=falling)
    is_stuck = learning is False and len(evidence) >= patience
    profile = _steep(evidence, ratio, steps, matrices, r_squared)
    if profile is not None:
        hardly = _hardly_move(evidence, profile, ratio, moving)
        sure = hardly or is_stuck or (hardly is None and not learning)
        yield from _fading(evidence, profile, ratio, "warning" if sure else "info")
    elif learning is False:
        is_sgd = all("SGD" in name for name in evidence.setup.optimizers)
        limit = ratio if is_sgd else ratio**2
        profile = _steep(evidence, limit, steps, matrices, r_squared, bias_columns(evidence))
        if profile is not None:
            yield from _fading(evidence, profile, limit, "warning" if is_sgd or is_stuck else "info", " of the biases")
    yield from _blocked(evidence, zero_steps, settle, learning)


def _steep(
    evidence: Evidence,
    ratio: float,
    steps: int,
    matrices: int,
    r_squared: float,
    columns: Sequence[int] | None = None,
) -> Profile | None:
    """Return the profile if it fades by more than the limit; over half the steps if it does so by far."""
    for count, limit in ((steps, ratio), (steps // 2, ratio / 10)):
        profile = depth_profile(evidence, steps=count, matrices=matrices, columns=columns)
        if profile is not None and profile.is_trend and profile.r_squared > r_squared and profile.ratio < limit:
            return profile
    return None


def _hardly_move(evidence: Evidence, profile: Profile, ratio: float, moving: float) -> bool | None:
    """Whether a step moved some layer at the low end far less than others; ``None`` where that is not known."""
    moves = evidence.snapshots[-1].column("update_ratio") if evidence.snapshots else {}
    known = [moves[name] for name in profile.names if name in moves]
    slow = [moves[name] for name in _low(profile, ratio) if name in moves]
    return min(slow) < moving * max(known) if slow else None


def _low(profile: Profile, ratio: float) -> tuple[str, ...]:
    """Return the parameters whose gradient is below the ratio of the largest."""
    low = profile.log_rms < profile.log_rms.max() + np.log10(ratio)
    return tuple(name for name, is_low in zip(profile.names, low, strict=True) if is_low)


def _fading(evidence: Evidence, profile: Profile, ratio: float, severity: Severity, of: str = "") -> Iterator[Finding]:
    low = _low(profile, ratio)
    if not low:  # the line through a single step is steeper than the step
        return
    layers = {name.rpartition(".")[0] for name in low}
    matrices = [evidence.parameters[i] for i in evidence.matrices]
    ill = tuple(p.name for p in matrices if p.layer in layers) if of else low
    since = steep_since(evidence, profile, -np.log10(ratio))
    top, worst = int(np.argmax(profile.log_rms)), int(np.argmin(profile.log_rms))
    yield Finding(
        rule=NAME,
        severity=severity,
        step=profile.last_step,
        since_step=since,
        parameters=ill,
        value=profile.ratio,
        limit=ratio,
        unit=f"gradient RMS{of} in the first layer over that in the last",
        saw=(
            f"Gradient RMS{of} falls to {profile.ratio:.1e} of the last layer's on its way to the first (limit "
            f"{ratio:.0e}): {10.0 ** profile.log_rms[top]:.1e} in {profile.names[top]}, "
            f"{10.0 ** profile.log_rms[worst]:.1e} in {profile.names[worst]}, over steps {since} to "
            f"{profile.last_step}. Hardly learning: {listed(ill)}."
        ),
        try_first=_RESCALE if of else _REPLACE,
    )


def _blocked(evidence: Evidence, zero_steps: int, settle: int, learning: bool | None) -> Iterator[Finding]:
    if len(evidence) < zero_steps or evidence.steps[-zero_steps] < settle:
        return
    zero = evidence.norms == 0
    blocked = zero[-zero_steps:].all(axis=0)
    others = np.asarray((evidence.norms[-zero_steps:] > 0).any(axis=0))
    columns = _unexplained(evidence, [i for i in evidence.matrices if blocked[i]])
    if not columns or not others.any():
        return
    place = min(evidence.matrices.index(i) for i in columns)
    is_bypassed = bool(others[evidence.matrices[:place]].any())
    severity = SEVERITIES[(1 if is_bypassed else 2) - bool(learning)]
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


def _unexplained(evidence: Evidence, columns: list[int]) -> list[int]:
    """Leave out what lies at or before a matrix of zeros or a dead layer, or takes what a dead layer gives."""
    zero = zero_matrices(evidence)
    dead = list(dead_parameters(evidence, share=_DEAD)) if evidence.dead and columns else []
    matrices, layers = evidence.matrices, {evidence.parameters[i].layer for i in dead}
    in_dead = [evidence.parameters[i].layer in layers for i in matrices]
    near_dead = {i for k, i in enumerate(matrices) if any(in_dead[max(k - 1, 0) : k + 1])}
    last = last_order(evidence, [*zero, *dead])
    return [i for i in columns if order(evidence, i) > last and i not in near_dead]


RULE = Rule(name=NAME, check=check)
