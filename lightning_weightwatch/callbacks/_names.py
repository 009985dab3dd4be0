"""Which parameters a callback looks at, how their tags are numbered, and what it says of those it cannot see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning_weightwatch.parameters import select, unmatched
from lightning_weightwatch.rules import listed
from lightning_weightwatch.sinks import log


def select_or_warn(who: str, names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the names to look at; a pattern that matches nothing is reported with the nearest names there are."""
    names = list(names)
    for pattern, near in unmatched(names, [*include, *exclude]).items():
        if names and pattern != "*":
            log.warning("%s: no parameter matches %r. Nearest: %s.", who, pattern, ", ".join(near) or "none")
    return select(names, include, exclude)


def numbered(names: Sequence[str]) -> list[str]:
    """Put each name's place before it, so that TensorBoard lists layers in the order of the model.

    Example:
        >>> numbered(["conv.weight", "fc.weight"])
        ['00 conv.weight', '01 fc.weight']
    """
    digits = max(2, len(str(len(names) - 1)))
    return [f"{i:0{digits}d} {name}" for i, name in enumerate(names)]


def unmeasured(what: str, reasons: Mapping[str, str]) -> list[str]:
    """Say what could not be measured, one line for each reason.

    Example:
        >>> unmeasured("gradients", {"a": "lazy", "b": "lazy"})
        ['weightwatch: gradients not measured (lazy), 2 of them: a, b.']
    """
    grouped: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        grouped.setdefault(reason, []).append(name)
    return [
        f"weightwatch: {what} not measured ({reason}), {len(names)} of them: {listed(names)}."
        for reason, names in grouped.items()
    ]
