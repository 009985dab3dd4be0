"""What a verdict is worth: the label of a case on one side, what was told on the other, rates between them.

Nothing here trains, and nothing knows who judged: the monitor's findings and those of others come in the same form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

from tabulate import tabulate

LEVELS = ("info", "warning", "critical")
OVERALL = "overall"
COLUMNS = (
    "cases",
    "runs",
    "hit",
    "first cause",
    "right layers",
    "steps to alarm",
    "other alarm",
    "healthy warned",
    "healthy critical",
)


@dataclass(frozen=True)
class Label:
    """What is true of a case.

    Attributes:
        case: Its name.
        rule: The illness; ``None`` for a healthy case.
        also: Illnesses that are a fair reading too.
        layers: Patterns of the parameters that are the right place; none where it has no place.
        onset: The step at which it begins.
    """

    case: str
    rule: str | None = None
    also: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    onset: int = 0


@dataclass(frozen=True)
class Told:
    """A finding, in the words of our rules.

    Attributes:
        rules: The illnesses that it names: one of ours, or of another's as many as its message can be read as.
        severity: ``"info"``, ``"warning"`` or ``"critical"``.
        step: When it was told.
        since_step: Since when it was so.
        parameters: Where.
        words: What another called it.
    """

    rules: tuple[str, ...]
    severity: str
    step: int
    since_step: int
    parameters: tuple[str, ...] = ()
    words: str = ""

    @property
    def is_alarm(self) -> bool:
        """Whether it asks somebody to act."""
        return self.severity != "info"

    def __str__(self) -> str:
        """A few words for a list."""
        return f"{' or '.join(self.rules) or self.words} ({self.severity}, step {self.step}, since {self.since_step})"


@dataclass(frozen=True)
class Verdict:
    """All that was told of one run.

    Attributes:
        label: What is true.
        seed: Of the run.
        told: The findings, in the order in which they were told.
        first: What was taken for the first cause.
        failed: Why there is no verdict, if there is none; then nothing was told.
        complaints: What the judge logged about itself.
    """

    label: Label
    seed: int
    told: tuple[Told, ...] = ()
    first: tuple[str, ...] = ()
    failed: str = ""
    complaints: tuple[str, ...] = ()

    @property
    def hits(self) -> list[Told]:
        """The findings that name the illness; what was told before the onset cannot have seen it."""
        mine = [t for t in self.told if self.label.rule in t.rules and t.step >= self.label.onset]
        return [t for t in mine if t.is_alarm]

    @property
    def delay(self) -> int | None:
        """Steps from the onset to the first finding that names the illness."""
        return min((t.step - self.label.onset for t in self.hits), default=None)

    @property
    def names_the_cause(self) -> bool:
        """Whether the illness was taken for the first cause."""
        return self.label.rule in self.first

    @property
    def place(self) -> list[str]:
        """The parameters that the first alarm named; later ones may tell how far it has spread."""
        begin = min((t.step for t in self.hits), default=0)
        return list(dict.fromkeys(name for t in self.hits if t.step == begin for name in t.parameters))

    @property
    def names_the_place(self) -> bool:
        """Whether a right parameter was named, and no more wrong ones than right ones."""
        named = self.place
        right = [name for name in named if any(fnmatchcase(name, pattern) for pattern in self.label.layers)]
        return bool(right) and len(named) <= 2 * len(right)

    @property
    def others(self) -> list[Told]:
        """The alarms of a sick run that name neither its illness nor a fair reading of it."""
        fair = {self.label.rule, *self.label.also}
        return [t for t in self.told if t.is_alarm and not fair.intersection(t.rules)]

    def alarms(self, rule: str | None = None) -> list[Told]:
        """Return what was told as a warning or worse, by one rule or by all."""
        return [t for t in self.told if t.is_alarm and (rule is None or rule in t.rules)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, and with them what was counted."""
        label = self.label
        counted: dict[str, Any] = {}
        if label.rule is not None:
            counted = {"hit": bool(self.hits), "delay": self.delay}
            counted |= {"right_layers": self.names_the_place} if label.layers else {}
        found = [{key: value for key, value in asdict(t).items() if value != ""} for t in self.told]
        plain = {"case": label.case, "seed": self.seed, "illness": label.rule, **counted, "first_cause": self.first}
        return plain | {"found": found} | ({"failed": self.failed} if self.failed else {})


@dataclass(frozen=True)
class Rates:
    """A line of the table, in the order of ``COLUMNS``; ``None`` where nothing could be counted."""

    cases: int
    runs: int
    hit: float | None
    first: float | None
    place: float | None
    delay: float | None
    other: float | None
    warned: float | None
    critical: float | None

    @classmethod
    def of(cls, verdicts: Iterable[Verdict], rule: str | None = None) -> Rates:
        """Count the runs of one illness, or of all; false alarms are those of that rule, or of all, in healthy runs."""
        verdicts = list(verdicts)
        sick = [v for v in verdicts if v.label.rule is not None and rule in (None, v.label.rule)]
        alarms = [v.alarms(rule) for v in verdicts if v.label.rule is None]
        delays = [v.delay for v in sick if v.delay is not None]
        return cls(
            cases=len({v.label.case for v in sick}),
            runs=len(sick),
            hit=_share(bool(v.hits) for v in sick),
            first=_share(v.names_the_cause for v in sick),
            place=_share(v.names_the_place for v in sick if v.label.layers),
            delay=median(delays) if delays else None,
            other=_share(bool(v.others) for v in sick),
            warned=_share(bool(told) for told in alarms),
            critical=_share(any(t.severity == "critical" for t in told) for told in alarms),
        )

    def cells(self) -> list[str]:
        """Return what stands in the table."""
        *counts, hit, first, place, delay, other, warned, critical = astuple(self)
        shares = [_percent(share) for share in (hit, first, place)]
        return [
            *map(str, counts),
            *shares,
            "" if delay is None else f"{delay:g}",
            *map(_percent, (other, warned, critical)),
        ]


def table(verdicts: Sequence[Verdict], rule: str | None = None) -> dict[str, Rates]:
    """Return the lines by illness, those that were only found where nothing is included, and one of all."""
    if rule is not None:
        return {rule: Rates.of(verdicts, rule)}
    ill = {v.label.rule for v in verdicts if v.label.rule is not None}
    alarmed = {name for v in verdicts if v.label.rule is None for told in v.alarms() for name in told.rules}
    return {name: Rates.of(verdicts, name) for name in sorted(ill | alarmed)} | {OVERALL: Rates.of(verdicts)}


def drawn(title: str, lines: Mapping[str, Rates]) -> str:
    """Return a table as it is printed."""
    body = [[name, *rates.cells()] for name, rates in lines.items()]
    return f"## {title}\n\n" + tabulate(body, ["", *COLUMNS], tablefmt="github", disable_numparse=True)


def failures(verdicts: Iterable[Verdict], rule: str | None = None) -> list[str]:
    """Return a line for each run that was not judged as its label says, and for each complaint."""
    return [line for verdict in verdicts for line in _failures(verdict, rule)]


def _failures(verdict: Verdict, rule: str | None) -> Iterable[str]:
    label, found = verdict.label, "; ".join(map(str, verdict.told)) or "nothing"
    run = f"{label.case}, seed {verdict.seed}: "
    expected = f"expected {label.rule} from step {label.onset}, found {found}"
    if verdict.failed:
        yield f"no verdict    {run}{verdict.failed}"
    elif label.rule is None:
        if verdict.alarms(rule):
            yield f"false alarm   {run}found {found}"
    elif not verdict.hits:
        yield f"missed        {run}{expected}"
    else:
        if not verdict.names_the_cause:
            yield f"not the cause {run}first cause {' or '.join(verdict.first) or 'none'}; {expected}"
        if label.layers and not verdict.names_the_place:
            yield f"wrong layers  {run}expected {' '.join(label.layers)}, found {' '.join(verdict.place) or 'none'}"
    yield from (f"complaint     {run}{complaint}" for complaint in verdict.complaints)


def _share(flags: Iterable[bool]) -> float | None:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
