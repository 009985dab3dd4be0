"""The promise that a watcher never kills a run: an internal error is reported once and the callback goes quiet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.sinks import log

Hook = TypeVar("Hook", bound=Callable[..., None])


def guarded(hook: Hook) -> Hook:
    """Wrap a hook so that no error of ours leaves it; the callback must set ``self.broken = False`` at construction.

    ``UnhealthyRunError``, which the user asked for, passes.
    """

    @functools.wraps(hook)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.broken:
            return
        try:
            hook(self, *args, **kwargs)
        except UnhealthyRunError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
            self.broken = True
            who = f"{type(self).__name__}.{hook.__name__}"
            log.warning(
                "%s failed (%s: %s). It is switched off, the training goes on.", who, type(error).__name__, error
            )
            log.debug("The failure of %s:", who, exc_info=error)

    return wrapper  # type: ignore[return-value]  # functools.wraps keeps the signature
