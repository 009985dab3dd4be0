"""What callbacks do, overheard: what happens within their hooks, with the step and the hook it happens in."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import lightning.pytorch as pl
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_weightwatch import GradientHealthMonitor
from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules import Finding, Rule

_HOOKS = [name for name in dir(pl.Callback) if name.startswith(("on_", "setup", "teardown"))]
_OF_OPTIMIZERS = ["_before_step", "_after_step"]


class Operations(TorchDispatchMode):
    """Tells ``note`` the name, the arguments and the result of every operation."""

    def __init__(self, note: Callable[[str, tuple[Any, ...], Any], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._note(str(func), args, result)
        return result


def surround(callback: pl.Callback, around: Callable[[int, str], AbstractContextManager]) -> None:
    """Enter ``around(step, hook)`` for the time of each hook of a callback."""

    def surrounded(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def wrapper(trainer: pl.Trainer, *arguments: Any, **named: Any) -> Any:
            with around(trainer.fit_loop.epoch_loop._batches_that_stepped, name):
                return hook(trainer, *arguments, **named)

        return wrapper

    for name in [*_HOOKS, *(name for name in _OF_OPTIMIZERS if hasattr(callback, name))]:
        setattr(callback, name, surrounded(name, getattr(callback, name)))


def remembered(**arguments: Any) -> tuple[GradientHealthMonitor, list[Evidence]]:
    """Return a monitor that finds nothing, and the list that its evidence goes to."""
    seen: list[Evidence] = []

    def look(evidence: Evidence) -> Iterator[Finding]:
        seen.append(evidence)
        return iter(())

    arguments = {"every_n_steps": 4, "max_overhead": None, "rules": [Rule("look", look)]} | arguments
    return GradientHealthMonitor(**arguments), seen


def none_is_broken(callbacks: Sequence[pl.Callback]) -> bool:
    """Whether all that can be switched off after a failure are still on."""
    return not [c for c in callbacks if getattr(c, "broken", False)]
