"""The folder as registry: what a package folder defines, file by file.

A new statistic, rule or remedy is one new file; nothing else is edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any


def members(package: ModuleType, constant: str) -> dict[str, Any]:
    """Return ``{file name: its constant}`` for every public module of ``package``, in order of name.

    Args:
        package: An imported package. Modules whose name begins with ``_`` are helpers and are passed over.
        constant: The name each module must define, such as ``"RULE"``.

    Raises:
        ImportError: If a public module lacks the constant.

    Example:
        >>> from lightning_weightwatch import stats
        >>> "moments" in members(stats, "STATISTIC")
        True
    """
    found = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        if not hasattr(module, constant):
            raise ImportError(f"{module.__name__} must define {constant}. A helper module's name begins with '_'.")
        found[info.name] = getattr(module, constant)
    return found
