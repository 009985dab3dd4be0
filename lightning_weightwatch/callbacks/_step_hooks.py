"""The moment an optimizer really steps, told by the optimizer itself.

Lightning's own hook comes before the step, comes also for steps that a GradScaler skips, and does not come for an
optimizer that is stepped behind its back.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

Told = Callable[[Optimizer], None]


class StepHooks:
    """Calls ``before`` and ``after`` around the steps of optimizers until it is removed.

    A step that calls the step of the class it is made of is one step: torch may call the hooks for both.

    Args:
        before: Called when ``optimizer.step`` is entered; a closure is evaluated after it.
        after: Called when the weights have changed.
    """

    def __init__(self, before: Told, after: Told) -> None:
        self._before, self._after = before, after
        self._handles: weakref.WeakKeyDictionary[Optimizer, list[Any]] = weakref.WeakKeyDictionary()
        self._depth: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()

    def watch(self, *optimizers: Optimizer) -> None:
        """Watch optimizers, each once; one that has no step hooks is left alone."""
        for optimizer in optimizers:
            if optimizer in self._handles:
                continue
            with contextlib.suppress(AttributeError):  # made without ``super().__init__()``
                self._handles[optimizer] = handles = []
                handles.append(optimizer.register_step_pre_hook(_Hook(self._enter)))
                handles.append(optimizer.register_step_post_hook(_Hook(self._leave)))

    @property
    def watched(self) -> list[Optimizer]:
        """The optimizers that are watched."""
        return list(self._handles)

    def settle(self) -> None:
        """Take it that no optimizer is within a step: one that raised was never left."""
        self._depth.clear()

    def remove(self) -> None:
        """Take every hook away."""
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles.clear()

    def _enter(self, optimizer: Optimizer) -> None:
        self._depth[optimizer] = self._depth.get(optimizer, 0) + 1
        if self._depth[optimizer] == 1:
            self._before(optimizer)

    def _leave(self, optimizer: Optimizer) -> None:
        self._depth[optimizer] = max(self._depth.get(optimizer, 1) - 1, 0)
        if self._depth[optimizer] == 0:
            self._after(optimizer)


class _Hook:
    """A step hook that a pickle of the optimizer leaves behind."""

    def __init__(self, tell: Told) -> None:
        self._tell = tell

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        self._tell(optimizer)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_nobody,)


def _nobody(_: Optimizer) -> None:
    """Listen to nothing."""
