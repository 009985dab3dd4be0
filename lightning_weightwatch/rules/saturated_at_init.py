"""Activations that sit at the flat ends of tanh or sigmoid before the first step.

What it sees:
    One batch that passed the untrained network: the share of a layer's activations at the flat ends (beyond 0.97 of
    tanh's range, 0.03 from the ends of sigmoid's, on the limits of hardsigmoid and hardtanh). Only layers between the
    others count, not those that a loss takes.

Why it matters:
    The slope of tanh is below 0.06 there, and that of sigmoid below 0.03: such a unit is a switch that a gradient
    hardly moves. Where large weights put it there, samples fall on one side or the other by chance, and the few that do
    not get a gradient that is multiplied by these weights: training is slow, and slower with depth. Where a bias does,
    the gradient of all layers before is gone.

When it is not a problem:
    A first layer is put there by inputs that are not normalised, with weights that would suit others: it trains, and
    is told as ``info``. Where a layer gives too little for that, something else puts the activation there, such as the
    mask of a router, and nothing is said. A gate that a bias holds open or shut by design (sigmoids whose units are all
    moved alike, in a network of other activations) is ``info``, as is what looks trained. Outputs of a classifier may
    be saturated.

Limits:
    saturated: 0.6. Tanh networks of 4 to 24 layers had 0.34 at most with gains of 1 to 2, and 0.52 with 3. Of 44 past
        the limit 20 failed in 250 steps on digits, most of them with 6 or 8 layers; those of Adam that trained had a
        loss of 0.4 to 1.5, in place of 0.02 to 0.07. The first layer alone, with inputs 10 and 30 times too large, was
        no hindrance.
    nearly_all: 0.85, told as ``critical`` where the gradient has also faded.
    faded: 0.01 of the gradient of the layer behind. Our choice.

What to try:
    Smaller weights (a gain of 5/3 for tanh, 4 for sigmoid), biases at zero, normalised inputs.

References:
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    Rakitianskaia and Engelbrecht, Measuring Saturation in Neural Networks, 2015.

Example:
    >>> from lightning_weightwatch.evidence import Initial, Layer, Signal
    >>> def passed(share):
    ...     layers = [Layer(f"{i}.weight", rms=9.0, spread=9.0, came_in=0.9, activation="tanh", saturated=share)
    ...               for i in range(3)]
    ...     return Initial([], Signal((*layers, Layer("3.weight", feeds_loss=True))))
    >>> sick, well = RULE(passed(0.8)), RULE(passed(0.4))
    >>> sick[0].severity, sick[0].parameters
    ('warning', ('0.weight', '1.weight', '2.weight'))
    >>> well
    ()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightning_weightwatch.evidence import Initial, Layer, Signal, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._code import line_for
from lightning_weightwatch.rules._initials import as_initial
from lightning_weightwatch.rules._words import listed

NAME = "saturated_at_init"
_GATES = {"sigmoid", "hardsigmoid"}
_ALIKE = 0.9  # of a layer's root mean square is its mean: then all its units are moved alike
_ENDS = {"tanh": 2.09, "sigmoid": 3.48, "hardsigmoid": 3.0}  # where the flat ends begin
_ORDINARY = 2.0  # times what came in is what ordinary weights make of it


def check(
    subject: Initial | Sequence[Verdict], *, saturated: float = 0.6, nearly_all: float = 0.85, faded: float = 0.01
) -> Iterator[Finding]:
    """Look at the layers between the others; at what their weights do, and at what others do to them."""
    initial = as_initial(subject)
    signal = initial.signal
    if signal is None or not initial.is_drawn:
        return
    flat = [one for one in signal.layers if one.saturated > saturated and not one.feeds_loss and _may_reach(one)]
    by_inputs = [layer for layer in flat if _is_put_there_by_inputs(signal, layer)]
    gates = [layer for layer in flat if layer not in by_inputs and _is_held(signal, layer)]
    own = [layer for layer in flat if layer not in (*by_inputs, *gates)]
    if own:
        gone = [la for la in own if la.saturated > nearly_all and _has_faded(signal, la, faded)]
        severity: Severity = "critical" if gone else "warning"
        worst = max(gone or own, key=lambda layer: layer.saturated)
        severity, limit = ("info" if initial.pretrained else severity), nearly_all if gone else saturated
        yield _finding(own, worst, limit, severity, f"Draw these layers smaller: {line_for(initial, worst)}.")
    if by_inputs:
        try_first = "Normalise the inputs, which put the first layer there."
        yield _finding(by_inputs, by_inputs[0], saturated, "info", try_first)
    if gates:
        try_first = "Begin these biases nearer to zero, unless they are to hold a gate open or shut."
        yield _finding(gates, gates[0], saturated, "info", try_first)


def _may_reach(layer: Layer) -> bool:
    """Whether what the layer gives is large enough to be there by itself, with nothing between it and the function."""
    needed = _ENDS.get(layer.activation, 0.0) * layer.saturated**0.5
    return not layer.rms < 0.9 * needed  # the share is that of some elements


def _is_put_there_by_inputs(signal: Signal, layer: Layer) -> bool:
    """Whether it is the first layer, and multiplies what comes in as ordinary weights do."""
    sizes = [float(np.hypot(x.mean, x.std)) for x in signal.inputs]
    size = max((s for s in sizes if np.isfinite(s)), default=layer.came_in)
    return layer == signal.layers[0] and layer.rms <= _ORDINARY * size


def _is_held(signal: Signal, layer: Layer) -> bool:
    """Whether it looks like a gate that a bias holds: all units are moved alike, and others are no gates."""
    others = {one.activation for one in signal.layers} - _GATES - {"", "softmax", "log_softmax"}
    return layer.activation in _GATES and bool(others) and abs(layer.mean) > _ALIKE * layer.rms


def _has_faded(signal: Signal, layer: Layer, faded: float) -> bool:
    """Whether the gradient before the activation is far below that of the layer behind."""
    behind = signal.layers[signal.layers.index(layer) + 1 :]
    return bool(behind) and layer.gradient < faded * behind[0].gradient


def _finding(flat: Sequence[Layer], worst: Layer, limit: float, severity: Severity, try_first: str) -> Finding:
    names = tuple(layer.name for layer in flat)
    return Finding(
        rule=NAME,
        severity=severity,
        step=0,
        since_step=0,
        parameters=names,
        value=worst.saturated,
        limit=limit,
        unit="share of activations at the flat ends",
        saw=(
            f"{worst.saturated:.0%} of the {worst.activation} behind {worst.name} are at its flat ends at the start "
            f"(limit {limit:.0%}): root mean square {worst.rms:.2g} before it, from a spread of {worst.came_in:.2g} "
            f"that came in. So it is in {listed(names)}."
        ),
        try_first=try_first,
    )


RULE = Rule(name=NAME, check=check, subject="initialisation")
