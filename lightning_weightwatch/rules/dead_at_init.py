"""Units that are silent for every sample before the first step: ReLUs that give zero for a whole batch.

What it sees:
    One batch that passed the untrained network: the share of a layer's units whose activation gave exactly zero for
    every sample of it (ReLU and its kin). A layer of which all are silent, though what comes in varies; or layers of
    which more are silent than chance explains.

Why it matters:
    A unit that is silent for every sample gets no gradient, and so stays as it is. A layer without a living unit cuts
    the network in two: nothing before it learns, and what lies behind it sees the same for all samples. Narrow deep
    networks are born so by chance; biases far below zero, or weights whose mean is, do it at any width.

When it is not a problem:
    Where what comes in hardly depends on the sample, a unit is silent with a chance of one half: deep networks of ReLU
    have up to half of theirs silent in each layer, and train. A layer to which nothing comes in but the same is left
    out: it follows a silent one, or a layer of zeros. Of a batch of few samples nothing is said. A silent layer beside
    a way around it (a skip connection, another branch) is a warning, as the network learns without it. The layer that a
    loss takes counts only where it is silent as a whole. In networks that look trained, units that fell silent are a
    note.

Limits:
    many: 0.5, and three standard deviations of tossing a coin for each unit, told as ``warning``. No plain network of 4
        to 24 layers with default weights or gains of 0.3 to 3 reached that: of 64 units 0.59 were silent at most.
    samples: 16. Our choice.

    A layer that is silent as a whole is ``critical``: of 36 networks with biases of -0.5 to -5, all 26 that had such a
    layer stayed at chance. The others trained, with 0.95 of a layer silent too, though then more slowly.

What to try:
    Biases at zero, and weights of mean zero drawn for ReLU; leaky ReLU or GELU, which are never silent.

References:
    Lu et al., Dying ReLU and Initialization: Theory and Numerical Examples, 2019, arXiv:1903.06733.

Example:
    >>> from lightning_weightwatch.evidence import Initial, Layer, Signal
    >>> def passed(dead, then):
    ...     first = Layer("0.weight", units=64, samples=128, came_in=1.0, activation="relu", dead=dead)
    ...     return Initial([], Signal((first, Layer("1.weight", units=10, spread=then, feeds_loss=True))))
    >>> sick, well = RULE(passed(1.0, 0.0)), RULE(passed(0.5, 0.1))
    >>> sick[0].severity, sick[0].parameters
    ('critical', ('0.weight',))
    >>> well
    ()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lightning_weightwatch.evidence import Initial, Layer, Signal, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._code import line, line_for
from lightning_weightwatch.rules._initials import as_initial
from lightning_weightwatch.rules._words import listed

NAME = "dead_at_init"


def check(subject: Initial | Sequence[Verdict], *, many: float = 0.5, samples: int = 16) -> Iterator[Finding]:
    """Look for layers that are silent as a whole, and if there are none, for those that are more than by chance."""
    initial = as_initial(subject)
    signal = initial.signal
    if signal is None or not initial.is_drawn:
        return
    varied = [layer for layer in signal.layers if layer.samples >= samples and layer.came_in != 0]
    silent = [layer for layer in varied if layer.dead == 1]
    partly = [layer for layer in varied if layer.dead > _by_chance(layer, many) and not layer.feeds_loss]
    if silent:
        severity: Severity = "critical" if any(_cuts(signal, layer) for layer in silent) else "warning"
        yield _finding(initial, silent, lambda _: 1.0, severity)
    elif partly:
        severity = "info" if initial.pretrained else "warning"
        yield _finding(initial, partly, lambda layer: _by_chance(layer, many), severity)


def _by_chance(layer: Layer, many: float) -> float:
    """Return the share that may be silent where the same comes in for every sample."""
    return float(many + 1.5 / max(layer.units, 1) ** 0.5)


def _cuts(signal: Signal, layer: Layer) -> bool:
    """Whether nothing passes: no layer before it gets a gradient, and behind it all samples are the same."""
    place = signal.layers.index(layer)
    gets_gradient = any(before.gradient > 0 for before in signal.layers[: place + 1])
    return not gets_gradient and not any(behind.spread > 0 for behind in signal.layers[place + 1 :])


def _finding(
    initial: Initial, dead: Sequence[Layer], limit_of: Callable[[Layer], float], severity: Severity
) -> Finding:
    worst = max(dead, key=lambda layer: layer.dead)
    limit = limit_of(worst)
    names = tuple(layer.name for layer in dead)
    return Finding(
        rule=NAME,
        severity=severity,
        step=0,
        since_step=0,
        parameters=names,
        value=worst.dead,
        limit=limit,
        unit="share of units that are silent for every sample",
        saw=(
            f"{worst.dead:.0%} of the {worst.units} units of {worst.name} (limit {limit:.0%}) gave 0 behind "
            f"{worst.activation or 'their activation'} for all {worst.samples} samples at the start. So it is in "
            f"{listed(names)}."
        ),
        try_first=f"{_remedy(initial, worst)}.",
    )


def _remedy(initial: Initial, layer: Layer) -> str:
    owner = layer.name.rpartition(".")[0]
    beside = [v for v in initial if v.kind == "bias" and v.name.rpartition(".")[0] == owner]
    low = next((v for v in beside if v.mean is not None and v.mean < -(v.std or 0.0)), None)
    if low is not None:
        return f"Begin its biases at zero: {line(low.name, 'bias', low.shape, '')}"
    return f"Draw it for what follows, with mean zero: {line_for(initial, layer)}"


RULE = Rule(name=NAME, check=check, subject="initialisation")
