"""Numbers on their way between the device and the host, in one copy that nobody waits for.

What is in it, and what the numbers mean, is the sender's business.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def upload(numbers: ArrayLike, like: Tensor) -> Tensor:
    """Return numbers of the host as a tensor of the type and on the device of ``like``, without waiting for it.

    Example:
        >>> upload([1, 2], torch.zeros(1))
        tensor([1., 2.])
    """
    there = torch.as_tensor(np.asarray(numbers)).to(like.dtype)
    return there.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else there.to(like.device)


class Parcel:
    """Sends tensors off when it is made; they are there when ``read`` returns.

    On CUDA the copy goes to pinned memory behind the work that is queued, so that sending costs no wait; on other
    devices it is there at once.

    Args:
        tensors: What to send, on one device.
        dtype: The type all of them travel in; wide enough for each.

    Example:
        >>> parcel = Parcel({"a": torch.ones(2), "b": torch.tensor(7)}, torch.float64)
        >>> parcel.landed, parcel.read()
        (True, {'a': array([1., 1.]), 'b': array(7.)})
    """

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        packed = torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors.values()])
        self._event: torch.cuda.Event | None = None
        if packed.is_cuda:
            self._host = torch.empty(packed.shape, dtype=dtype, pin_memory=True)
            self._host.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = packed.cpu()

    @property
    def at_once(self) -> bool:
        """Whether it was there as soon as it was sent; the same on all processes."""
        return self._event is None

    @property
    def landed(self) -> bool:
        """Whether reading would not wait."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> None:
        """Wait until it has landed."""
        if self._event is not None:
            self._event.synchronize()

    def read(self) -> dict[str, NDArray[np.float64]]:
        """Return what was sent, by name and in its shape, float64."""
        self.wait()
        ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes.values()])[:-1]
        pieces = np.split(self._host.double().numpy(), ends)
        return {name: piece.reshape(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}
