"""Wording and counting that rules share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def listed(names: Sequence[str], most: int = 4) -> str:
    """Name a few and count the rest.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def start_of_last_run(flags: NDArray[np.bool_]) -> int:
    """Return where the last unbroken run of true flags begins; the end, if the last flag is false.

    Example:
        >>> start_of_last_run(np.array([True, False, True, True]))
        2
    """
    false = np.flatnonzero(~flags)
    return min(int(false[-1]) + 1 if false.size else 0, len(flags) - 1)
