"""A batch that can be given to a step a second time."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

from lightning_weightwatch.replay._numbers import tensors_in


class Kept:
    """Keeps a batch as it was given: no tensor is copied, but a step may take things out of a dict or a list.

    Args:
        batch: What a step is about to be given.

    Example:
        >>> batch = {"x": 1, "y": 2}
        >>> kept = Kept(batch)
        >>> batch.pop("y")
        2
        >>> kept.again()
        {'x': 1, 'y': 2}
    """

    def __init__(self, batch: Any) -> None:
        self._batch = _copied(batch)
        self._versions = self._versions_now()

    def again(self) -> Any:
        """Return the batch, for one step to use."""
        return _copied(self._batch)

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Return its tensors with their paths."""
        return list(tensors_in(self._batch, "batch", inside=True))

    def is_changed(self) -> bool:
        """Whether a tensor of it was written to, so that it is no longer what the step was given."""
        return self._versions != self._versions_now()

    def _versions_now(self) -> list[int]:
        # What was made under inference mode counts no versions.
        counted = (tensor for _, tensor in self.tensors() if not tensor.is_inference())
        return [tensor._version for tensor in counted]  # noqa: SLF001 - the documented way to ask, for want of a name


def _copied(value: Any) -> Any:
    """Return new containers with the same tensors in them."""
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return copy.copy(value) if isinstance(value, MutableMapping) else value
