"""Asking several rules at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_weightwatch.rules._base import Finding, Rule


def judge(rules: Iterable[Rule], evidence: Any) -> tuple[list[Finding], dict[str, Exception]]:
    """Return what the rules find, and the rules that failed with their errors.

    A rule may be the user's own; one that fails must not silence the others.
    """
    findings: list[Finding] = []
    failed: dict[str, Exception] = {}
    for rule in rules:
        try:
            findings += rule(evidence)
        except Exception as error:  # noqa: BLE001 - somebody else's code
            failed[rule.name] = error
    return findings, failed
