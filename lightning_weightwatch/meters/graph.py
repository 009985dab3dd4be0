"""What the autograd graph tells of a tensor: which parameter it comes from, and which function gave it.

Nodes are known by their names. Nothing is computed, no node is kept, and no tensor that a node has saved is asked for:
under activation checkpointing that would run the forward pass again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

_DEPTH = 12  # nodes; farther away another layer would be named
_VIEWS: tuple[str, ...] = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Transpose", "Permute")
_VIEWS += ("TBackward", "ToCopy", "Clone", "Alias", "AsStrided", "SelectBackward", "SliceBackward", "SplitBackward")
_VIEWS += ("UnbindBackward",)
_PASSES = (*_VIEWS, "IndexBackward", "IndexSelectBackward", "GatherBackward")
_FUNCTIONS = {
    "SoftmaxBackward": "softmax",
    "SafeSoftmaxBackward": "softmax",
    "LogSoftmaxBackward": "log_softmax",
    "SigmoidBackward": "sigmoid",
    "LogSigmoidBackward": "logsigmoid",
    "ReluBackward": "relu",
    "TanhBackward": "tanh",
    "SoftplusBackward": "softplus",
    "EluBackward": "elu",
    "GeluBackward": "gelu",
    "SiluBackward": "silu",
    "HardtanhBackward": "hardtanh",
    "HardsigmoidBackward": "hardsigmoid",
}
_WEIGHT = {"AddmmBackward": 2, "MmBackward": 1, "LinearBackward": 1, "ConvolutionBackward": 1}
"""Which of its operands a layer's matrix is."""


def producer(tensor: Tensor, names: Mapping[int, str]) -> tuple[str, tuple[int, ...]]:
    """Return the matrix nearest behind a tensor, by name, with its shape; ``("", ())`` if there is none.

    A frozen matrix is not in the graph, and what lies behind it is not named in its place.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> producer(torch.relu(layer(torch.ones(1, 3))), {id(layer.weight): "weight"})
        ('weight', (2, 3))
    """
    matrix = next((m for m in _matrices_behind(tensor) if id(m) in names), None)
    return ("", ()) if matrix is None else (names[id(matrix)], tuple(matrix.shape))


def parametrised(weight: Tensor, names: Mapping[int, str]) -> str:
    """Return the parameter that a weight is computed from: the nearest one of as many elements; ``""`` if none is.

    Example:
        >>> from torch import nn
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
        >>> parametrised(layer.weight, {id(p): name for name, p in layer.named_parameters()})
        'parametrizations.weight.original1'
    """
    same_size = (m for m in _matrices_behind(weight) if m.numel() == weight.numel())
    return next((names[id(m)] for m in same_size if id(m) in names), "")


def sources(weight: Tensor, names: Mapping[int, str]) -> list[str]:
    """Return all matrices that a weight is computed from."""
    return [names[id(matrix)] for matrix in _matrices_behind(weight) if id(matrix) in names]


def shown(tensor: Tensor, names: Mapping[int, str]) -> str:
    """Return the parameter that a tensor is, or is a part of in another shape or type; ``""`` if it is none.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2, 3))
        >>> shown(weight.T.half(), {id(weight): "weight"})
        'weight'
    """
    for one in (tensor, tensor._base):  # noqa: SLF001 - of a frozen one there is no graph
        if id(one) in names:
            return names[id(one)]
    node = tensor.grad_fn
    for _ in range(_DEPTH):
        if node is None or not _kind(node).startswith(_VIEWS) or not node.next_functions:
            break
        node = node.next_functions[0][0]
    matrix = None if node is None else _matrix(node)
    return "" if matrix is None else names.get(id(matrix), "")


def fed_by(tensor: Tensor) -> tuple[str, Any]:
    """Return the activation function that gave a tensor, seen through changes of shape and type, and its node.

    Example:
        >>> import torch
        >>> fed_by(torch.ones(1, 2, requires_grad=True).softmax(1).view(2))[0]
        'softmax'
    """
    node = tensor.grad_fn
    for _ in range(_DEPTH):
        if node is None:
            break
        kind = _kind(node)
        if kind in _FUNCTIONS:
            ends = [getattr(node, end, None) for end in ("_saved_min_val", "_saved_max_val")]
            return (clamped(*ends) if ends[0] is not None else _FUNCTIONS[kind]), node
        if not kind.startswith(_PASSES) or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return "", None


def clamped(low: float | None, high: float | None) -> str:
    """Return the name of the function that cuts off at both ends; ``nn.ReLU6`` is a hardtanh to torch.

    Example:
        >>> clamped(0, 6.0), clamped(-1.0, 1.0)
        ('relu6', 'hardtanh')
    """
    return "relu6" if (low, high) == (0, 6) else "hardtanh"


def softmax_units(node: Any) -> int:
    """Return over how many units a softmax was taken, from its node; 0 if it does not say."""
    made, dim = getattr(node, "_input_metadata", ()), getattr(node, "_saved_dim", None)
    if not made or dim is None:
        return 0
    dim = dim - 2**64 if dim >= 2**63 else dim  # a negative number is told without its sign
    return int(made[0].shape[dim])


def _matrices_behind(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the matrices that a tensor comes from, the nearest first."""
    level = [tensor.grad_fn]
    for _ in range(_DEPTH):
        nodes = [node for node in level if node is not None]
        found = (_matrix(node) for node in nodes)
        yield from (matrix for matrix in found if matrix is not None)
        level = [following for node in nodes if not _is_frozen(node) for following, _ in node.next_functions][:64]


def _kind(node: Any) -> str:
    """Return the name of a node of torch's own without its number; of the user's functions nothing is known."""
    name = type(node).__name__
    kind = name.rstrip("0123456789")
    return kind if kind != name else ""


def _matrix(node: Any) -> Tensor | None:
    if type(node).__name__ != "AccumulateGrad":
        return None
    variable: Tensor = node.variable
    return variable if variable.dim() > 1 else None


def _is_frozen(node: Any) -> bool:
    """Whether it is a layer whose matrix asks for no gradient."""
    place, operands = _WEIGHT.get(_kind(node)), [operand for operand, _ in node.next_functions]
    if place is None or place >= len(operands) or operands[place] is not None:
        return False
    return all(operand is None or _matrix(operand) is None for operand in operands)
