"""The moment an optimizer really steps, told by the optimizer itself.

Lightning's own hook comes before the step, comes also for steps that a GradScaler skips, and does not come for an
optimizer that is stepped behind its back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

Told = Callable[[Optimizer], None]


class StepHooks:
    """Calls ``before`` and ``after`` around the steps of optimizers until it is removed.

    Args:
        before: Called when ``optimizer.step`` is entered; a closure is evaluated after it.
        after: Called when the weights have changed.
    """

    def __init__(self, before: Told, after: Told) -> None:
        self._before, self._after = before, after
        self._handles: dict[int, list[Any]] = {}

    def watch(self, *optimizers: Optimizer) -> None:
        """Watch optimizers, each once; one that has no step hooks is left alone."""
        for optimizer in optimizers:
            if id(optimizer) not in self._handles and hasattr(optimizer, "register_step_post_hook"):
                self._handles[id(optimizer)] = [
                    optimizer.register_step_pre_hook(lambda optimizer, *_: self._before(optimizer)),
                    optimizer.register_step_post_hook(lambda optimizer, *_: self._after(optimizer)),
                ]

    def remove(self) -> None:
        """Take every hook away."""
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles = {}
