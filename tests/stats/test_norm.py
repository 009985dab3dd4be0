"""The l2 norm against NumPy in float64."""

import math

import numpy as np
import pytest
import torch

from lightning_weightwatch.stats import norm
from tests.helpers.tensors import HOSTILE

FINITE = {name: t for name, t in HOSTILE.items() if t.isfinite().all()}


def l2(*tensors):
    return norm.read(norm.measure(tensors))["l2"]


@pytest.mark.parametrize("tensor", FINITE.values(), ids=FINITE.keys())
def test_is_the_norm_of_the_elements(tensor):
    truth = np.linalg.norm(tensor.double().numpy().ravel())
    assert l2(tensor).item() == pytest.approx(truth, rel=1e-5, abs=0)


def test_many_at_once_of_many_types():
    tensors = list(FINITE.values())
    truth = [np.linalg.norm(t.double().numpy().ravel()) for t in tensors]
    assert l2(*tensors).tolist() == pytest.approx(truth, rel=1e-5, abs=0)


@pytest.mark.parametrize("size", [2**18 - 1, 2**18, 2**18 + 1, 5_000_001])
def test_millions_of_float32_elements_are_not_rounded_away(size):
    tensor = 1 + torch.rand(size, generator=torch.Generator().manual_seed(0))
    truth = np.linalg.norm(tensor.double().numpy())
    small = torch.tensor([3.0, 4.0])
    assert l2(small, tensor, small).tolist() == pytest.approx([5.0, truth, 5.0], rel=1e-5)


def test_a_large_transposed_tensor_is_measured_whole():
    tensor = torch.rand(700, 900, generator=torch.Generator().manual_seed(0)).T
    assert l2(tensor).item() == pytest.approx(np.linalg.norm(tensor.double().numpy()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_half_precision_elements_are_not_rounded_to_half_precision(dtype):
    tensor = torch.randn(600_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert l2(tensor).item() == pytest.approx(np.linalg.norm(tensor.double().numpy()), rel=1e-5)


@pytest.mark.parametrize("where", [0, 300_000], ids=["first", "behind many others"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_element_that_is_not_finite_shows(bad, where):
    tensor = torch.ones(300_001)
    tensor[where] = bad
    ill, well = l2(tensor, torch.full((9,), 1e38)).tolist()
    assert not math.isfinite(ill)
    assert well == pytest.approx(3e38, rel=1e-5)


def test_partials_are_float64_so_that_squares_have_room():
    assert norm.measure([torch.full((4,), 1e25)])["sum_sq"].item() == pytest.approx(4e50)
    assert norm.measure([])["sum_sq"].dtype == torch.float64


@pytest.mark.parametrize("size", [5_000, 65_536, 300_000, 1_000_001])
@pytest.mark.parametrize("value", [0.1, 3.14159, 7.3, 2.5e-13])
def test_the_norm_of_equal_elements_keeps_five_digits(size, value):
    """Single precision adds equal squares up with an error that grows with their number; it kept three digits."""
    tensor = torch.full((size,), value)
    assert norm.measure([tensor])["sum_sq"].sqrt().item() == pytest.approx(tensor.double().norm().item(), rel=1e-5)


def test_many_rows_that_are_each_too_small_for_single_precision_still_add_up():
    tensor = torch.full((4_000_000,), 1e-18)
    assert norm.measure([tensor])["sum_sq"].sqrt().item() == pytest.approx(tensor.double().norm().item(), rel=1e-5)
