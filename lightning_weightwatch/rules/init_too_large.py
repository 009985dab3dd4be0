"""Initial weights that make the signal grow with depth, until outputs, loss or gradients explode.

What it sees:
    One batch that passed the untrained network. Layers whose output holds NaN or Inf though their input did not. Else,
    how much tells samples apart in each layer (the root mean square, over units, of a unit's standard deviation over
    the samples), and the gradient that comes back to its output: a straight line through the logarithms of either, in
    the order of execution, gives the powers of ten (decades) that are gained on the way. And single layers that
    multiply what comes in by as much.

Why it matters:
    The first loss is many times what it should be, and a step of SGD that fits the last layers throws the first ones
    away, or the other way round. Squares of such numbers leave the range of float32, and those of half precision much
    earlier. In networks of tanh the outputs cannot grow, but the gradients do, and samples that are nearly alike are
    told apart by chance.

When it is not a problem:
    Normalisation keeps the outputs at their size, and its gradients grow with depth by themselves: growth on the way
    back counts only where the weights account for half of it. One odd layer is no trend: the largest single step counts
    as the others do. NaN or Inf in the batch or in the weights is another illness. Nothing is said of weights from a
    checkpoint.

Limits:
    decades: 3, for every optimizer. Plain networks of ReLU, tanh, GELU and sigmoid, with 4 to 24 layers and PyTorch's
        default weights or gains of 0.3 to 3, were trained on digits for 250 steps by SGD and by Adam: 571 of these 924
        trained, 353 failed. This limit told 50 of those that failed, and none that trained. Of 137 networks of
        torchvision, timm and transformers as they are drawn, none gained more than 1.9 that counts.
    note: 2, told as ``info``: 25 more that failed, and 3 that trained.

What to try:
    Weights drawn for the activation that follows; normalisation; in networks of skip connections, a last layer of each
    branch that begins at zero.

References:
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    Poole et al., Exponential expressivity in deep neural networks through transient chaos, 2016, arXiv:1606.05340.
    Zhang et al., Fixup Initialization, 2019, arXiv:1901.09321.

Example:
    >>> from lightning_weightwatch.evidence import Initial, Layer, Signal
    >>> def passed(each):
    ...     layers = [Layer(f"{i}.weight", spread=each**i, came_in=each ** (i - 1)) for i in range(9)]
    ...     return Initial([], Signal(tuple(layers)))
    >>> sick, well = RULE(passed(3.0)), RULE(passed(1.5))
    >>> sick[0].severity, round(sick[0].value, 1), len(sick[0].parameters)
    ('warning', 3.8, 9)
    >>> well
    ()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lightning_weightwatch.evidence import Initial, Layer, Signal, Verdict
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._code import line_for
from lightning_weightwatch.rules._initials import as_initial
from lightning_weightwatch.rules._propagation import Course, backwards, forwards, own_decades, responsible
from lightning_weightwatch.rules._words import listed

NAME = "init_too_large"


def check(subject: Initial | Sequence[Verdict], *, decades: float = 3.0, note: float = 2.0) -> Iterator[Finding]:
    """Look for the first layer that breaks, then for what grows, then for single layers."""
    initial = as_initial(subject)
    signal = initial.signal
    if signal is None or not initial.is_drawn:
        return
    broken = next((layer for layer in signal.layers if layer.nonfinite > 0), None)
    if broken is not None:
        yield from _broken(initial, broken)
        return
    worst = max(_courses(signal), key=lambda course: course.decades, default=None)
    single = {layer: own for layer in signal.layers if (own := own_decades(signal, layer)) >= decades}
    if worst is not None and worst.decades >= (decades if single else note):
        yield _growing(initial, signal, worst, decades, note)
    elif single:
        yield _single(initial, single, decades)


def _courses(signal: Signal) -> Iterator[Course]:
    """Yield the ways that count."""
    there, back = forwards(signal), backwards(signal)
    if there is not None:
        yield there
    if back is not None and responsible(signal, back):
        yield back


def _broken(initial: Initial, layer: Layer) -> Iterator[Finding]:
    """Tell of a layer that breaks; not if its input is broken, or its own weights are."""
    owner = layer.name.rpartition(".")[0]
    is_ill = any(v.nonfinite > 0 for v in initial if v.name.rpartition(".")[0] == owner)
    if is_ill or np.isnan(layer.came_in):  # Inf is the square of a large number, NaN that of a broken one
        return
    count = f"{layer.nonfinite:.0f} element{'s' if layer.nonfinite > 1 else ''}"
    yield Finding(
        rule=NAME,
        severity="critical",
        step=0,
        since_step=0,
        parameters=(layer.name,),
        value=float(layer.nonfinite),
        limit=0.0,
        unit="elements of a layer's output that are NaN or Inf",
        saw=f"{count} of what {layer.name} gives for the first batch are NaN or Inf (limit 0); what came in is not.",
        try_first=f"Draw the weights smaller, from the first layer to this one: {line_for(initial, layer)}.",
    )


def _growing(initial: Initial, signal: Signal, course: Course, decades: float, note: float) -> Finding:
    large = responsible(signal, course)
    is_much = course.decades >= decades
    names = tuple(layer.name for layer in large or signal.layers if layer in course.layers)
    try_first = "Normalise between the layers, or begin the last layer of each skipped branch at zero."
    if large:
        try_first = f"Draw these layers for what follows them: {line_for(initial, large[0])}."
    return Finding(
        rule=NAME,
        severity="warning" if is_much else "info",
        step=0,
        since_step=0,
        parameters=names,
        value=course.decades,
        limit=decades if is_much else note,
        unit=f"powers of ten gained {course.way}",
        saw=f"{course.told(decades if is_much else note)} {'Too large' if large else 'On the way'}: {listed(names)}.",
        try_first=try_first,
    )


def _single(initial: Initial, large: Mapping[Layer, float], decades: float) -> Finding:
    worst = max(large, key=lambda layer: large[layer])
    return Finding(
        rule=NAME,
        severity="warning",
        step=0,
        since_step=0,
        parameters=tuple(layer.name for layer in large),
        value=large[worst],
        limit=decades,
        unit="powers of ten gained in a layer",
        saw=(
            f"{worst.name} makes what comes in {worst.spread / worst.came_in:.1e} times as large at the start, "
            f"{large[worst]:.1f} powers of ten more than what follows makes up for (limit {decades:g})."
        ),
        try_first=f"Draw it for what follows: {line_for(initial, worst)}.",
    )


RULE = Rule(name=NAME, check=check, subject="initialisation")
