"""The promise that a watcher never kills or stalls a run.

``guarded`` catches whatever goes wrong inside a hook, reports it once and switches the callback off. Where ranks meet
in collectives, a rank that went quiet alone would leave the others waiting: hooks without a collective are ``deferred``
instead, and their failure is raised at the next ``meeting``, on all ranks alike. ``attempt`` is for showing things,
which only one rank does: a picture that fails is no reason to stop looking.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from lightning_weightwatch import reduce
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.sinks import log

Hook = TypeVar("Hook", bound=Callable[..., None])
Work = TypeVar("Work", bound=Callable[..., Any])
Result = TypeVar("Result")


def guarded(hook: Hook) -> Hook:
    """Let no error of ours leave a hook; ``UnhealthyRunError``, which the user asked for, passes.

    The callback needs ``self.broken = False`` from its construction on.
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
            _report(f"{type(self).__name__}.{hook.__name__}", error, "It is switched off, the training goes on.")
            _release(self)

    return _untraced(wrapper)  # type: ignore[return-value]  # functools.wraps keeps the signature


def deferred(work: Work) -> Work:
    """Keep an error of work without a collective for the next ``meeting``; the work then gives ``None``.

    The callback needs ``self.broken = False`` and ``self.failure = None`` from its construction on.
    """

    @functools.wraps(work)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.broken or self.failure:
            return None
        try:
            return work(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
            self.failure = error
            return None

    return _untraced(wrapper)  # type: ignore[return-value]  # functools.wraps keeps the signature


def _release(callback: Any) -> None:
    """Take away what a callback that was switched off has hooked; it would stay for the rest of the run."""
    try:
        getattr(getattr(callback, "_fit", None), "let_go", lambda: None)()
    except Exception as error:  # noqa: BLE001 - as above
        _report("Letting go", error, "Some hooks stay.")


def _untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Keep ``torch.compile`` out of a hook that is called within a compiled ``optimizer.step``."""
    return torch.compiler.disable(hook)  # type: ignore[no-any-return]


def meeting(callback: Any, work: Callable[[], Result], device: torch.device) -> Result:
    """Do local work that a collective follows; raise on all ranks if it, or a deferred hook, failed on one."""

    def all_of_it() -> Result:
        if callback.failure:
            raise callback.failure
        return work()

    return reduce.together(all_of_it, device)


def settle(callback: Any) -> None:
    """Report a deferred failure that no meeting followed, at the end of a fit, and switch the callback off."""
    if callback.failure and not callback.broken:
        callback.broken = True
        _report(type(callback).__name__, callback.failure, "It is switched off.")


def attempt(what: str, act: Callable[[], object], told: set[str]) -> None:
    """Show something; if it cannot be shown, say so once (``told`` remembers) and go on."""
    try:
        act()
    except Exception as error:  # noqa: BLE001 - showing is never worth a run, nor the judging
        if what not in told:
            _report(what, error, "It is left out.")
        told.add(what)


def _report(what: str, error: Exception, consequence: str) -> None:
    log.warning("%s failed (%s: %s). %s", what, type(error).__name__, error, consequence)
    log.debug("The failure of %s:", what, exc_info=error)
