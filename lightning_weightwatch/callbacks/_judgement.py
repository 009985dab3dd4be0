"""What a monitor has found so far: rules applied to evidence, each finding told once."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from lightning_weightwatch import _arguments
from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.parameters import select
from lightning_weightwatch.rules import Finding, Ledger, Rule, all_rules, cause_of, judge
from lightning_weightwatch.sinks import log


class Judgement:
    """Judges evidence, and remembers what was told.

    Args:
        rules: What to judge by. A rule that fails is reported and left out.
        ignore: For each rule, patterns of parameters that it does not speak of; ``"*"`` silences it.
    """

    def __init__(self, rules: Sequence[Rule], ignore: Mapping[str, Sequence[str]] | None = None) -> None:
        self.findings: list[Finding] = []
        self._rules = tuple(rules)
        self._ignore = dict(ignore or {})
        self._ledger = Ledger()

    def news(self, evidence: Evidence, replayed: Sequence[str] = ()) -> tuple[Finding, ...]:
        """Judge evidence; return, and keep, what was not told yet; to what broke is added what its replay showed."""
        found, failed = judge(self._rules, evidence)
        for name, error in failed.items():
            log.warning("The rule %s failed (%s: %s). It is left out.", name, type(error).__name__, error)
        self._rules = tuple(rule for rule in self._rules if rule.name not in failed)
        news = self._ledger.news(self._heeded(found))
        known = [*self.findings, *news]
        news = tuple(replace(finding, because_of=cause_of(finding, known)) for finding in news)
        news = tuple(_with_replay(finding, replayed) for finding in news)
        self.findings += news
        return news

    def state_dict(self) -> dict[str, Any]:
        """Return what was found and told."""
        return {"findings": [f.to_dict() for f in self.findings], "told": self._ledger.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what an earlier run found and told."""
        self.findings = [Finding.from_dict(plain) for plain in state_dict.get("findings", [])]
        self._ledger.load_state_dict(state_dict.get("told", {}))

    def _heeded(self, found: Iterable[Finding]) -> list[Finding]:
        """Leave out what the user does not want to hear of."""
        kept = []
        for finding in found:
            patterns = self._ignore.get(finding.rule, ())
            names = tuple(select(finding.parameters, ("*",), patterns))
            if "*" not in patterns and (names or not finding.parameters):
                kept.append(replace(finding, parameters=names))
        return kept


def _with_replay(finding: Finding, replayed: Sequence[str]) -> Finding:
    if not replayed or not finding.rule.startswith("non_finite_"):
        return finding
    return replace(finding, saw=f"{finding.saw} Replayed: {replayed[0]}")


def checked(who: str, rules: Sequence[Rule] | None) -> tuple[Rule, ...]:
    """Return the rules to judge a training by, all there are if none are given; refuse what is no list of rules."""
    if rules is None:
        return tuple(all_rules("training").values())
    if isinstance(rules, str) or not isinstance(rules, Sequence) or not all(isinstance(r, Rule) for r in rules):
        remedy = "Use [*all_rules('training').values(), MY_RULE] from lightning_weightwatch.rules."
        _arguments.refuse(who, "rules", rules, "a list of Rule or None", remedy, wrong_type=True)
    return tuple(rules)


def with_limits(who: str, rules: Sequence[Rule], limits: Any) -> tuple[Rule, ...]:
    """Return rules with other limits; refuse limits that no rule has."""
    example = 'Use {"vanishing_gradients": {"ratio": 1e-4}}.'
    if limits is None:
        return tuple(rules)
    if not isinstance(limits, Mapping) or not all(isinstance(given, Mapping) for given in limits.values()):
        _arguments.refuse(who, "limits", limits, "a dict of limits for each rule, or None", example, wrong_type=True)
    by_name = {rule.name: rule for rule in rules}
    for name, given in limits.items():
        _known_rule(who, "limits", limits, name, by_name)
        has = list(inspect.signature(by_name[name].check).parameters)[1:]
        for limit, number in given.items():
            if limit not in has:
                remedy = f"It has no {limit!r}."
                _arguments.refuse(who, "limits", limits, f"limits of {name} ({', '.join(has)})", remedy)
            if isinstance(number, bool) or not isinstance(number, Real):
                _arguments.refuse(who, "limits", limits, f"a number for {limit} of {name}", example, wrong_type=True)
    return tuple(replace(rule, limits=rule.limits | dict(limits.get(rule.name, {}))) for rule in rules)


def ignored(who: str, rules: Sequence[Rule], ignore: Any) -> dict[str, tuple[str, ...]]:
    """Return what to ignore; refuse what names no rule, or gives no patterns."""
    example = 'Use {"gradient_spike": ["decoder.*"]}, or ["*"] to silence a rule.'
    if ignore is None:
        return {}
    if not isinstance(ignore, Mapping):
        _arguments.refuse(who, "ignore", ignore, "a dict of patterns for each rule, or None", example, wrong_type=True)
    by_name = {rule.name: rule for rule in rules}
    for name, patterns in ignore.items():
        _known_rule(who, "ignore", ignore, name, by_name)
        is_list = isinstance(patterns, Sequence) and not isinstance(patterns, str)
        if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
            _arguments.refuse(who, "ignore", ignore, f"a list of patterns for {name}", example, wrong_type=True)
    return {name: tuple(patterns) for name, patterns in ignore.items()}


def _known_rule(who: str, argument: str, value: Any, name: Any, by_name: Mapping[str, Rule]) -> None:
    if name not in by_name:
        remedy = f"There is no rule {name!r} among them."
        _arguments.refuse(who, argument, value, f"names of rules ({', '.join(sorted(by_name))})", remedy)
