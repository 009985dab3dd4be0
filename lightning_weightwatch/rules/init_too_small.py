"""Initial weights that let the signal fade with depth, until the output hardly depends on the input.

What it sees:
    One batch that passed the untrained network. Forwards, how much tells its samples apart in each layer: the root mean
    square, over units, of a unit's standard deviation over the samples. Backwards, the gradient of the loss by each
    layer's output. A straight line through the logarithms of either, in the order of execution, gives the powers of ten
    (decades) that are lost on the way. No scheme is right or wrong by its name: what arrives counts.

Why it matters:
    The output is then made of biases, and is the same for every sample; and the gradient that comes back is so small
    that SGD does not move the first layers. It does not show in the gradients of the weights: these are products of
    the two, and what fades on the way there makes up for what fades on the way back.

When it is not a problem:
    Networks with normalisation or skip connections keep their signal whatever the weights, and those of three layers
    lose little. A single small layer, such as a head that begins near zero, gets a gradient of full size and grows: the
    largest single step counts as the others do. Layers that give exactly zero are left out: ``zero_blocked_signal``
    tells of them. Optimizers that divide by the gradient's size, as Adam does, stand more. Nothing is said of weights
    from a checkpoint.

Limits:
    decades: 3, for SGD and where the optimizer is not known. Plain networks of ReLU, tanh, GELU and sigmoid, with 4 to
        24 layers and PyTorch's default weights or gains of 0.3 to 3, were trained on digits for 250 steps. Under SGD
        226 trained and 236 failed: this limit told 132 of those that failed, and none that trained. Of 137 networks
        of torchvision, timm and transformers as they are drawn, none lost more than 1.8.
    adaptive: 6, for optimizers that divide by the gradient's size. Under Adam 345 of the same networks trained and 117
        failed: it told 54 of these, and 8 that trained slowly, to a loss of 0.4 to 1.5 where the same networks reach
        0.02 to 0.2 with weights made for them.
    note: 2, told as ``info``.
    gone: 7, told as ``critical`` under SGD, where 52 were past it and failed. Float32 tells numbers apart that differ
        by one part in 10 to the power of 7.2: below it, what a sample adds to a bias is rounded away.

What to try:
    Weights drawn for the activation that follows; normalisation or skip connections in deep networks; another function
    in place of sigmoid, which takes three quarters of the signal in each layer at any usual scale.

References:
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    He et al., Delving Deep into Rectifiers, 2015, arXiv:1502.01852.
    Schoenholz et al., Deep Information Propagation, 2017, arXiv:1611.01232.

Example:
    >>> from lightning_weightwatch.evidence import Initial, Layer, Signal
    >>> def passed(each):
    ...     layers = [Layer(f"{i}.weight", spread=each**i, came_in=each ** (i - 1)) for i in range(9)]
    ...     return Initial([], Signal(tuple(layers)))
    >>> sick, well = RULE(passed(0.3)), RULE(passed(0.9))
    >>> sick[0].severity, round(sick[0].value, 1), len(sick[0].parameters)
    ('warning', 4.2, 9)
    >>> well
    ()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_weightwatch.evidence import Initial, Signal, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._code import line_for
from lightning_weightwatch.rules._initials import as_initial
from lightning_weightwatch.rules._propagation import Course, backwards, forwards, responsible
from lightning_weightwatch.rules._words import listed

NAME = "init_too_small"


def check(
    subject: Initial | Sequence[Verdict],
    *,
    decades: float = 3.0,
    adaptive: float = 6.0,
    note: float = 2.0,
    gone: float = 7.0,
) -> Iterator[Finding]:
    """Look for what fades, forwards and backwards."""
    initial = as_initial(subject)
    signal = initial.signal
    if signal is None or not initial.is_drawn:
        return
    fading = [course for course in (forwards(signal), backwards(signal)) if course and course.decades <= -note]
    if not fading:
        return
    worst = min(fading, key=lambda course: course.decades)
    limit = adaptive if signal.is_adaptive else decades
    levels: list[tuple[float, Severity]] = [(note, "info"), (limit, "warning")]
    levels += [] if signal.is_adaptive else [(gone, "critical")]
    passed, severity = [level for level in levels if -worst.decades >= level[0]][-1]
    yield _finding(initial, signal, worst, passed, severity)


def _finding(initial: Initial, signal: Signal, course: Course, limit: float, severity: Severity) -> Finding:
    small = responsible(signal, course)
    names = tuple(layer.name for layer in small or signal.layers if layer in course.layers)
    try_first = "Normalise between the layers, or add skip connections."
    if small:
        try_first = f"Draw these layers for what follows them: {line_for(initial, small[0])}."
    return Finding(
        rule=NAME,
        severity=severity,
        step=0,
        since_step=0,
        parameters=names,
        value=-course.decades,
        limit=limit,
        unit=f"powers of ten lost {course.way}",
        saw=f"{course.told(limit)} {'Too small' if small else 'On the way'}: {listed(names)}.",
        try_first=try_first,
    )


RULE = Rule(name=NAME, check=check, subject="initialisation")
