"""When a forward pass is listened to: from the batch's start to its backward pass, on steps that are due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_weightwatch.listening import Listener
from lightning_weightwatch.meters.targets import Targets
from lightning_weightwatch.sinks import log


class Ear:
    """Enters a ``Listener`` and leaves it again, whatever happens in between.

    Attributes:
        unheard: Why forward passes were not listened to, where they were not.
    """

    def __init__(self) -> None:
        self.unheard: set[str] = set()
        self._targets = Targets()
        self._inside: Listener | None = None
        self._heard: Listener | None = None
        self._asked = -1

    def enter(self, step: int, names: Mapping[int, str], batch: Any) -> None:
        """Listen to what follows, once in a step."""
        self.leave()
        if self._inside is None and step != self._asked:
            self._asked, self._inside = step, Listener(step, names, batch, self._targets)
            self._inside.__enter__()

    def leave(self) -> None:
        """Stop listening. Where the mode is out of reach now, it is taken away the next time."""
        listener = self._inside
        if listener is None:
            return
        if not listener.is_closed:
            listener.close()
            self._keep(listener)
        if listener.remove():
            self._inside = None

    def take(self) -> Listener | None:
        """Return what was heard since this was last asked."""
        heard, self._heard = self._heard, None
        return heard

    def _keep(self, listener: Listener) -> None:
        if listener.failure is None:
            self._heard = listener
        else:
            self.unheard.add(f"it failed: {type(listener.failure).__name__}: {listener.failure}")
            log.debug("Listening to a forward pass failed:", exc_info=listener.failure)
