"""How elements are counted into histograms: against NumPy's bit patterns, alone and on two real processes."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_weightwatch import reduce
from lightning_weightwatch.counter import SharedCounter, count
from tests.helpers.ranks import Ranks
from tests.helpers.tensors import HOSTILE
from tests.truth import reference

ZEROS = np.r_[0:8, 2048:2056]  # also of numbers too small for float32
NON_FINITE = np.r_[2040:2048, 4088:4096]
FINITE = np.setdiff1d(np.arange(4096), np.r_[ZEROS, NON_FINITE])

TENSORS = {name: tensor for name, tensor in HOSTILE.items() if tensor.numel()} | {
    "complex": torch.tensor([3 - 4j, 0 + 1j]),
    "bytes as eight-bit floats": torch.tensor([0.5, -2.0, 0.0]).to(torch.float8_e4m3fn),
    "both zeros": torch.tensor([0.0, -0.0, 1.0, -1.0]),
    "every exponent": torch.tensor([s * m * 2.0**e for s in (1, -1) for e in range(-126, 127) for m in (1, 1.51)]),
    "larger than the cache": torch.randn(300_000, generator=torch.Generator().manual_seed(0)),
}


def truth_of(tensor):
    numbers = reference.array(tensor.float() if tensor.element_size() == 1 else tensor)
    most = float(np.finfo(np.float32).max)
    return reference.bit_counts(np.where(np.isfinite(numbers), numbers.clip(-most, most), numbers))


def same_counts(seen, truth):
    """Zeros, and what is not finite, have many bit patterns."""
    np.testing.assert_array_equal(seen[FINITE], truth[FINITE])
    for bins in (ZEROS, NON_FINITE):
        assert seen[bins].sum() == truth[bins].sum()


def alone(tensors, scale=None):
    held = [torch.empty(0) if t is None else t for t in tensors]
    return count([str(i) for i in range(len(tensors))], held, tensors, scale)


def test_counts_are_those_of_the_bit_patterns():
    found = count(list(TENSORS), list(TENSORS.values()), list(TENSORS.values()), None)
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        same_counts(found[name], truth_of(tensor))


def test_one_tensor_is_counted_as_among_others():
    together = count(list(TENSORS), list(TENSORS.values()), list(TENSORS.values()), None)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(count([name], [tensor], [tensor], None)[name], together[name])


def test_what_cannot_be_read_is_missing_and_moves_no_other():
    lazy = nn.LazyLinear(2).weight
    tensors = [
        None,
        torch.ones(3),
        torch.empty(0),
        torch.ones(2, dtype=torch.uint8),
        lazy,
        torch.ones(2, device="meta"),
    ]
    found = alone([*tensors, torch.full((5,), 2.0)])
    assert {name: row.sum() for name, row in found.items()} == {"1": 3, "6": 5}
    same_counts(found["6"], truth_of(torch.full((5,), 2.0)))


def test_nothing_at_all_is_no_failure():
    assert alone([]) == alone([None]) == {}


def test_a_sparse_gradient_counts_what_it_stores():
    table = nn.Embedding(10, 3, sparse=True)
    table(torch.tensor([1, 1, 7])).sum().backward()
    found = count(["w"], [table.weight], [table.weight.grad], None)["w"]
    same_counts(found, reference.bit_counts(np.array([2.0] * 3 + [1.0] * 3)))


@pytest.mark.parametrize("scale", [1.0, 2.0**16, 2.0**-3, math.inf])
def test_the_scale_is_divided_out(scale):
    gradient = torch.tensor([3.0, -1.5, 0.0, 1e-3, math.nan])
    found = alone([gradient], torch.tensor(scale))["0"]
    same_counts(found, reference.bit_counts(gradient.numpy() / np.float32(scale)))


def test_counting_changes_nothing():
    tensors = [torch.ones(4, requires_grad=True), torch.tensor([math.nan, 1e39], dtype=torch.float64)]
    before = [t.detach().clone() for t in tensors]
    alone(tensors, torch.tensor(2.0))
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(before, tensors, strict=True))


# --- on two processes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("counter") / "meeting")
    yield ranks
    ranks.close()


SHARED = {name: t.reshape(-1) for name, t in TENSORS.items() if not t.is_complex() and t.element_size() > 1}
LAYOUTS = {
    "replicated": lambda n: (slice(None), slice(None)),
    "halves": lambda n: (slice(0, n // 2), slice(n // 2, n)),
    "uneven": lambda n: (slice(0, n // 3), slice(n // 3, n)),
    "all on the last": lambda n: (slice(0, 0), slice(None)),
}


def held_by(rank, layout):
    return [t[LAYOUTS[layout](t.numel())[rank]] for t in SHARED.values()]


def counter():
    return SharedCounter({name: t.numel() for name, t in SHARED.items()})


def shared(layout, scale=None, *, without=()):
    """Count twice, gradients after weights; return the counts of the second time, and the notes."""
    rank, mine = dist.get_rank(), counter()
    held = held_by(rank, layout)
    gradients = [None if name in without else t for name, t in zip(SHARED, held, strict=True)]
    mine.count(list(SHARED), held, held, None, notes={"own": 0.0}, failure=None)
    notes = {"own": 1.0 + rank, "whole": 10.0}
    rows, notes = mine.count(list(SHARED), held, gradients, scale, notes=notes, failure=None)
    return {name: row.tolist() for name, row in rows.items()}, notes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_are_counted_into_the_whole_on_every_process(two_ranks, layout):
    for rows, notes in two_ranks(shared, layout):
        assert list(rows) == list(SHARED)
        for name, tensor in SHARED.items():
            same_counts(np.array(rows[name]), truth_of(tensor))
        assert notes == {"own": 3.0, "whole": 20.0}


def without_plain():
    return shared("halves", without=("plain",))


def test_a_tensor_without_gradient_is_counted_as_nothing(two_ranks):
    for rows, _ in two_ranks(without_plain):
        assert np.sum(rows["plain"]) == 0
        same_counts(np.array(rows["zeros"]), truth_of(SHARED["zeros"]))


def attempt(failing, handed):
    """Count on a rank that fails, or that has failed before; return what is raised, and whether all can meet again."""
    rank, mine, names = dist.get_rank(), counter(), list(SHARED)
    held = held_by(rank, "halves")
    own = ZeroDivisionError(f"of rank {rank}") if handed and rank in failing else None
    scale = object() if not handed and rank in failing else torch.tensor(1.0)
    try:
        mine.count(names, held, held, scale, notes={}, failure=own)
    except Exception as error:  # noqa: BLE001 - it is told to the test
        raised = type(error).__name__, str(error), error is own
    else:
        raised = None
    dist.barrier()
    rows, _ = mine.count(names, held, held, None, notes={}, failure=None)
    return raised, float(sum(row.sum() for row in rows.values()))


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("handed", [False, True], ids=["fails in counting", "has failed before"])
def test_a_failure_of_one_process_is_raised_on_all_in_the_same_call(two_ranks, failing, handed):
    for rank, (raised, total) in enumerate(two_ranks(attempt, failing, handed)):
        kind, words, is_own = raised
        if rank not in failing:
            assert (kind, words) == ("PeerError", "histograms could not be counted on another process")
        else:
            assert (kind, is_own) == (("ZeroDivisionError", True) if handed else ("TypeError", False))
        assert total == sum(t.numel() for t in SHARED.values())


def test_a_process_without_a_group_counts_for_itself():
    rows, notes = counter().count(
        list(SHARED), list(SHARED.values()), list(SHARED.values()), None, notes={"own": 0.25}, failure=None
    )
    for name, tensor in SHARED.items():
        same_counts(rows[name], truth_of(tensor))
    assert notes == {"own": 0.25}
    with pytest.raises(reduce.PeerError, match="mine"):
        counter().count(["plain"], [SHARED["plain"]], [None], None, notes={}, failure=reduce.PeerError("mine"))
