"""What to try, in which order: one file per remedy.

A remedy knows rules by name and nothing of evidence. Every public file here defines ``REMEDY``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from lightning_weightwatch import _folder
from lightning_weightwatch.advice._base import ORDER, Remedy

__all__ = ["ORDER", "Remedy", "all_remedies", "what_to_try"]


def all_remedies() -> list[Remedy]:
    """Return every remedy of this folder, in the order in which they are tried."""
    remedies = _folder.members(sys.modules[__name__], "REMEDY").values()
    return sorted(remedies, key=lambda remedy: ORDER.index(remedy.topic))


def what_to_try(rules: Iterable[str]) -> list[tuple[str, str]]:
    """Return ``(topic, what to do)`` against the named illnesses, in the order in which to try them.

    Example:
        >>> [topic for topic, _ in what_to_try(["vanishing_gradients"])]
        ['initialisation', 'structure', 'activation']
    """
    wanted = list(dict.fromkeys(rules))
    return [(r.topic, r.treats[rule]) for r in all_remedies() for rule in wanted if rule in r.treats]
