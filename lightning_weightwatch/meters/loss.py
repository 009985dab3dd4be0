"""The loss of a step, added up from what is differentiated within it."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_weightwatch.parameters import values


class LossMeter:
    """Adds up what is differentiated within one step, on the device.

    Example:
        >>> import torch
        >>> meter = LossMeter()
        >>> meter.add(0, torch.tensor(1.5))
        >>> meter.add(0, torch.tensor(0.5))
        >>> meter.of(0), meter.of(1)
        (tensor(2.), None)
    """

    def __init__(self) -> None:
        self._step = -1
        self._sum: Tensor | None = None
        self._count = 0
        self._divided_by = 1

    def add(self, step: int, loss: Tensor, *, scale: Tensor | None = None, divided_by: int = 1) -> None:
        """Add a loss about to be differentiated.

        Args:
            step: The step it belongs to.
            loss: Of any shape; a vector counts by its mean.
            scale: The factor it was multiplied by, if any.
            divided_by: The length of the accumulation window, by which Lightning divides each loss of it.
        """
        plain = values(loss)
        plain = (plain.mean() if plain.dim() else plain) * _summands(loss)
        if scale is not None:
            plain = plain / scale.to(plain.device)
        if self._sum is None or step != self._step:
            self._sum, self._count = plain, 0
        else:
            self._sum = self._sum + plain
        self._step, self._count, self._divided_by = step, self._count + 1, divided_by

    def of(self, step: int) -> Tensor | None:
        """Return the loss of ``step`` so far, a scalar, if anything was differentiated in it.

        The losses of an accumulation window give their mean, also in a window that is cut short by the epoch's end;
        without accumulation several losses of one step give their sum.
        """
        if self._sum is None or step != self._step:
            return None
        return self._sum if self._divided_by == 1 else self._sum * (self._divided_by / self._count)


def _summands(loss: Tensor) -> int:
    """Return of how many summands on as many processes a distributed loss is the sum; their mean is taken later."""
    sizes = getattr(getattr(loss, "device_mesh", None), "shape", ())
    pending = [getattr(p, "reduce_op", "") == "sum" for p in getattr(loss, "placements", ())]
    return math.prod(size for size, is_sum in zip(sizes, pending, strict=True) if is_sum)
