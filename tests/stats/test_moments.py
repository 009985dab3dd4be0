"""Mean, spread and shares against NumPy in float64."""

import math

import numpy as np
import pytest
import torch

from lightning_weightwatch.stats import moments
from tests.helpers.tensors import HOSTILE

FILLED = {name: t for name, t in HOSTILE.items() if t.isfinite().any()}


def read(tensor):
    return {key: value.item() for key, value in moments.read(moments.measure([tensor])).items()}


@pytest.mark.parametrize("tensor", FILLED.values(), ids=FILLED.keys())
def test_tells_the_moments_of_the_finite_elements(tensor):
    everything = tensor.double().numpy().ravel()
    finite = everything[np.isfinite(everything)]
    scale = np.abs(finite).max()
    out = read(tensor)
    assert out["mean"] == pytest.approx(finite.mean(), rel=1e-5, abs=1e-12 * scale)
    assert out["std"] == pytest.approx(finite.std(), rel=1e-5, abs=1e-7 * scale)
    assert out["rms"] == pytest.approx(np.sqrt((finite**2).mean()), rel=1e-5, abs=0)
    assert out["zero_share"] == np.mean(everything == 0)
    assert out["nonfinite"] == len(everything) - len(finite)


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (1.0, 1e-3), (-1000.0, 0.1), (1e-6, 1e-6)])
def test_a_small_spread_around_a_large_mean_is_kept(offset, spread):
    tensor = offset + spread * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert read(tensor)["std"] == pytest.approx(tensor.double().numpy().std(), rel=1e-5)


def normal(size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


HARD = {
    "around zero": normal,
    "0.1 around 1,000": lambda n: 1000 + 0.1 * normal(n),
    "near 1e-25, whose squares vanish in float32": lambda n: 1e-25 * normal(n),
    "near 1e25, whose squares overflow in float32": lambda n: 1e25 * normal(n),
    "sorted, so that pieces cancel": lambda n: normal(n).sort().values,
    "mirrored, so that the mean is all but zero": lambda n: torch.cat([normal(n // 2), -normal(n // 2), torch.ones(1)]),
    "equal": lambda n: torch.full((n,), 0.1),
    "of many magnitudes": lambda n: normal(n) * 10 ** (6 * normal(n, seed=1)).clamp(-15, 15),
}


@pytest.mark.parametrize("numbers", HARD.values(), ids=HARD.keys())
@pytest.mark.parametrize("size", [999, 1_000_003])
def test_is_right_to_five_digits(numbers, size):
    tensor = numbers(size)
    truth = tensor.double().numpy()
    rms = np.sqrt((truth**2).mean())
    out = read(tensor)
    assert out["mean"] == pytest.approx(truth.mean(), rel=1e-5, abs=1e-11 * rms)
    assert out["std"] == pytest.approx(truth.std(), rel=1e-5, abs=1e-7 * rms)
    assert out["rms"] == pytest.approx(rms, rel=1e-5)


def test_ten_million_elements_are_not_rounded_away():
    tensor = 1000 + 0.1 * normal(10_000_001)
    truth = tensor.double().numpy()
    out = read(tensor)
    assert (out["mean"], out["std"]) == (pytest.approx(truth.mean(), rel=1e-9), pytest.approx(truth.std(), rel=1e-5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_zeros_of_a_large_tensor_are_counted_to_the_last_one(dtype):
    tensor = normal(600_001).relu().to(dtype)
    tensor[::7] *= -1.0
    truth = int((tensor.double().numpy() == 0).sum())
    assert moments.measure([tensor])["zeros"].item() == truth


@pytest.mark.parametrize("tensor", [torch.empty(0), torch.full((3,), math.nan), torch.tensor([math.inf])])
def test_without_finite_elements_there_is_no_mean_and_none_is_made_up(tensor):
    out = read(tensor)
    assert all(math.isnan(out[key]) for key in ("mean", "std", "rms"))
    assert out["nonfinite"] == tensor.numel()


def test_zeros_are_counted_among_all_elements_and_negative_zero_is_one():
    assert read(torch.tensor([0.0, -0.0, 1.0, math.nan]))["zero_share"] == 0.5
