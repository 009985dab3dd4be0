"""How elements lie to each other, against NumPy; and that nothing waits for the device."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_weightwatch import structure


def of(tensor: Tensor, groups: int = 1) -> dict[str, float]:
    return structure.read(structure.measure([tensor], [groups]))[0]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


TENSORS = {
    "wide": drawn(7, 40),
    "tall": drawn(50, 6),
    "more vectors than are looked at": drawn(200, 300),
    "convolution": drawn(12, 5, 3, 3),
    "channels last": drawn(12, 5, 3, 3).contiguous(memory_format=torch.channels_last),
    "transposed": drawn(9, 30).T,
    "float64": drawn(8, 8).double(),
    "bfloat16": drawn(16, 64).bfloat16(),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())
def test_numbers_are_those_of_numpy(tensor):
    found, array = of(tensor), tensor.double().numpy()
    matrix = array.reshape(len(array), -1)
    fewer = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    fewer = fewer[:: math.ceil(len(fewer) / 64)]
    lengths = np.linalg.norm(fewer, axis=1)
    cosines = np.abs((fewer @ fewer.T) / np.outer(lengths, lengths))
    np.fill_diagonal(cosines, 0)
    assert found["cosine"] == pytest.approx(cosines.max())
    assert (found["shortest"], found["longest"]) == (pytest.approx(lengths.min()), pytest.approx(lengths.max()))
    assert found["kurtosis"] == pytest.approx((array**4).mean() / (array**2).mean() ** 2)
    assert found["kurtosis_count"] == array.size


def test_kurtosis_is_known_for_known_distributions():
    generator = torch.Generator().manual_seed(0)
    assert of(torch.rand(100_000, generator=generator) - 0.5)["kurtosis"] == pytest.approx(9 / 5, abs=0.02)
    assert of(torch.randn(100_000, generator=generator))["kurtosis"] == pytest.approx(3, abs=0.1)
    cut = torch.nn.init.trunc_normal_(torch.empty(100_000), generator=generator)
    expected = scipy.stats.truncnorm(-2, 2).stats("k") + 3
    assert of(cut)["kurtosis"] == pytest.approx(float(expected), abs=0.03)


def test_the_kurtosis_of_a_huge_tensor_is_that_of_its_beginning(monkeypatch):
    monkeypatch.setattr(structure, "_ELEMENTS", 1000)
    tensor = torch.cat([torch.ones(1000), torch.full((1000,), 50.0)])
    assert (of(tensor)["kurtosis"], of(tensor)["kurtosis_count"]) == (1, 1000)


def test_zeros_are_counted_by_column_and_row():
    matrix = torch.ones(6, 4)
    matrix[0] = 0
    matrix[3, 2] = 0
    found = of(matrix)
    assert (found["fewest_zeros"], found["most_zeros"], found["most_zeros_in_row"]) == (1, 2, 4)


@pytest.mark.parametrize("shape", [(5, 5), (5, 8), (8, 5)])
def test_an_identity_lies_on_the_diagonal(shape):
    assert of(torch.nn.init.eye_(torch.empty(shape)))["diagonal"] == 5


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((6, 4, 3), 1), ((6, 4, 3), 3), ((4, 6, 3, 5), 2), ((8, 8, 4, 2), 1), ((8, 1, 3, 3), 8), ((3, 3, 3, 3, 3), 3)],
)
def test_a_dirac_lies_in_the_middle_of_the_kernels_of_its_group(shape, groups):
    kernels = torch.nn.init.dirac_(torch.empty(shape), groups)
    assert of(kernels, groups)["diagonal_of_groups"] == kernels.sum() == groups * min(shape[0] // groups, shape[1])


def test_groups_that_do_not_divide_the_rows_are_taken_for_one():
    assert of(torch.eye(5), 2)["diagonal_of_groups"] == 5


def test_what_has_no_rows_has_no_angles_between_them():
    assert of(torch.ones(5)).keys() == {"kurtosis", "kurtosis_count"}
    assert "cosine" not in of(torch.ones(1, 5))
    assert of(torch.ones(1, 5))["longest"] == pytest.approx(math.sqrt(5))


@pytest.mark.parametrize("tensor", [torch.zeros(4, 4), torch.full((4, 4), math.nan)])
def test_what_has_no_number_is_left_out(tensor):
    assert not {"kurtosis", "cosine"} & of(tensor).keys()


def test_nothing_at_all():
    assert structure.read(structure.measure([], [])) == []


def test_a_tensor_is_left_as_it_was():
    tensor = drawn(8, 8)
    before, version = tensor.clone(), tensor._version
    of(tensor)
    assert tensor._version == version
    assert torch.equal(tensor, before)


def test_nothing_waits_for_the_device(monkeypatch, tmp_path):
    """A pretended tensor has no numbers, so whatever asks for one fails."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch sets it as it begins to pretend
    shapes = [(torch.float32, (100, 80)), (torch.bfloat16, (8, 4, 3, 3)), (torch.float32, (5,)), (torch.float64, ())]
    with FakeTensorMode():
        tensors = [torch.empty(shape, dtype=dtype) for dtype, shape in shapes]
        assert structure.measure(tensors, [1, 2, 1, 1]).shape == (4, len(structure.NAMES))
