"""What a monitor has found so far: rules applied to evidence, each finding told once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_weightwatch import _arguments
from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules import Finding, Ledger, Rule, all_rules, judge
from lightning_weightwatch.sinks import log


class Judgement:
    """Judges evidence, and remembers what was told.

    Args:
        rules: What to judge by. A rule that fails is reported and left out.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.findings: list[Finding] = []
        self._rules = tuple(rules)
        self._ledger = Ledger()

    def news(self, evidence: Evidence) -> tuple[Finding, ...]:
        """Judge evidence; return, and keep, what was not told yet."""
        found, failed = judge(self._rules, evidence)
        for name, error in failed.items():
            log.warning("The rule %s failed (%s: %s). It is left out.", name, type(error).__name__, error)
        self._rules = tuple(rule for rule in self._rules if rule.name not in failed)
        news = self._ledger.news(found)
        self.findings += news
        return news

    def state_dict(self) -> dict[str, Any]:
        """Return what was found and told."""
        return {"findings": [f.to_dict() for f in self.findings], "told": self._ledger.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what an earlier run found and told."""
        self.findings = [Finding.from_dict(plain) for plain in state_dict.get("findings", [])]
        self._ledger.load_state_dict(state_dict.get("told", {}))


def checked(who: str, rules: Sequence[Rule] | None) -> tuple[Rule, ...]:
    """Return the rules to judge a training by, all there are if none are given; refuse what is no list of rules."""
    if rules is None:
        return tuple(all_rules("training").values())
    if isinstance(rules, str) or not isinstance(rules, Sequence) or not all(isinstance(r, Rule) for r in rules):
        remedy = "Use [*all_rules('training').values(), MY_RULE] from lightning_weightwatch.rules."
        _arguments.refuse(who, "rules", rules, "a list of Rule or None", remedy, wrong_type=True)
    return tuple(rules)
