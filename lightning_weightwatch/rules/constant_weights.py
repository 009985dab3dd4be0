"""Weight matrices whose elements are all the same, so that every unit computes the same.

What it sees:
    Trainable weight matrices of linear, convolutional, recurrent and attention layers with at least ``units`` rows and
    one non-zero value throughout. Told as ``critical`` where at least ``in_a_row`` matrices are constant and follow one
    another, in order of registration, the others among them being constant or all zeros; as ``info`` otherwise.

Why it matters:
    Units with the same incoming and the same outgoing weights get the same gradient, step after step, whatever the
    optimizer: the layer never becomes wider than one unit. Different biases help little. A digits classifier of three
    layers reached a loss of 0.09 with its own initialisation, 0.5 to 2.3 with two constant matrices in a row and
    random biases, and 1.4 to 2.3 with zero biases.

When it is not a problem:
    A single constant matrix between random ones: the next matrix tells its units apart in the first step, and the same
    classifier reached 0.09 to 0.14. Norm gains, biases, layer scales and gates are constant by design and are not
    looked at, nor are frozen matrices (averages, blurs) and all zeros, which begin residual branches, heads and LoRA's
    B. In a depthwise convolution each channel sees its own input, and a constant kernel is a moving average.

Limits:
    in_a_row: 2, by the argument above.
    units: 2. A single unit has no twin.

What to try:
    A random initialisation, such as the layer's own ``reset_parameters``.

References:
    Goodfellow et al., Deep Learning, 2016, section 8.4: Parameter Initialization Strategies.

Example:
    >>> from types import SimpleNamespace
    >>> def layer(name, constant):
    ...     return SimpleNamespace(name=name, shape=(8, 8), kind="linear", trainable=True, constant=constant)
    >>> RULE([layer("fc1.weight", None), layer("fc2.weight", None)])
    ()
    >>> finding, = RULE([layer("fc1.weight", 0.1), layer("fc2.weight", 0.1)])
    >>> finding.severity, finding.parameters
    ('critical', ('fc1.weight', 'fc2.weight'))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from lightning_weightwatch.evidence import Initial, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._words import listed

NAME = "constant_weights"
_MATRICES = ("linear", "convolution", "recurrent", "attention")


def check(verdicts: Initial | Sequence[Verdict], *, in_a_row: int = 2, units: int = 2) -> Iterator[Finding]:
    """Look for constant matrices, those that follow one another first."""
    matrices = [v for v in verdicts if v.kind in _MATRICES and len(v.shape) >= 2]
    lasting: list[Verdict] = []
    passing: list[Verdict] = []
    for is_constant, run in groupby(matrices, key=lambda v: v.constant is not None):
        row = list(run) if is_constant else []
        sick = [v for v in row if v.trainable and v.constant and v.shape[0] >= units]
        if len(row) >= in_a_row:
            lasting += sick
        else:  # alone, a column of gains such as weight norm's is no matrix
            passing += [v for v in sick if sum(size > 1 for size in v.shape) >= 2]
    if lasting:
        yield _finding(lasting, len(matrices), "critical", "next to others that are: units that start alike stay alike")
    if passing:
        yield _finding(passing, len(matrices), "info", "between others that are not: units part in the first step")


def _finding(ill: Sequence[Verdict], of: int, severity: Severity, consequence: str) -> Finding:
    names = tuple(v.name for v in ill)
    return Finding(
        rule=NAME,
        severity=severity,
        step=0,
        since_step=0,
        parameters=names,
        value=float(len(names)),
        limit=0.0,
        unit="constant weight matrices",
        saw=(
            f"{len(names)} of {of} weight matrices {'are' if len(names) > 1 else 'is'} constant (limit 0) at the "
            f"start, {consequence}: {listed(names)}."
        ),
        try_first="Initialise at random, such as by the layer's reset_parameters().",
    )


RULE = Rule(name=NAME, check=check, subject="initialisation")
