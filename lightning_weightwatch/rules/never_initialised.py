"""Parameters that were never written: without memory yet, or with what happened to lie there.

What it sees:
    Parameters that are still on the meta device. Parameters whose largest magnitude is above ``huge``, and matrices
    that hold nothing above ``tiny`` but are not zero: leftovers of other data, read as numbers. And matrices of zeros
    where they are more than ``most`` of all, if there are such leftovers beside them, or norms whose gains are zero
    too: so looks fresh memory.

Why it matters:
    ``torch.empty`` and ``to_empty`` take memory as it is. What lay there is anything: NaN, 1e30, zeros. The first loss
    is not finite, or nothing passes, and another day it is different.

When it is not a problem:
    Lazy parameters get their shape and values from the first batch. Frozen weights on the meta device may be kept on
    disk by their loader, and are a note. A trained free parameter may hold a large physical constant if it is no
    matrix; a frozen one may be a mask. Matrices that begin at zero on purpose are not most of a network, and the norms
    beside them are not zero throughout.

Limits:
    huge: 1e8. Initialisations in use stay far below, and a float32 above 1.7e7 does not even tell integers apart.
        With both limits 92 of 96 networks were told after ``to_empty``, most by 1e10 to 3e38; the others had got the
        memory of a network of the same shape.
    tiny: 1e-20. The square of such a number cannot be held in float32, and no scheme draws it. Leftover memory had
        2e-38 and less.
    most: 0.5 of the matrices are zero. Our choice.

What to try:
    Call ``reset_parameters()`` of every module after ``to_empty``, and initialise what was made by ``torch.empty``.

References:
    PyTorch's documentation of ``torch.nn.Module.to_empty`` and of the meta device: values are left uninitialised.

Example:
    >>> from types import SimpleNamespace
    >>> def layer(name, abs_max):
    ...     return SimpleNamespace(name=name, shape=(8, 8), kind="linear", trainable=True, constant=None,
    ...                            abs_max=abs_max, unmeasurable="")
    >>> RULE([layer("fc1.weight", 0.35), layer("fc2.weight", 0.35)])
    ()
    >>> finding, = RULE([layer("fc1.weight", 0.35), layer("fc2.weight", 2.5e30)])
    >>> finding.severity, finding.parameters
    ('critical', ('fc2.weight',))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_weightwatch.evidence import Initial, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._initials import as_initial
from lightning_weightwatch.rules._words import listed

NAME = "never_initialised"


@dataclass(frozen=True)
class _Sign:
    """One sort of leftover memory: what shows it, and how far it is from what may be."""

    ill: Sequence[Verdict]
    value: float
    limit: float
    how: str
    unit: str
    severity: Severity = "critical"

    def __str__(self) -> str:
        return f"{len(self.ill)} {self.how} {self.value:.3g} (limit {self.limit:g})"


def check(
    subject: Initial | Sequence[Verdict], *, huge: float = 1e8, tiny: float = 1e-20, most: float = 0.5
) -> Iterator[Finding]:
    """Look for parameters without memory, then for memory that nobody wrote."""
    initial = as_initial(subject)
    nowhere = tuple(v.name for v in initial if "meta device" in v.unmeasurable)
    if nowhere:
        is_trained = any(v.trainable for v in initial if v.name in nowhere)
        yield _without_memory(nowhere, len(initial), "warning" if is_trained else "info")
    if initial.is_drawn and (signs := _signs(initial, huge, tiny, most)):
        yield _leftover(initial, signs)


def _signs(initial: Initial, huge: float, tiny: float, most: float) -> list[_Sign]:
    wild = [v for v in initial if _size(v) > huge and (v.kind != "other" or (v.trainable and len(v.shape) > 1))]
    faint = [v for v in initial if 0 < _size(v) < tiny and len(v.shape) > 1]
    matrices = [v for v in initial if len(v.shape) > 1 and v.kind not in ("norm", "bias") and v.abs_max is not None]
    zero = [v for v in matrices if v.constant == 0]
    gains = [v for v in initial if v.kind == "norm" and v.constant == 0]
    share = len(zero) / max(len(matrices), 1)
    is_fresh = share > most and bool(gains or wild or faint)
    found = [
        _Sign(wild, max(map(_size, wild), default=0.0), huge, "with magnitudes up to", "largest magnitude"),
        _Sign([*zero, *gains] if is_fresh else (), share, most, "of zeros, whose share of all matrices is", "share"),
        _Sign(faint, max(map(_size, faint), default=0.0), tiny, "with nothing above", "largest magnitude", "warning"),
    ]
    return [sign for sign in found if sign.ill]


def _size(verdict: Verdict) -> float:
    """Return the largest magnitude; 0 where it is unknown, and of a constant, which somebody must have written."""
    return verdict.abs_max or 0.0 if verdict.constant is None else 0.0


def _without_memory(names: tuple[str, ...], of: int, severity: Severity) -> Finding:
    return Finding(
        rule=NAME,
        severity=severity,
        step=0,
        since_step=0,
        parameters=names,
        value=float(len(names)),
        limit=0.0,
        unit="parameters on the meta device",
        saw=f"{len(names)} of {of} parameters are still on the meta device (limit 0), without values: {listed(names)}.",
        try_first="Call model.to_empty(device=...) and then every module's reset_parameters(), or load a checkpoint.",
    )


def _leftover(initial: Initial, signs: Sequence[_Sign]) -> Finding:
    ill = {v.name for sign in signs for v in sign.ill}
    names = tuple(v.name for v in initial if v.name in ill)
    first = signs[0]
    return Finding(
        rule=NAME,
        severity=first.severity,
        step=0,
        since_step=0,
        parameters=names,
        value=first.value,
        limit=first.limit,
        unit=first.unit,
        saw=(
            f"Of {len(initial)} parameters there are {', '.join(map(str, signs))}; so looks memory that nobody wrote: "
            f"{listed(names)}."
        ),
        try_first="Call reset_parameters() of their modules, or initialise what torch.empty or to_empty made.",
    )


RULE = Rule(name=NAME, check=check, subject="initialisation")
