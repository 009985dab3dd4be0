"""Whether gradients are cleared between two steps of an optimizer.

Between two steps there is a moment at which the gradient is gone or zero, just before some backward pass, if somebody
clears it. Networks that take turns leave gradients in each other's parameters, but clear their own before using them.
So one parameter of each optimizer is looked at before every backward pass. A gradient that is ``None`` is known to be
cleared without asking the device; one that may have been set to zero in place is measured. One that was put in the
place of another after the last look, as in a backward pass that nobody announced, leaves it open.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import TensorWeakRef

from lightning_weightwatch.parameters import is_plain

_SMALL = 4_096  # elements; looking at them costs as little as looking at one


@dataclass
class _Interval:
    """What was seen since an optimizer's last step."""

    probe: TensorWeakRef
    cleared: bool = False
    readable: bool = True
    last: TensorWeakRef | None = None
    left: Tensor | None = None


class ClearingMeter:
    """Watches one parameter of each optimizer.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer, meter = torch.optim.SGD([weight], lr=0.1), ClearingMeter()
        >>> for _ in range(2):
        ...     meter.before_backward()
        ...     weight.sum().backward()
        ...     left = meter.before_step(optimizer, [weight])
        >>> bool(left > 0)
        True
    """

    def __init__(self) -> None:
        self._intervals: weakref.WeakKeyDictionary[Optimizer, _Interval] = weakref.WeakKeyDictionary()

    def before_backward(self) -> None:
        """Look at every probe."""
        for interval in self._intervals.values():
            if not interval.cleared:
                _look(interval)

    def before_step(self, optimizer: Optimizer, held: Sequence[Tensor]) -> Tensor | bool | None:
        """Tell whether gradients of before the last step are still in those of this one, and begin anew.

        Args:
            optimizer: It is about to step.
            held: Its parameters.

        Returns:
            ``False`` if they were cleared; a scalar that is positive if they were not; ``None`` if nobody can tell: no
            step came before, or no backward pass was announced.
        """
        last = self._intervals.pop(optimizer, None)
        before: Tensor | None = last.probe() if last is not None else None
        is_kept = before is not None and _can_be_probe(before) and any(p is before for p in held)
        probe = before if is_kept else _smallest(held)
        if probe is not None:
            self._intervals[optimizer] = _Interval(TensorWeakRef(probe))
        return _verdict(last, probe) if last is not None and probe is not None and is_kept else None


def _verdict(interval: _Interval, probe: Tensor) -> Tensor | bool | None:
    if interval.cleared:
        return False
    is_same = interval.last is not None and interval.last() is probe.grad
    return interval.left if is_same and interval.readable else None


def _look(interval: _Interval) -> None:
    probe = interval.probe()
    gradient = None if probe is None else probe.grad
    if gradient is None:
        interval.cleared = True
    elif is_plain(gradient):
        left = gradient.detach().ne(0).any().float()  # NaN is not zero either
        interval.left = left if interval.left is None else interval.left * left
        interval.last = TensorWeakRef(gradient)
    else:
        interval.readable = False


def _can_be_probe(parameter: Tensor) -> bool:
    gradient = parameter.grad
    return parameter.requires_grad and gradient is not None and is_plain(gradient) and gradient.numel() > 0


def _smallest(held: Sequence[Tensor]) -> Tensor | None:
    """Return the largest of the small parameters, as it is least likely to have no gradient but zero; else any."""
    known = [p for p in held if _can_be_probe(p)]
    small = [p for p in known if p.numel() <= _SMALL]
    return max(small, key=Tensor.numel) if small else min(known, key=Tensor.numel, default=None)
