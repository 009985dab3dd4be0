"""What every statistic promises. They are found, not listed: nothing is added here for a new one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_weightwatch import stats
from lightning_weightwatch.parameters import values
from tests.helpers.tensors import HOSTILE, merged

STATISTICS = stats.all_statistics()
every_statistic = pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS.keys())
every_tensor = pytest.mark.parametrize("tensor", HOSTILE.values(), ids=HOSTILE.keys())

# Shares of the elements in each piece; a share of 0 is an empty shard.
CUTS = {"whole": (1.0,), "two, uneven": (0.3, 0.7), "three, one empty": (0.0, 0.25, 0.75), "last empty": (1.0, 0.0)}


# An odd tensor, and the same numbers written down plainly.
def sparse(indices, numbers, shape):
    return torch.sparse_coo_tensor(torch.tensor(indices).long(), torch.tensor(numbers), shape, check_invariants=True)


ODD = {
    "complex": (torch.tensor([[1 + 2j, -3j]]), [1.0, 2.0, 0.0, -3.0]),
    "complex, conjugated": (torch.tensor([1 + 2j]).conj(), [1.0, -2.0]),
    "sparse, index twice": (sparse([[0, 4, 4]], [5.0, 1.0, 2.0], (6,)), [5.0, 3.0]),
    "sparse, rows": (sparse([[1]], [[1.0, -2.0]], (3, 2)), [1.0, -2.0]),
    "sparse, nothing stored": (sparse([[]], [], (6,)), []),
    "int8": (torch.tensor([-128, 127, 0], dtype=torch.int8), [-128.0, 127.0, 0.0]),
    "float8_e4m3fn": (torch.tensor([448.0, -0.5, 0.0]).to(torch.float8_e4m3fn), [448.0, -0.5, 0.0]),
    "float8_e5m2": (torch.tensor([57344.0, float("inf")]).to(torch.float8_e5m2), [57344.0, float("inf")]),
    "parameter": (torch.nn.Parameter(torch.tensor([1.5, -2.0])), [1.5, -2.0]),
}


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            value, other[key], rtol=1e-6, atol=0, equal_nan=True, msg=lambda m, k=key: f"{k} {m}"
        )


def test_the_folder_is_the_registry():
    assert {"norm", "moments", "extremes", "histogram"} <= STATISTICS.keys()


@every_statistic
@every_tensor
@pytest.mark.parametrize("shares", CUTS.values(), ids=CUTS.keys())
def test_does_not_depend_on_how_the_tensor_is_cut(statistic, tensor, shares):
    flat = tensor.reshape(-1)
    sizes = [int(share * len(flat)) for share in shares[:-1]]
    pieces = flat.split([*sizes, len(flat) - sum(sizes)])
    parts = [statistic.measure([piece]) for piece in pieces]
    same(statistic.read(merged(statistic, parts)), statistic.read(statistic.measure([tensor])))


@every_statistic
def test_a_tensor_does_not_colour_its_neighbours(statistic):
    together = statistic.read(statistic.measure(list(HOSTILE.values())))
    for i, tensor in enumerate(HOSTILE.values()):
        alone = statistic.read(statistic.measure([tensor]))
        same({key: value[i : i + 1] for key, value in together.items()}, alone)


@every_statistic
@pytest.mark.parametrize("count", [0, 1, 3])
def test_partials_have_a_row_per_tensor_and_read_outs_a_number(statistic, count):
    partials = statistic.measure([torch.ones(2, 2)] * count)
    assert partials.keys() == statistic.partials.keys()
    for partial in partials.values():
        assert partial.shape[0] == count
        assert partial.dim() in (1, 2)
    assert all(value.shape == (count,) for value in statistic.read(partials).values())


@every_statistic
def test_every_read_out_has_a_unit_and_every_partial_a_merge(statistic):
    read_outs = statistic.read(statistic.measure([torch.ones(3)]))
    assert read_outs.keys() == statistic.units.keys()
    assert all(statistic.units.values())
    assert set(statistic.partials.values()) <= {"sum", "max", "min"}


@every_statistic
@every_tensor
def test_a_tensor_is_left_as_it_was(statistic, tensor):
    before, version = tensor.clone(), tensor._version
    statistic.measure([tensor])
    assert tensor._version == version
    torch.testing.assert_close(tensor, before, rtol=0, atol=0, equal_nan=True)


@every_statistic
def test_nothing_waits_for_the_device(statistic, monkeypatch, tmp_path):
    """A pretended tensor has no numbers, so whatever asks for one, or for a length that follows from one, fails."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch sets it as it begins to pretend
    shapes = [(torch.float16, (4, 3)), (torch.float32, (0,)), (torch.float32, ()), (torch.float64, (5,))]
    with FakeTensorMode():
        partials = statistic.measure([torch.empty(shape, dtype=dtype, device="cuda") for dtype, shape in shapes])
        assert all(partial.device.type == "cuda" for partial in partials.values())
        statistic.read({key: torch.empty(part.shape, dtype=part.dtype) for key, part in partials.items()})


@every_statistic
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize(("tensor", "numbers"), ODD.values(), ids=ODD.keys())
def test_odd_tensors_count_by_their_numbers(statistic, tensor, numbers):
    plain = torch.tensor(numbers)
    same(statistic.read(statistic.measure([values(tensor)])), statistic.read(statistic.measure([plain])))


@every_statistic
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_compressed_sparse_rows_count_by_their_numbers(statistic):
    tensor = torch.tensor([[0.0, 7.0], [-1.0, 0.0]]).to_sparse_csr()
    plain = torch.tensor([7.0, -1.0])
    same(statistic.read(statistic.measure([values(tensor)])), statistic.read(statistic.measure([plain])))


def test_several_are_measured_at_once_under_names_that_say_whose_they_are():
    names, tensors = list(STATISTICS), [torch.tensor([3.0, -4.0])]
    partials = stats.measure(names, tensors)
    assert partials.keys() == stats.merges(names).keys()
    assert {name.partition("/")[0] for name in partials} == set(names)
    out = stats.read(names, partials)
    assert (out["l2"].item(), out["min"].item(), out["mean"].item()) == (5.0, -4.0, -0.5)


def test_no_two_statistics_share_a_read_out():
    names = [name for statistic in STATISTICS.values() for name in statistic.units]
    assert len(names) == len(set(names))
