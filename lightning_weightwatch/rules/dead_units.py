"""Units that no gradient reaches any more, most often ReLUs that are silent for every sample.

What it sees:
    The share of a layer's units whose gradient was exactly zero in each of the last 20 steps or more. A unit is an
    element of a bias, or where there is none, a row of a weight. Where activations were listened to since then,
    they must agree: a layer whose ReLUs speak is not dead, whatever stops its gradient.

Why it matters:
    A ReLU that is zero for every sample passes no gradient, so neither its own weights nor what feeds it through it
    ever changes: it does not come back by itself. A large step, or a bias far below zero, kills many at once, and a
    layer without a living unit cuts the network in two.

When it is not a problem:
    While the loss falls it is told as ``info``: sparse autoencoders, pruned layers and experts without samples have
    many silent units on purpose. More than nine tenths are a warning even then, unless the loss has halved, and at most
    a warning where the layers before still learn by another way. The last layer's units are classes, some of which may
    be absent: it counts only where a silent activation follows it. Frozen layers and embeddings are left out, experts
    that are never asked too, and what lies before a matrix of zeros is told as ``zero_blocked_signal``.

Limits:
    some: 0.25, told as ``info``, and the share below which a finding ends. Healthy networks stayed below it.
    many: 0.5, told as ``warning``. Of units that were silent from the first step on it takes more, by three standard
        deviations of tossing a coin for each: where the input hardly matters, half of them are silent by chance.
    nearly_all: 0.9, told as ``critical``.
    steps: 20. A unit that is merely seldom active was active in one of so many batches.
    agree: 0.5. Activations must be silent in at least half that share of units to agree. Our choice.
    falling: 0.9. The loss counts as falling once it is below nine tenths of its start. Our choice.

What to try:
    A smaller learning rate or a warm-up where they died during training; biases of zero and an initialisation made for
    ReLU where they were dead from the first step; leaky ReLU or GELU, which never fall silent.

References:
    Lu et al., Dying ReLU and Initialization: Theory and Numerical Examples, 2019, arXiv:1903.06733.
    Maas et al., Rectifier Nonlinearities Improve Neural Network Acoustic Models, 2013.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import DeadUnits, Evidence, Watched
    >>> layers = [Watched("fc1.weight", 32, True), Watched("fc1.bias", 8, False, kind="bias"),
    ...           Watched("fc2.weight", 16, True, place=1)]
    >>> sick, well = Evidence(layers), Evidence(layers)
    >>> for step in range(40):
    ...     sick.add(step, [0.1, 0.1, 0.2], loss=2.3)
    ...     well.add(step, [0.1, 0.1, 0.2], loss=2.3)
    >>> nan = float("nan")
    >>> sick.add_reading(DeadUnits(39, 20, np.array([nan, 0.75, nan])))
    >>> well.add_reading(DeadUnits(39, 20, np.array([nan, 0.125, nan])))
    >>> RULE(sick)[0].parameters, RULE(sick)[0].severity
    (('fc1.bias',), 'warning')
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

from lightning_weightwatch.evidence import DeadUnits, Evidence
from lightning_weightwatch.rules._base import SEVERITIES, Finding, Rule, Severity
from lightning_weightwatch.rules._learning import eased, learns
from lightning_weightwatch.rules._units import dead_parameters, is_bypassed, silent_after
from lightning_weightwatch.rules._words import listed
from lightning_weightwatch.rules._zeros import order

NAME = "dead_units"


def check(
    evidence: Evidence,
    *,
    some: float = 0.25,
    many: float = 0.5,
    nearly_all: float = 0.9,
    steps: int = 20,
    agree: float = 0.5,
    falling: float = 0.9,
) -> Iterator[Finding]:
    """Look at the last reading, and back to the first of the readings that lead to it."""
    if not evidence.dead or not len(evidence) or evidence.dead[-1].steps < steps:
        return
    begins = _nearest_the_loss(evidence, dead_parameters(evidence, share=some, agree=agree))
    if not begins:
        return
    worst = {i: _share(evidence, i, begin) for i, begin in begins.items()}
    limits = {i: (some, many + _by_chance(evidence, i, begin), nearly_all) for i, begin in begins.items()}
    levels = {i: max(k for k, limit in enumerate(limits[i]) if share > limit or not k) for i, share in worst.items()}
    level = max(levels.values())
    told = {i: worst[i] for i in begins if levels[i] == level}
    shown = SEVERITIES[min(level, 1) if all(is_bypassed(evidence, i) for i in told) else level]
    first = evidence.dead[min(begins[i] for i in told)]
    severity = _severity(evidence, shown, learns(evidence, falling=falling))
    yield _finding(evidence, told, (some, many, nearly_all)[level], severity, first)


def _nearest_the_loss(evidence: Evidence, begins: dict[int, int]) -> dict[int, int]:
    """Leave out layers that get nothing because a later one is wholly dead, unless their own silence was heard."""
    reading = evidence.dead[-1]
    whole = [i for i in begins if reading.share[i] == 1]
    last = max(whole, key=lambda i: order(evidence, i), default=None)
    return {
        i: begin
        for i, begin in begins.items()
        if last is None
        or i not in whole
        or evidence.parameters[i].layer == evidence.parameters[last].layer
        or silent_after(evidence, i, evidence.dead[begin].step - reading.steps + 1)
    }


def _share(evidence: Evidence, column: int, begin: int) -> float:
    """Return the largest share of dead units since a reading; no more than were ever heard to be silent.

    The gradient of a bias may add up to nothing while its unit speaks: in a critic whose output counts once with a plus
    and once with a minus.
    """
    share = max(float(reading.share[column]) for reading in evidence.dead[begin:])
    first = evidence.dead[begin]
    return min([share, *silent_after(evidence, column, first.step - first.steps + 1)[:1]])


def _by_chance(evidence: Evidence, column: int, begin: int) -> float:
    """Return how much more than half of the units may be silent from the first step on without being dead.

    Where the same comes in for every sample, a unit drawn at random is silent with a chance of one half: three standard
    deviations of that.
    """
    parameter, reading = evidence.parameters[column], evidence.dead[begin]
    is_young = len(evidence) < evidence.window
    if not is_young or reading.step - reading.steps >= evidence.steps[0]:
        return 0.0
    return float(1.5 / max(parameter.shape[0] if parameter.shape else parameter.numel, 1) ** 0.5)


def _severity(evidence: Evidence, level: Severity, learning: bool | None) -> Severity:
    if learning and level == "critical" and evidence.loss_ratio() > 0.5:
        return "warning"
    return eased(level, learning)


def _finding(evidence: Evidence, told: dict[int, float], limit: float, severity: Severity, first: DeadUnits) -> Finding:
    before = [step for step in evidence.steps if step <= first.step]
    since = before[-first.steps] if len(before) >= first.steps else max(first.step - first.steps + 1, 0)
    names = tuple(evidence.parameters[i].name for i in told)
    worst = max(told, key=lambda i: told[i])
    return Finding(
        rule=NAME,
        severity=severity,
        step=max(evidence.steps[-1], since),
        since_step=since,
        parameters=names,
        value=told[worst],
        limit=limit,
        unit="share of units without a gradient",
        saw=(
            f"{told[worst]:.0%} of the units of {evidence.parameters[worst].name} (limit {limit:.0%}) had a gradient "
            f"of exactly 0 in each of {first.steps} steps in a row, from step {since} on. So it is in {listed(names)}."
        ),
        try_first="Lower the learning rate if they died during training; if not, draw weights for ReLU, biases at 0.",
    )


RULE = Rule(name=NAME, check=check)
