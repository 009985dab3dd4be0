"""Counts against ``np.histogram`` on the documented edges, and what is drawn from them."""

import math

import numpy as np
import pytest
import torch

from lightning_weightwatch.stats import histogram
from tests.helpers.tensors import HOSTILE

# Sign, exponent and the first three mantissa bits: eight bins to each doubling, from 2**-126 to 2**128.
EDGES = np.array([2.0**e * (1 + m / 8) for e in range(-126, 128) for m in range(8)] + [2.0**128])
FIRST, LAST = 8, 255 * 8  # the bins before hold zeros and subnormals, those after hold what is not finite
WIDTH = 9 / 8  # the widest bin ends 12.5 % above its begin
SAMPLES = {
    "normal": np.random.default_rng(0).normal(size=5000),
    "shifted": np.random.default_rng(1).normal(3.0, 0.2, size=5000),
    "heavy tails": np.random.default_rng(2).standard_cauchy(size=5000),
    "many magnitudes": np.random.default_rng(3).normal(size=5000)
    * 10.0 ** np.random.default_rng(4).uniform(-9, 9, 5000),
    "with zeros": np.repeat([0.0, 1.0, -2.0], [100, 7, 3]),
}
every_sample = pytest.mark.parametrize("sample", [s.astype(np.float32) for s in SAMPLES.values()], ids=SAMPLES.keys())


def counts(numbers):
    return histogram.measure([torch.as_tensor(numbers)])["counts"][0].numpy()


@pytest.mark.parametrize("tensor", HOSTILE.values(), ids=HOSTILE.keys())
def test_counts_are_exact_on_the_documented_edges(tensor):
    most = float(np.finfo(np.float32).max)
    numbers = tensor.double().numpy().ravel()
    numbers = np.where(np.isinf(numbers), numbers, np.clip(numbers, -most, most)).astype(np.float32).astype(np.float64)
    found = counts(tensor).reshape(2, 2048)
    for row, side in ((found[0], numbers[numbers > 0]), (found[1], -numbers[numbers < 0])):
        truth, _ = np.histogram(side[np.isfinite(side)], EDGES)
        assert row[FIRST:LAST].tolist() == truth.tolist()
    assert found[:, :FIRST].sum() == (np.abs(numbers) < EDGES[0]).sum()
    assert found[:, LAST:].sum() == (~np.isfinite(numbers)).sum()


def test_counts_go_on_beyond_one_chunk():
    found = counts(torch.ones(2**18 + 5))
    assert (found.sum(), np.count_nonzero(found)) == (2**18 + 5, 1)


@pytest.mark.parametrize("many", [1, 7, 8, 9, 100])
def test_many_tensors_of_equal_size_keep_their_counts_apart(many):
    rng = np.random.default_rng(many)
    numbers = [rng.normal(size=(5, 20)).astype(np.float32) * 10.0**i for i in rng.uniform(-9, 9, many)]
    numbers = [n.astype(np.float32) for n in numbers]
    found = histogram.measure([torch.from_numpy(n) for n in numbers])["counts"]
    assert (found.dtype, found.shape) == (torch.int64, (many, 4096))
    for row, n in zip(found.numpy(), numbers, strict=True):
        for half, side in ((row[:2048], n[n > 0]), (row[2048:], -n[n < 0])):
            assert half[FIRST:LAST].tolist() == np.histogram(side.astype(np.float64), EDGES)[0].tolist()


def test_pieces_of_several_large_tensors_are_added_to_their_own():
    large = [torch.full((2**18 * k + 3,), float(k)) for k in (1, 2, 3)]
    found = histogram.measure([large[0], torch.ones(3), *large[1:]])["counts"]
    assert found.sum(1).tolist() == [2**18 + 3, 3, 2 * 2**18 + 3, 3 * 2**18 + 3]
    assert (found > 0).sum(1).tolist() == [1, 1, 1, 1]


def test_float64_beyond_float32_is_large_and_not_infinite():
    found = counts(torch.tensor([1e300, -1e39, math.inf, math.nan], dtype=torch.float64))
    assert histogram.nonfinite_count(found) == 2
    assert histogram.finite_range(found) == (-np.finfo(np.float32).max, np.finfo(np.float32).max)


def test_zeros_and_what_is_not_finite_are_counted_apart():
    numbers = [0.0, -0.0, 1e-39, 1.0, math.nan, math.inf, -math.inf]
    out = histogram.read(histogram.measure([torch.tensor(numbers), torch.ones(2)]))
    assert (out["zero_count"].tolist(), out["nonfinite_count"].tolist()) == ([3, 0], [3, 0])
    assert (histogram.zero_count(counts(numbers)), histogram.nonfinite_count(counts(numbers))) == (3.0, 3.0)


@every_sample
def test_linear_bins_are_those_of_numpy_within_a_bin_width(sample):
    edges = np.linspace(sample.min() - 1, sample.max() + 1, 41)
    drawn = np.cumsum(histogram.linear(counts(sample), edges))
    for edge, below in zip(edges[1:-1], drawn, strict=False):
        low, high = sorted((edge / WIDTH, edge * WIDTH))
        assert (sample < low).sum() - 1e-6 <= below <= (sample <= high).sum() + 1e-6


@every_sample
@pytest.mark.parametrize("edges", [(-1.0, 0.0, 1.0), (0.0, 1e-3), (5.0, 6.0, 7.0), (-1e30, 1e30)], ids=str)
def test_linear_bins_hold_every_finite_element_wherever_the_edges_lie(sample, edges):
    drawn = histogram.linear(counts([*sample, math.nan, math.inf]), np.array(edges))
    assert drawn.shape == (len(edges) - 1,)
    assert drawn.sum() == pytest.approx(len(sample), rel=1e-12)
    assert (drawn >= -1e-9).all()


def test_linear_bins_that_end_where_bit_pattern_bins_do_are_exact():
    numbers = np.random.default_rng(0).uniform(-2, 2, 10_000).astype(np.float32)
    edges = np.arange(-2, 2.25, 0.25)
    assert histogram.linear(counts(numbers), edges) == pytest.approx(np.histogram(numbers, edges)[0], abs=1e-6)


def test_zeros_at_an_edge_go_up_as_in_numpy():
    edges = np.array([-1.0, 0.0, 1.0])
    assert (
        histogram.linear(counts(np.zeros(4, np.float32)), edges).tolist()
        == np.histogram(np.zeros(4), edges)[0].tolist()
    )


@every_sample
@pytest.mark.parametrize("per_decade", [1, 4])
def test_log10_bins_are_those_of_numpy_within_a_bin_width(sample, per_decade):
    edges, drawn = histogram.log10(counts([*sample, math.nan]), per_decade=per_decade)
    decades = np.log10(np.abs(sample[sample != 0].astype(np.float64)))
    assert edges * per_decade == pytest.approx(np.round(edges * per_decade))
    assert drawn.sum() == pytest.approx(len(decades))
    for edge, below in zip(edges[1:], np.cumsum(drawn), strict=True):
        slack = math.log10(WIDTH)
        assert (decades < edge - slack).sum() - 1e-6 <= below <= (decades <= edge + slack).sum() + 1e-6


@pytest.mark.parametrize("numbers", [[0.0], [math.nan, math.inf], []], ids=str)
def test_without_magnitudes_there_are_no_log10_bins_and_no_range(numbers):
    edges, drawn = histogram.log10(counts(torch.tensor(numbers)))
    assert (len(edges), len(drawn)) == (0, 0)
    if numbers != [0.0]:
        assert np.isnan(histogram.finite_range(counts(torch.tensor(numbers)))).all()


@every_sample
def test_the_range_encloses_every_element_and_is_at_most_an_eighth_too_wide(sample):
    low, high = histogram.finite_range(counts(sample))
    assert low <= sample.min() <= max(low * WIDTH, low / WIDTH)
    assert min(high * WIDTH, high / WIDTH) <= sample.max() <= high


def test_counts_of_many_steps_add_without_rounding():
    total = counts(torch.ones(3)) + (2**40) * counts(torch.ones(1))
    assert total.max() == 2**40 + 3
