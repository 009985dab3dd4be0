"""Tensors as rows of matrices: every element once, in matrices of a bounded size, and pieces merged into wholes."""

import math

import numpy as np
import pytest
import torch

from lightning_weightwatch import stats
from lightning_weightwatch.stats import _rows

LARGE = 2 * _rows._PIECE + 3


def numbered(*shapes):
    """Return tensors of these shapes that count on from one to the next."""
    sizes = [math.prod(shape) for shape in shapes]
    pieces = torch.arange(sum(sizes), dtype=torch.float64).split(sizes)
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def found(tensors, **limits):
    """Return the elements that the batches say each tensor has."""
    out = [[] for _ in tensors]
    for owners, matrix in _rows.batches(tensors, **limits):
        for owner, row in zip(owners, matrix.tolist(), strict=True):
            out[owner] += row
    return [sorted(row) for row in out]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_every_element_is_in_one_batch_and_knows_its_tensor():
    tensors = numbered((3, 4), (12,), (5,), (0,), (LARGE,), (2, 6), ())
    assert found(tensors) == [t.flatten().tolist() for t in tensors]
    assert found(tensors, most_rows=2) == [t.flatten().tolist() for t in tensors]


def test_batches_of_one_tensor_alone_are_its_elements():
    assert found(numbered((LARGE,))) == [list(range(LARGE))]
    assert found([torch.empty(3, 0)]) == [[]]
    assert found([]) == []


def test_tensors_of_equal_size_share_matrices_of_a_bounded_size():
    tensors = [torch.zeros(1000)] * 500 + [torch.zeros(8, 125)] * 500
    sizes = [tuple(matrix.shape) for _, matrix in _rows.batches(tensors)]
    assert all(rows * columns <= _rows._PIECE for rows, columns in sizes)
    assert len(sizes) == math.ceil(1000 / (_rows._PIECE // 1000))
    assert all(len(matrix) <= 7 for _, matrix in _rows.batches(tensors, most_rows=7))


def test_tensors_of_several_types_are_not_stacked():
    tensors = [torch.ones(3), torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float16)] * 2
    kinds = [(owners, matrix.dtype) for owners, matrix in _rows.batches(tensors)]
    assert kinds == [((0, 3), torch.float32), ((1, 4), torch.float64), ((2, 5), torch.float16)]


@pytest.mark.parametrize("turn", [(1, 0), (0, 1)])
def test_a_transposed_tensor_is_not_copied(turn):
    tensor = normal(30, 40).permute(turn)
    assert all(row.data_ptr() == tensor.data_ptr() for row in _rows.cut(tensor, 5000))
    assert sorted(_rows.cut(tensor, 5000)[0].tolist()) == sorted(tensor.flatten().tolist())


ODD = {
    "channels last": normal(4, 3, 5, 5).to(memory_format=torch.channels_last),
    "every third": normal(30)[::3],
    "broadcast": torch.tensor([1.0, 2.0]).expand(3, 2),
    "no dimension": torch.tensor(2.5),
}


@pytest.mark.parametrize("tensor", ODD.values(), ids=ODD.keys())
def test_pieces_are_the_elements_however_they_lie(tensor):
    pieces = _rows.cut(tensor, 7)
    assert sorted(torch.cat(tuple(pieces)).tolist()) == sorted(tensor.flatten().tolist())
    assert max(len(piece) for piece in pieces) <= 7


BAD = [(math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf), (-math.inf, math.nan)]


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("where", [0, _rows._PIECE, LARGE - 2], ids=["first piece", "second piece", "last piece"])
def test_what_is_not_finite_in_one_piece_does_not_hide_the_other_pieces(bad, where):
    tensor = normal(LARGE)
    tensor[where : where + len(bad)] = torch.tensor(bad)
    truth = tensor.double().numpy()
    truth = truth[np.isfinite(truth)]
    ill, well = 1, [torch.ones(3), tensor, torch.ones(3)]
    out = {key: value.tolist() for key, value in read(["moments", "extremes"], well).items()}
    assert out["nonfinite"] == [0, len(bad), 0]
    assert (out["min"][ill], out["max"][ill]) == (truth.min(), truth.max())
    assert out["mean"][ill] == pytest.approx(truth.mean(), rel=1e-9)
    assert out["std"][ill] == pytest.approx(truth.std(), rel=1e-9)
    assert (out["mean"][0], out["mean"][2]) == (1.0, 1.0)


def test_infinities_of_two_pieces_do_not_cancel():
    tensor = torch.ones(LARGE)
    tensor[0], tensor[-1] = math.inf, -math.inf
    out = read(["moments", "extremes"], [tensor])
    assert (out["nonfinite"].item(), out["mean"].item(), out["min"].item(), out["max"].item()) == (2.0, 1.0, 1.0, 1.0)


def test_a_piece_of_infinities_alone_adds_nothing():
    tensor = torch.full((LARGE,), math.inf)
    tensor[-3:] = torch.tensor([1.0, 2.0, 3.0])
    out = read(["moments", "extremes"], [tensor])
    assert (out["min"].item(), out["max"].item(), out["mean"].item()) == (1.0, 3.0, 2.0)
    assert out["nonfinite"].item() == LARGE - 3


def test_together_statistics_say_what_each_says_alone():
    tensors = [normal(7, 5), torch.tensor([math.nan, 0.0, 3.0]), torch.empty(0), normal(35, seed=1).half()]
    together = read(["moments", "extremes"], tensors)
    alone = {**read(["moments"], tensors), **read(["extremes"], tensors)}
    assert together.keys() == alone.keys()
    for key, value in together.items():
        torch.testing.assert_close(value, alone[key], rtol=0, atol=0, equal_nan=True)


def test_a_parameter_that_learns_is_measured_outside_its_graph():
    weights = [torch.nn.Parameter(normal(6)), torch.nn.Parameter(normal(2, 3))]
    found = stats.measure(["moments", "extremes", "histogram"], weights)
    assert not any(part.requires_grad for part in found.values())


def test_another_default_device_does_not_matter():
    with torch.device("meta"):
        out = read(list(stats.all_statistics()), [torch.ones(3, device="cpu"), torch.full((3,), 2.0, device="cpu")])
    assert out["mean"].tolist() == [1.0, 2.0]
    assert out["max"].tolist() == [1.0, 2.0]


def read(names, tensors):
    return stats.read(names, stats.measure(names, tensors))
