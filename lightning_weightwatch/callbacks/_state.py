"""What a callback saves: tensors and primitives only, so that a checkpoint of it loads with default arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def packed(state: Any) -> Any:
    """Return the same with tensors for arrays.

    Example:
        >>> packed({"steps": [1, 2], "norms": np.ones(1)})
        {'steps': [1, 2], 'norms': tensor([1.], dtype=torch.float64)}
    """
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if isinstance(state, Mapping):
        return {key: packed(value) for key, value in state.items()}
    return [packed(value) for value in state] if isinstance(state, list) else state


def unpacked(state: Any) -> Any:
    """Return the same with arrays for tensors."""
    if isinstance(state, Tensor):
        return state.cpu().numpy()
    if isinstance(state, Mapping):
        return {key: unpacked(value) for key, value in state.items()}
    return [unpacked(value) for value in state] if isinstance(state, list) else state
