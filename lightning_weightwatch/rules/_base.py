"""What a rule and a finding are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One illness, where it sits, since when, and what to try first.

    Attributes:
        rule: The rule that found it; rules are named after illnesses.
        severity: ``"info"`` is worth knowing, ``"warning"`` worth acting on, ``"critical"`` ruins the run.
        step: The step at which it was told, counted as ``self.log`` counts.
        since_step: The first step at which it was seen.
        parameters: The parameters that are ill, in forward order; empty where it has no place.
        value: What was measured.
        limit: What it was held against.
        unit: The unit of both.
        saw: One sentence: value, limit, place, steps.
        try_first: One action.
        rank: The process that saw it, or ``None`` where all saw the same.
        because_of: The illness that it is taken for a symptom of, or ``None``.
    """

    rule: str
    severity: Severity
    step: int
    since_step: int
    parameters: tuple[str, ...] = ()
    value: float
    limit: float
    unit: str
    saw: str
    try_first: str
    rank: int | None = None
    because_of: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values that ``json`` and a checkpoint take."""
        numbers = {name: _native(getattr(self, name)) for name in ("step", "since_step", "value", "limit")}
        return asdict(self) | numbers | {"parameters": list(self.parameters)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Finding:
        """Rebuild a finding from ``to_dict``; keys of other versions are left out."""
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in plain.items() if key in known}
        return cls(**values | {"parameters": tuple(values["parameters"])})

    def __str__(self) -> str:
        """One readable line."""
        symptom = f", a symptom of {self.because_of}" if self.because_of else ""
        return (
            f"{self.severity.upper()} at step {self.step}: {self.rule}{symptom}. {self.saw} Try first: {self.try_first}"
        )


def _native(number: Any) -> Any:
    """Return Python's number for NumPy's, which a user's rule may give and a checkpoint would not load."""
    return number.item() if hasattr(number, "item") else number


@dataclass(frozen=True)
class Rule:
    """An illness that can be recognised in evidence.

    Attributes:
        name: The illness, which is also the name of the file.
        check: ``check(evidence, *, limit=...)`` yields a finding for each place that is ill now; pure Python.
        subject: What it judges: a ``"training"`` (an ``Evidence``), an ``"initialisation"`` (an ``Initial``),
            or ``"both"``.
        limits: Keyword arguments that replace defaults of ``check``.
    """

    name: str
    check: Callable[..., Iterator[Finding]]
    subject: Literal["training", "initialisation", "both"] = "training"
    limits: dict[str, float] = field(default_factory=dict)

    def __call__(self, evidence: Any) -> tuple[Finding, ...]:
        """Judge the evidence."""
        return tuple(self.check(evidence, **self.limits))
