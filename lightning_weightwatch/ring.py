"""What waits on the device until it is read: one row of numbers per step, filled without a host sync.

Which numbers were measured is known on the host (a gradient is there or it is not), so it is remembered there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """What a ring held.

    Attributes:
        steps: The steps begun, ascending, length ``n``.
        places: The row of each.
        measured: Which numbers were put, shape ``[rows, columns]``, on the host.
        numbers: The numbers, shape ``[rows, columns]``, still on the device; 0 where nothing was put.
    """

    steps: list[int]
    places: list[int]
    measured: NDArray[np.bool_]
    numbers: Tensor


class Ring:
    """A fixed block of device memory for ``rows`` steps of ``columns`` numbers each.

    Processes merge their blocks row by row, and one may have left out a step: so a step's row follows from its number.

    Args:
        rows: Steps it holds. Further steps are refused until it is drained.
        columns: Numbers per step.
        device: Where the numbers are made.
        dtype: Their type.

    Example:
        >>> ring = Ring(2, 3, torch.device("cpu"), torch.float64)
        >>> ring.begin(7)
        >>> ring.put(torch.tensor([0, 2]), np.array([0, 2]), torch.tensor([1.0, 5.0]))
        >>> rows = ring.drain()
        >>> rows.steps, rows.places, rows.measured.tolist()
        ([7], [1], [[False, False, False], [True, False, True]])
    """

    def __init__(self, rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> None:
        self._numbers = torch.zeros(rows, columns, device=device, dtype=dtype)
        self._measured = np.zeros((rows, columns), dtype=bool)
        self._places: dict[int, int] = {}
        self._row = 0

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self._numbers.device

    @property
    def like(self) -> Tensor:
        """A tensor of its type and on its device."""
        return self._numbers

    def has_room(self, step: int) -> bool:
        """Whether ``step`` has a row, or there is one left for it."""
        return step in self._places or len(self._places) < len(self._measured)

    def begin(self, step: int) -> None:
        """Begin the row of ``step``, or go on with it."""
        rows = len(self._measured)
        if not self.has_room(step):
            raise BufferError(f"Ring of {rows} rows is full. Drain it before step {step}.")
        if step not in self._places:
            taken, row = set(self._places.values()), step % rows
            while row in taken:  # steps far apart, as where only every fourth is measured
                row = (row + 1) % rows
            self._places[step] = row
        self._row = self._places[step]

    def put(
        self, device: Tensor | int, host: NDArray[np.int64] | int, numbers: Tensor, *, keep_largest: bool = False
    ) -> None:
        """Put numbers into the row begun last.

        Args:
            device: Their columns, on the device; a single column may be a plain number.
            host: The same columns, on the host.
            numbers: One number per column; none of them negative, if the largest is kept.
            keep_largest: Where there is a number already, keep the larger; NaN is larger than any.
        """
        row, measured, numbers = self._numbers[self._row], self._measured[self._row], numbers.to(self._numbers)
        if keep_largest and measured[host].any():  # else there are only zeros
            numbers = torch.maximum(row[device], numbers)
        row[device] = numbers
        measured[host] = True

    def mark(self, column: int) -> None:
        """Note that a number of the row begun last is known to be 0, if it is not more already."""
        self._measured[self._row, column] = True

    def drain(self) -> Rows:
        """Hand out what it holds and start anew."""
        steps = sorted(self._places)
        rows = Rows(steps, [self._places[step] for step in steps], self._measured.copy(), self._numbers.clone())
        self._places = {}
        self._measured[:] = False
        self._numbers.zero_()
        return rows
