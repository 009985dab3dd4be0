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
        steps: The step of each row, ascending, length ``n``.
        measured: Which numbers were put, shape ``[n, columns]``, on the host.
        numbers: The numbers, shape ``[rows, columns]``, still on the device; 0 where nothing was put. All rows of the
            ring, also those not begun: on every process the same shape, whatever happened there.
    """

    steps: list[int]
    measured: NDArray[np.bool_]
    numbers: Tensor


class Ring:
    """A fixed block of device memory for ``rows`` steps of ``columns`` numbers each.

    Args:
        rows: Steps it holds. Further steps are refused until it is drained.
        columns: Numbers per step.
        device: Where the numbers are made.
        dtype: Their type.

    Example:
        >>> ring = Ring(2, 3, torch.device("cpu"), torch.float64)
        >>> ring.begin(7)
        >>> ring.put(torch.tensor([0, 2]), np.array([0, 2]), torch.tensor([1.0, 5.0]))
        >>> ring.drain().measured.tolist()
        [[True, False, True]]
    """

    def __init__(self, rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> None:
        self._numbers = torch.zeros(rows, columns, device=device, dtype=dtype)
        self._measured = np.zeros((rows, columns), dtype=bool)
        self._steps: list[int] = []

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self._numbers.device

    @property
    def like(self) -> Tensor:
        """A tensor of its type and on its device."""
        return self._numbers

    @property
    def full(self) -> bool:
        """Whether there is no row left for another step."""
        return len(self._steps) == len(self._measured)

    def begin(self, step: int) -> None:
        """Begin the row of ``step``, if it is new; not before the last one begun."""
        if self._steps and self._steps[-1] == step:
            return
        if self.full:
            raise BufferError(f"Ring of {len(self._measured)} rows is full. Drain it before step {step}.")
        self._steps.append(step)

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
        row = len(self._steps) - 1
        numbers = numbers.to(self._numbers)
        self._numbers[row, device] = torch.maximum(self._numbers[row, device], numbers) if keep_largest else numbers
        self._measured[row, host] = True

    def drain(self) -> Rows:
        """Hand out what it holds and start anew."""
        n = len(self._steps)
        rows = Rows(self._steps, self._measured[:n].copy(), self._numbers.clone())
        self._steps = []
        self._measured[:] = False
        self._numbers.zero_()
        return rows
