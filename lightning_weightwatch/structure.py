"""How the elements of a tensor lie to each other, and how heavy the tails of their distribution are.

These are no statistics that merge: whoever holds a part of a matrix cannot tell whether its rows are at right angles.
So they are measured of whole tensors only, and of samples: at most 64 rows and columns, at most four million elements.
Nothing is read back to the host but at the end, a dozen numbers for each tensor.

====================== =================================================================================================
``kurtosis``           fourth moment over the squared second, about zero: 3 of a normal distribution
``kurtosis_count``     of how many elements
``cosine``             the largest magnitude of the cosine between two rows, or two columns where these are fewer
``shortest``           the least length of these rows or columns
``longest``            the greatest
``fewest_zeros``       the least number of exact zeros in a column
``most_zeros``         the greatest
``most_zeros_in_row``  the greatest number of exact zeros in a row
``diagonal``           the sum of what lies where an identity has its ones, in the middle of each kernel
``diagonal_of_groups`` the same where each group of a convolution has an identity of its own
====================== =================================================================================================

The cosine of random rows of n elements is about 1/sqrt(n), that of orthogonal ones 0 but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weightwatch.stats import precise

_VECTORS = 64  # two thousand pairs: what is not orthogonal shows a hundred times over
_ELEMENTS = 1 << 22  # the kurtosis of so many scatters by a thousandth
_PIECE = 1 << 18  # elements that are cast at once
_OF_ZEROS = ("fewest_zeros", "most_zeros", "most_zeros_in_row")
_OF_MATRIX = ("cosine", "shortest", "longest", *_OF_ZEROS, "diagonal", "diagonal_of_groups")
NAMES = ("kurtosis", "kurtosis_count", *_OF_MATRIX)


def measure(tensors: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
    """Return a row of the numbers in ``NAMES`` for each whole tensor; NaN where there is none. It waits for nobody.

    Args:
        tensors: Plain tensors with at least one element, each as a whole.
        groups: The groups of the convolution that each belongs to; 1 elsewhere.
    """
    rows = [_numbers(tensor.detach(), of) for tensor, of in zip(tensors, groups, strict=True)]
    return torch.stack([row.to(rows[0]) for row in rows]) if rows else torch.zeros(0, len(NAMES), device="cpu")


def read(measured: Tensor) -> list[dict[str, float]]:
    """Return the numbers of each tensor by name, those that there are; this waits for the device."""
    rows = measured.tolist()
    return [{name: value for name, value in zip(NAMES, row, strict=True) if not math.isnan(value)} for row in rows]


def _numbers(tensor: Tensor, groups: int) -> Tensor:
    kurtosis, count = _kurtosis(tensor)
    found = _of_matrix(tensor, groups) if tensor.dim() >= 2 else {}
    missing = kurtosis.new_full((), math.nan)
    return torch.stack([kurtosis, kurtosis.new_full((), count), *(found.get(name, missing) for name in _OF_MATRIX)])


def _kurtosis(tensor: Tensor) -> tuple[Tensor, int]:
    sample = tensor.reshape(-1)[:_ELEMENTS]
    second = torch.zeros((), dtype=precise(tensor), device=tensor.device)
    fourth = second.clone()
    for piece in sample.split(_PIECE):
        squares = piece.to(second.dtype).square()
        second += squares.sum()
        fourth += squares.square_().sum()
    return fourth * sample.numel() / second.square(), sample.numel()


def _of_matrix(tensor: Tensor, groups: int) -> dict[str, Tensor]:
    matrix = tensor.reshape(len(tensor), -1)
    rows, columns = _sample(matrix), _sample(matrix.T)
    of_row, of_column = ((vectors == 0).sum(1).to(rows.dtype) for vectors in (rows, columns))
    return {
        "fewest_zeros": of_column.amin(),
        "most_zeros": of_column.amax(),
        "most_zeros_in_row": of_row.amax(),
        "diagonal": _diagonal(tensor, 1),
        "diagonal_of_groups": _diagonal(tensor, groups),
        **_angles(rows if matrix.shape[0] <= matrix.shape[1] else columns),
    }


def _sample(vectors: Tensor) -> Tensor:
    """Return at most 64 of the rows, evenly spaced."""
    step = -(-len(vectors) // _VECTORS)
    return vectors[::step].to(precise(vectors))


def _angles(vectors: Tensor) -> dict[str, Tensor]:
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    found = {"shortest": lengths.amin(), "longest": lengths.amax()}
    if len(vectors) < 2:
        return found
    unit = vectors / lengths.unsqueeze(1)
    return found | {"cosine": (unit @ unit.T).fill_diagonal_(0.0).abs().amax()}


def _diagonal(tensor: Tensor, groups: int) -> Tensor:
    for size in tensor.shape[2:]:
        tensor = tensor.select(2, size // 2)
    groups = groups if len(tensor) % groups == 0 else 1
    each = tensor.reshape(groups, len(tensor) // groups, -1)
    return each.diagonal(dim1=1, dim2=2).to(precise(tensor)).sum()


def fingerprints(matrix: Tensor) -> Tensor:
    """Return a number for each row (output unit) that equal rows share: its product with one fixed vector.

    Shape ``[rows]``, float32. The vector is irregular, so that rows with the same sum do not pass for equal.
    """
    rows = matrix.detach().reshape(len(matrix), -1).float()
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float32)
    return rows @ torch.cos(places.square() * 0.7345)


def is_near(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """Whether numbers are equal but for rounding: relative to themselves, as of many rows most may be small."""
    return (a - b).abs() <= tolerance * torch.maximum(a.abs(), b.abs())


def equals_neighbour(same: Tensor) -> Tensor:
    """Say of each of n sorted items whether it equals one of its neighbours.

    Args:
        same: Whether each but the first equals the one before it, shape ``[n - 1]``.
    """
    edge = same.new_zeros(1)
    return torch.cat([same, edge]) | torch.cat([edge, same])


def twins(weights: Tensor, gradients: Tensor) -> Tensor:
    """Return how many rows equal another row in weight and in gradient, which is not zero; a scalar.

    Args:
        weights: The ``fingerprints`` of a weight.
        gradients: Those of its gradient.

    Such units are copies of one another and stay so: they receive the same step. Two equal rows of a layer may still
    be told apart by what follows; then their gradients differ.
    """
    order = gradients.argsort()
    order = order[weights[order].argsort(stable=True)]  # of equal weights those of equal gradients stand together
    w, g = weights[order], gradients[order]
    near = is_near(w[1:], w[:-1], 1e-5) & is_near(g[1:], g[:-1], 1e-4)
    return equals_neighbour(near & (g[1:].abs() > 0) & (g[:-1].abs() > 0)).sum()
