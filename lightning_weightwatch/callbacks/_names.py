"""Which parameters a callback looks at, and what it says about a pattern that matches none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_weightwatch.parameters import select, unmatched
from lightning_weightwatch.sinks import log


def select_or_warn(who: str, names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the names to look at; a pattern that matches nothing is reported with the nearest names there are."""
    names = list(names)
    for pattern, near in unmatched(names, [*include, *exclude]).items():
        if names and pattern != "*":
            log.warning("%s: no parameter matches %r. Nearest: %s.", who, pattern, ", ".join(near) or "none")
    return select(names, include, exclude)
