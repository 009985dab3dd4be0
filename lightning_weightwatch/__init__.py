"""Lightning callbacks that say which layer is ill, since when, why, and what to try.

The public names, nothing else. They are loaded when first used, so that importing the package costs nothing and
brings in neither torch nor lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lightning_weightwatch._version import __version__

if TYPE_CHECKING:
    from lightning_weightwatch.audit import audit_init
    from lightning_weightwatch.callbacks.gradient_health_monitor import GradientHealthMonitor
    from lightning_weightwatch.callbacks.init_auditor import InitAuditor
    from lightning_weightwatch.callbacks.seed_everything import SeedEverything
    from lightning_weightwatch.callbacks.watch import watch
    from lightning_weightwatch.callbacks.weight_histogram_logger import WeightHistogramLogger
    from lightning_weightwatch.report import InitReport, ParameterVerdict
    from lightning_weightwatch.rules import Finding
    from lightning_weightwatch.seeding import SeedReport, seed

__all__ = [
    "Finding",
    "GradientHealthMonitor",
    "InitAuditor",
    "InitReport",
    "ParameterVerdict",
    "SeedEverything",
    "SeedReport",
    "WeightHistogramLogger",
    "__version__",
    "audit_init",
    "seed",
    "watch",
]

_HOME = {
    "Finding": "rules",
    "GradientHealthMonitor": "callbacks.gradient_health_monitor",
    "InitAuditor": "callbacks.init_auditor",
    "InitReport": "report",
    "ParameterVerdict": "report",
    "SeedEverything": "callbacks.seed_everything",
    "SeedReport": "seeding",
    "WeightHistogramLogger": "callbacks.weight_histogram_logger",
    "audit_init": "audit",
    "seed": "seeding",
    "watch": "callbacks.watch",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
