"""All cases of the ward."""

from __future__ import annotations

import importlib

from tests.ward.case import HEALTHY, SICK, Case

_ROOMS = (
    "sick_gradients",
    "sick_numbers",
    "sick_units",
    "sick_losses",
    "sick_rates",
    "sick_setup",
    "healthy_rates",
    "healthy_structures",
    "healthy_losses",
    "healthy_games",
)

for room in _ROOMS:
    importlib.import_module(f"tests.ward.{room}")

__all__ = ["Case", "healthy_cases", "sick_cases"]


def sick_cases() -> list[Case]:
    """Return the cases with one illness each."""
    return list(SICK.values())


def healthy_cases() -> list[Case]:
    """Return the healthy ones that look ill."""
    return list(HEALTHY.values())
