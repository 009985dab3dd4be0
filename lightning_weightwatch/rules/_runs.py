"""Steps in a row."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray


def first_run(flags: NDArray[np.bool_], at_least: int) -> slice | None:
    """Return where the first unbroken run of at least so many true flags is.

    Example:
        >>> first_run(np.array([True, False, True, True, False]), 2)
        slice(2, 4, None)
    """
    start = 0
    for flag, run in groupby(flags.tolist()):
        end = start + len(list(run))
        if flag and end - start >= at_least:
            return slice(start, end)
        start = end
    return None


def run_up(flags: NDArray[np.bool_]) -> int:
    """Return where the unbroken run of true flags at the end begins; the length, where the last one is false.

    Example:
        >>> run_up(np.array([True, False, True, True])), run_up(np.array([True, False]))
        (2, 2)
    """
    return 0 if flags.all() else len(flags) - int(np.argmin(flags[::-1]))


def start_of_last_run(flags: NDArray[np.bool_]) -> int:
    """Return where the unbroken run of true flags at the end begins; the last place, where that flag is false.

    Example:
        >>> start_of_last_run(np.array([True, False, True, True])), start_of_last_run(np.array([True, False]))
        (2, 1)
    """
    return min(run_up(flags), len(flags) - 1)
