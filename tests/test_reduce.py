"""How ranks agree: two real processes against one that holds everything."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from lightning_weightwatch import reduce, stats
from lightning_weightwatch.parameters import describe, named_tensors, unmeasurable, values
from lightning_weightwatch.recorder import GradientRecorder
from tests.helpers.ranks import Ranks
from tests.helpers.tensors import HOSTILE

CPU = torch.device("cpu")
NAMES = list(stats.all_statistics())
TENSORS = [t.reshape(-1) for t in HOSTILE.values()]
NUMELS = [t.numel() for t in TENSORS]

# How many of a tensor's elements each of two ranks holds; None is all of them.
LAYOUTS = {
    "replicated": lambda n: (None, None),
    "uneven shards": lambda n: (n // 3, n - n // 3),
    "empty shard": lambda n: (n, 0),
    "all on the last": lambda n: (0, n),
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("ranks") / "meeting")
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("ranks") / "meeting", world_size=4)
    yield ranks
    ranks.close()


def hold(tensor, shares):
    """Return what this rank holds of a tensor."""
    first, second = shares
    if first is None:
        return tensor
    return tensor[:first] if dist.get_rank() == 0 else tensor[len(tensor) - second :]


def merged(held, numels):
    partials = stats.measure(NAMES, held)
    whole = reduce.merge(partials, stats.merges(NAMES), reduce.replication_weights(held, numels))
    assert [(p.shape, p.dtype) for p in whole.values()] == [(p.shape, p.dtype) for p in partials.values()]
    return {key: value.tolist() for key, value in stats.read(NAMES, whole).items()}


def in_layout(layout):
    return merged([hold(t, LAYOUTS[layout](t.numel())) for t in TENSORS], NUMELS)


def in_mixed_layouts():
    ways = list(LAYOUTS.values())
    return merged([hold(t, ways[i % len(ways)](t.numel())) for i, t in enumerate(TENSORS)], NUMELS)


def agree(tables):
    truth = {key: value.tolist() for key, value in stats.read(NAMES, stats.measure(NAMES, TENSORS)).items()}
    for table in tables:
        assert table == {key: pytest.approx(row, rel=1e-6, abs=0, nan_ok=True) for key, row in truth.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_agree_with_one_that_holds_everything(two_ranks, layout):
    agree(two_ranks(in_layout, layout))


def test_layouts_may_differ_from_tensor_to_tensor(two_ranks):
    agree(two_ranks(in_mixed_layouts))


def collectives_of(work):
    """Do the work and return its result and what each of its all-reduces did."""
    calls, all_reduce = [], dist.all_reduce

    def count(tensor, op=dist.ReduceOp.SUM, group=None):
        calls.append(str(op).rpartition(".")[2])
        all_reduce(tensor, op=op, group=group)

    dist.all_reduce = count
    try:
        return work(), calls
    finally:
        dist.all_reduce = all_reduce


def collectives_of_a_merge(count):
    partials, weights = stats.measure(NAMES, [torch.ones(2)] * count), torch.ones(count, dtype=torch.float64)
    return collectives_of(lambda: reduce.merge(partials, stats.merges(NAMES), weights))[1]


@pytest.mark.parametrize("count", [1, 100])
def test_a_merge_is_one_sum_and_one_max_however_many_tensors(two_ranks, count):
    for calls in two_ranks(collectives_of_a_merge, count):
        assert sorted(calls) == ["MAX", "SUM"]


def counts_merged():
    counts, weights = torch.tensor([2**40 + 1, 7, 49]), torch.tensor([1 / 2, 1.0, 1 / 49], dtype=torch.float64)
    return reduce.merge({"n": counts}, {"n": "sum"}, weights)["n"].tolist()


def test_counts_stay_whole_numbers(two_ranks):
    assert two_ranks(counts_merged) == [[2**40 + 1, 14, 2]] * 2  # 49 * (1 / 49) is a little less than 1


def weights_of(kind):
    held = {"copies": torch.ones(6), "shards": torch.ones(2 + 2 * dist.get_rank()), "gone": torch.ones(0)}[kind]
    return reduce.replication_weights([held], [0 if kind == "gone" else 6]).tolist()


@pytest.mark.parametrize(("kind", "weight"), [("copies", 0.5), ("shards", 1.0), ("gone", 0.0)])
def test_the_weight_is_one_over_the_number_of_copies(two_ranks, kind, weight):
    assert two_ranks(weights_of, kind) == [[weight]] * 2


def sharded(rows, placement):
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(1.0, 1 + 3 * rows).reshape(rows, 3)
    tensor = distribute_tensor(whole, mesh, [placement])
    assert unmeasurable(tensor) is None
    held = values(tensor)
    assert not isinstance(held, DTensor)
    weights = reduce.replication_weights([held], [tensor.numel()])
    partials = stats.measure(NAMES, [held])
    out = stats.read(NAMES, reduce.merge(partials, stats.merges(NAMES), weights))
    return held.numel(), {key: out[key].item() for key in ("l2", "mean", "max")}


@pytest.mark.parametrize(
    ("rows", "placement", "held"),
    [(5, Shard(0), [9, 6]), (1, Shard(0), [3, 0]), (5, Shard(1), [10, 5]), (2, Replicate(), [6, 6])],
    ids=["five rows on two", "one row on two", "columns", "replicated"],
)
def test_a_distributed_tensor_is_measured_by_its_local_shard(two_ranks, rows, placement, held):
    whole = np.arange(1.0, 1 + 3 * rows)
    truth = {"l2": np.linalg.norm(whole), "mean": whole.mean(), "max": whole.max()}
    assert two_ranks(sharded, rows, placement) == [(n, pytest.approx(truth, rel=1e-6)) for n in held]


def partial_reason():
    return unmeasurable(DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (2,)), [Partial()]))


def test_a_sum_that_is_not_reduced_yet_is_not_measured(two_ranks):
    assert two_ranks(partial_reason) == ["a partial sum that is not reduced yet"] * 2


# How a gradient of five rows and how its parameter lie on a mesh of two by two.
WAYS = {
    "replicated, a sum over one dimension": ((Partial(), Replicate()), (Replicate(), Replicate())),
    "replicated, a sum over both": ((Partial(), Partial()), (Replicate(), Replicate())),
    "replicated, a mean of sums": ((Partial("avg"), Partial()), (Replicate(), Replicate())),
    "cut by rows, a sum over the other dimension": ((Shard(0), Partial()), (Shard(0), Replicate())),
    "cut by columns, a sum over the other dimension": ((Partial(), Shard(1)), (Replicate(), Shard(1))),
    "cut by rows, but a sum over that dimension": ((Partial(), Replicate()), (Shard(0), Replicate())),
    "cut by rows twice, but a sum over both": ((Partial(), Partial()), (Shard(0), Shard(0))),
    "cut by rows and columns, but replicated": ((Replicate(), Replicate()), (Shard(0), Shard(1))),
    "replicated, but cut by rows": ((Shard(0), Replicate()), (Replicate(), Replicate())),
    "replicated, but cut by rows, and a sum": ((Shard(0), Partial()), (Replicate(), Replicate())),
    "as it should": ((Shard(0), Replicate()), (Shard(0), Replicate())),
}


def placed(whole, mesh, placements):
    """Return a DTensor that amounts to ``whole``; summands differ from process to process."""
    cut = distribute_tensor(whole, mesh, [Replicate() if p.is_partial() else p for p in placements])
    local = cut.to_local().clone()
    for dim, placement in enumerate(placements):
        if placement.is_partial():
            shares = torch.tensor([3.0, -2.0]) * (2 if placement.reduce_op == "avg" else 1)
            local *= shares[mesh.get_local_rank(dim)].to(whole.dtype)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=cut.shape, stride=cut.stride())


def summed(wholes, ways):
    """Sum up gradients in these ways; say whether each is laid out as its parameter, its norm, and what it took."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    gradients = [placed(whole, mesh, mine) for whole, (mine, _) in zip(wholes, ways, strict=True)]
    parameters = [distribute_tensor(whole, mesh, its) for whole, (_, its) in zip(wholes, ways, strict=True)]
    before = [g.to_local().clone() for g in gradients]
    got, calls = collectives_of(lambda: reduce.sum_of_partials(gradients, parameters))
    assert all(torch.equal(g.to_local(), b) for g, b in zip(gradients, before, strict=True))
    shares = [values(share) for share in got]
    alike = [torch.allclose(share, values(p).to(share), atol=1e-6) for share, p in zip(shares, parameters, strict=True)]
    weights = reduce.replication_weights([values(p) for p in parameters], [p.numel() for p in parameters])
    squares = reduce.merge({"s": torch.stack([s.double().square().sum() for s in shares])}, {"s": "sum"}, weights)["s"]
    return alike, squares.sqrt().tolist(), [str(s.dtype) for s in shares], calls


@pytest.mark.parametrize("rows", [5, 1])
def test_sums_of_gradients_are_taken_once_and_laid_out_as_their_parameters(four_ranks, rows):
    """Also where a replicated gradient belongs to a sharded parameter, whose weight would have counted it twice."""
    wholes = [torch.arange(1.0, 1 + 3 * rows).reshape(rows, 3) + i for i in range(len(WAYS))]
    norms = [np.linalg.norm(whole.numpy()) for whole in wholes]
    for alike, seen, _, calls in four_ranks(summed, wholes, list(WAYS.values())):
        assert dict(zip(WAYS, alike, strict=True)) == dict.fromkeys(WAYS, True)
        assert seen == pytest.approx(norms, rel=1e-6)
        assert calls == ["SUM", "SUM"]  # one for each dimension of the mesh


@pytest.mark.parametrize("count", [1, 100])
def test_however_many_sums_over_a_dimension_take_one_all_reduce(four_ranks, count):
    way = ((Partial(), Replicate()), (Replicate(), Replicate()))
    for _, _, _, calls in four_ranks(summed, [torch.ones(2)] * count, [way] * count):
        assert calls == ["SUM"]


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ([torch.bfloat16], "torch.float32"),
        ([torch.bfloat16, torch.float64], "torch.float64"),
        ([torch.float32, torch.complex64], "torch.float32"),
    ],
    ids=str,
)
def test_sums_are_taken_in_the_widest_type_of_all_and_no_less_than_single_precision(four_ranks, dtypes, widest):
    way = ((Partial(), Partial()), (Replicate(), Replicate()))
    wholes = [torch.tensor([1.0, 2.0]).to(dtype) for dtype in dtypes]
    for alike, _, seen, _ in four_ranks(summed, wholes, [way] * len(wholes)):
        assert alike == [True] * len(wholes)
        assert seen == [widest] * len(wholes)


def left_alone():
    mesh, plain = init_device_mesh("cpu", (2,)), torch.ones(2)
    largest = DTensor.from_local(torch.ones(2), mesh, [Partial("max")])
    given = [plain, None, largest]
    parameters = [plain, plain, distribute_tensor(plain, mesh, [Replicate()])]
    got, calls = collectives_of(lambda: reduce.sum_of_partials(given, parameters))
    return [g is h for g, h in zip(got, given, strict=True)], calls, unmeasurable(got[2])


def test_plain_gradients_and_ones_that_are_no_sums_are_left_alone(two_ranks):
    assert two_ranks(left_alone) == [([True] * 3, [], "a partial sum that is not reduced yet")] * 2


def recorded_over_shards():
    """Record two steps of a layer of five rows, of which this rank holds three or two; return what is gathered."""
    mesh, net = init_device_mesh("cpu", (2,)), nn.Linear(3, 5, bias=False)
    facts = describe(net)
    net.weight = nn.Parameter(distribute_tensor(net.weight.detach(), mesh, [Shard(0)]))
    recorder = GradientRecorder(facts, named_tensors(net), rows=4, sharded=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(2):
        net.weight.grad = distribute_tensor((step + 1) * torch.arange(15.0).reshape(5, 3), mesh, [Shard(0)])
        recorder.add(step, optimizer, recorder.gradients(optimizer), loss=torch.tensor(4.0 + 2 * dist.get_rank()))
    found = recorder.receive(recorder.send({}, agree=True))
    return found.steps, found.norms.tolist(), found.measured.tolist(), found.losses.tolist()


def test_recorded_shards_are_gathered_into_wholes_and_losses_into_their_mean(two_ranks):
    norm = np.linalg.norm(np.arange(15.0))
    for steps, norms, measured, losses in two_ranks(recorded_over_shards):
        assert (steps, measured, losses) == ([0, 1], [[True], [True]], [5.0, 5.0])
        assert norms == [[pytest.approx(norm)], [pytest.approx(2 * norm)]]


def recorded_replicas(losses):
    net = nn.Linear(2, 1, bias=False)
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    recorder = GradientRecorder(describe(net), named_tensors(net), rows=4, sharded=False)
    optimizer = torch.optim.SGD(net.parameters())
    recorder.add(0, optimizer, recorder.gradients(optimizer), loss=torch.tensor(losses[dist.get_rank()]))
    found = recorder.receive(recorder.send({}, agree=True))
    return found.norms.tolist(), found.losses.tolist()


@pytest.mark.parametrize(
    ("losses", "loss"), [((1.0, 2.0), 1.5), ((1.0, math.nan), math.inf), ((math.inf, 1.0), math.inf)]
)
def test_replicas_are_not_added_up_and_one_rank_without_a_finite_loss_shows(two_ranks, losses, loss):
    assert two_ranks(recorded_replicas, losses) == [([[5.0]], [loss])] * 2


def outcome_together(failing):
    """Fail on the given ranks; say what came of it, and whether a later collective still works."""

    def work():
        if dist.get_rank() in failing:
            raise ValueError("my own")
        return "done"

    try:
        outcome = reduce.together(work, CPU)
    except (ValueError, reduce.PeerError) as error:
        outcome = type(error).__name__
    return outcome, reduce.anyone(True, CPU)


@pytest.mark.parametrize(
    ("failing", "outcomes"),
    [
        ((), ["done", "done"]),
        ((0,), ["ValueError", "PeerError"]),
        ((1,), ["PeerError", "ValueError"]),
        ((0, 1), ["ValueError", "ValueError"]),
    ],
    ids=str,
)
def test_what_fails_on_one_rank_fails_on_all_and_nobody_is_left_waiting(two_ranks, failing, outcomes):
    assert two_ranks(outcome_together, failing) == [(outcome, True) for outcome in outcomes]


def anyone(flags):
    return reduce.anyone(flags[dist.get_rank()], CPU)


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_anyone_is_true_on_all_ranks_if_it_is_on_one(two_ranks, flags):
    assert two_ranks(anyone, flags) == [any(flags)] * 2


def world():
    return reduce.is_distributed(), reduce.world_size()


def test_processes_know_how_many_they_are(two_ranks):
    assert two_ranks(world) == [(True, 2)] * 2


def test_a_single_process_gets_back_what_it_gave():
    assert world() == (False, 1)
    partials = {"a": torch.tensor([1.0, math.nan]), "b": torch.tensor([3])}
    assert reduce.merge(partials, {"a": "sum", "b": "max"}, torch.ones(2)) == partials
    assert reduce.replication_weights([torch.ones(2), torch.ones(0)], [2, 0]).tolist() == [1.0, 1.0]
    assert (reduce.anyone(True, CPU), reduce.anyone(False, CPU)) == (True, False)
    assert reduce.together(lambda: 7, CPU) == 7
    gradients = [torch.ones(2), None]
    assert reduce.sum_of_partials(gradients, [torch.ones(2)] * 2) == gradients
    with pytest.raises(ZeroDivisionError):
        reduce.together(lambda: 1 / 0, CPU)
