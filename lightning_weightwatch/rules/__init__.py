"""What it means: one file per illness; evidence in, findings out.

Pure Python and NumPy: a rule never sees a tensor or a rank. Every public file here defines ``RULE`` and ``check``, and
its module docstring is its page in the docs.
"""

from __future__ import annotations

import sys

from lightning_weightwatch import _folder
from lightning_weightwatch.rules._base import SEVERITIES, Finding, Rule, Severity
from lightning_weightwatch.rules._causes import EXPLAINS, PRECEDENCE, cause_of, first_cause
from lightning_weightwatch.rules._judge import judge
from lightning_weightwatch.rules._ledger import Ledger
from lightning_weightwatch.rules._profile import Profile, depth_profile
from lightning_weightwatch.rules._words import listed

__all__ = [
    "EXPLAINS",
    "PRECEDENCE",
    "SEVERITIES",
    "Finding",
    "Ledger",
    "Profile",
    "Rule",
    "Severity",
    "all_rules",
    "cause_of",
    "depth_profile",
    "first_cause",
    "judge",
    "listed",
]


def all_rules(subject: str | None = None) -> dict[str, Rule]:
    """Return the rules of this folder by name; only those that judge ``subject``, if one is given."""
    rules = _folder.members(sys.modules[__name__], "RULE")
    return {name: rule for name, rule in rules.items() if subject is None or rule.subject in (subject, "both")}
