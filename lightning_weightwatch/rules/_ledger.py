"""Which findings are news.

A finding is told once, and again only when it worsens (a higher severity, or twice as many places) or returns
after ``RECOVERY`` judgements and ``STEPS`` steps without it. A monitor that repeats itself is switched off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_weightwatch.rules._base import SEVERITIES, Finding

RECOVERY = 5
STEPS = 50


class Ledger:
    """Remembers what was told.

    Example:
        >>> finding = Finding(rule="cold_feet", severity="warning", step=3, since_step=1, value=1.0, limit=2.0,
        ...                   unit="°C", saw="Cold.", try_first="Socks.")
        >>> ledger = Ledger()
        >>> len(ledger.news([finding])), len(ledger.news([finding]))
        (1, 0)
    """

    def __init__(self) -> None:
        self._told: dict[str, dict[str, Any]] = {}

    def news(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Return the findings that must be told, and remember them."""
        forms: dict[str, list[Finding]] = {}
        for finding in findings:
            forms.setdefault(_form(finding), []).append(finding)
        for form in set(self._told) - set(forms):
            self._told[form]["absent"] += 1
        return tuple(f for form, found in forms.items() if self._is_news(form, found) for f in found)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return copy.deepcopy(self._told)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier run told."""
        self._told = copy.deepcopy(state)

    def _is_news(self, form: str, found: Sequence[Finding]) -> bool:
        """Judge all findings of one form together: a rule may find several places at once."""
        severity = max(SEVERITIES.index(f.severity) for f in found)
        step, told = int(max(f.step for f in found)), self._told.get(form)
        is_back = told is not None and told["absent"] >= RECOVERY and step - told.get("seen", -STEPS) >= STEPS
        known = told["places"] if told and not is_back else []
        places = list(dict.fromkeys([*known, *(name for f in found for name in f.parameters)]))
        if told and not is_back and severity <= told["severity"] and len(places) < 2 * max(len(known), 1):
            told.update(absent=0, seen=step)
            return False
        self._told[form] = {"severity": severity, "places": places, "absent": 0, "seen": step}
        return True


def _form(finding: Finding) -> str:
    """One rule may see an illness in several forms; their unit tells them apart."""
    return f"{finding.rule}: {finding.unit}"
