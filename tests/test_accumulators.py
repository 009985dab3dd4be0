"""The accumulator that users hold themselves, against NumPy on all that was given to it."""

import copy
import math
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchmetrics
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lightning_weightwatch import stats
from lightning_weightwatch.accumulators import TensorStatistics
from tests.helpers.ranks import Ranks
from tests.helpers.tensors import HOSTILE

READ_OUTS = ("mean", "std", "rms", "zero_share", "nonfinite", "min", "max", "abs_max", "l2")
GIVEN = [torch.tensor([[3.0, -4.0, 0.0]]), torch.tensor([1.0, 1.0]), torch.tensor([[2.0], [math.inf]])]
ALIKE = "expected the same names and statistics on every process and in every state"


def truth(*tensors):
    """Return the read-outs of an average tensor among those given, from the elements of all of them."""
    arrays = [t.double().numpy() for t in tensors]
    elements = np.concatenate([a.reshape(-1) for a in arrays])
    finite = elements[np.isfinite(elements)]
    if not elements.size:
        return dict.fromkeys(READ_OUTS, math.nan)
    shares = {
        "zero_share": np.mean(elements == 0),
        "nonfinite": (elements.size - finite.size) / len(arrays),
        "l2": np.sqrt(np.mean([np.sum(a**2) for a in arrays])),
    }
    if not finite.size:
        return dict.fromkeys(READ_OUTS, math.nan) | shares
    return shares | {
        "mean": finite.mean(),
        "std": finite.std(),
        "rms": np.sqrt(np.mean(finite**2)),
        "min": finite.min(),
        "max": finite.max(),
        "abs_max": np.abs(finite).max(),
    }


def read(computed, name):
    return {key.partition("/")[0]: value.item() for key, value in computed.items() if key.partition("/")[2] == name}


def near(expected):
    rounding = 1e-7 * np.nan_to_num(expected["rms"])
    return {key: pytest.approx(value, rel=1e-6, abs=rounding, nan_ok=True) for key, value in expected.items()}


def filled(*tensors, names=("a", "b"), **kwargs):
    metric = TensorStatistics(names, **kwargs)
    for tensor in tensors:
        metric.update({"a": tensor})
    return metric


# What is measured


@pytest.mark.parametrize("tensor", HOSTILE.values(), ids=HOSTILE)
def test_one_update_gives_what_the_tensor_itself_gives(tensor):
    assert read(filled(tensor).compute(), "a") == near(truth(tensor))


def test_several_updates_are_averaged():
    assert read(filled(*GIVEN[:2]).compute(), "a") == near(truth(*GIVEN[:2]))
    assert read(filled(*GIVEN).compute(), "a") == near(truth(*GIVEN))


def test_a_longer_epoch_gives_no_larger_numbers():
    assert read(filled(*GIVEN[:2] * 50).compute(), "a") == near(truth(*GIVEN[:2]))


def test_large_counts_are_exact():
    tensor = torch.ones(100_003).bfloat16()
    tensor[7] = 0
    assert filled(*[tensor] * 300).compute()["zero_share/a"].item() == pytest.approx(1 / 100_003, rel=1e-14)


def test_names_are_kept_apart_and_may_come_in_any_order():
    metric = TensorStatistics(["a", "b", "c"])
    metric.update({"c": GIVEN[0], "a": GIVEN[1]})
    metric.update({"b": GIVEN[2], "c": GIVEN[1]})
    computed = metric.compute()
    assert read(computed, "a") == near(truth(GIVEN[1]))
    assert read(computed, "b") == near(truth(GIVEN[2]))
    assert read(computed, "c") == near(truth(GIVEN[0], GIVEN[1]))


@pytest.mark.parametrize("name", stats.all_statistics())
def test_every_statistic_can_be_asked_for_alone(name):
    metric = filled(GIVEN[2], statistics=[name])
    expected = truth(GIVEN[2]) | {"zero_count": 0.0, "nonfinite_count": 1.0}
    computed = metric.compute()
    assert read(computed, "a") == {key: pytest.approx(expected[key]) for key in stats.all_statistics()[name].units}
    assert all(math.isnan(number) for number in read(computed, "b").values())
    assert metric.packed.dtype == torch.float64


def test_without_being_asked_it_takes_what_is_one_number_per_tensor():
    assert "histogram" not in TensorStatistics(["a"]).statistics
    assert {"norm"} <= set(TensorStatistics(["a"]).statistics)
    assert {key.partition("/")[0] for key in filled(GIVEN[0]).compute()} == set(READ_OUTS)


# What is not measured


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (None, None),
        (torch.empty(3, 0), "empty"),
        (torch.ones(2, device="meta"), "on the meta device, without values"),
        (nn.UninitializedParameter(), "uninitialised lazy parameter"),
        (torch.arange(3), "no real numbers (torch.int64)"),
    ],
    ids=["no gradient", "empty", "meta", "lazy", "whole numbers"],
)
def test_what_cannot_be_measured_is_nan_and_says_why(tensor, reason):
    metric = filled(tensor)
    numbers = read(metric.compute(), "a")
    assert numbers.keys() == set(READ_OUTS)
    assert all(math.isnan(number) for number in numbers.values())
    assert metric.unmeasured == ({"a": reason} if reason else {})


def test_what_cannot_be_measured_colours_nothing_and_is_forgotten_once_it_can():
    metric = filled(GIVEN[0], torch.empty(0))
    metric.update({"b": GIVEN[0]})
    assert metric.unmeasured == {"a": "empty"}
    metric.update({"a": GIVEN[1]})
    assert metric.unmeasured == {}
    assert read(metric.compute(), "a") == near(truth(*GIVEN[:2]))


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"names": "weight"},
            TypeError,
            (
                "TensorStatistics(names='weight'): expected at least one name, each once. "
                "Use a list, or dict(model.named_parameters())."
            ),
        ),
        ({"names": 3}, TypeError, "TensorStatistics(names=3): expected at least"),
        ({"names": [1]}, TypeError, "TensorStatistics(names=[1]): expected at least"),
        ({"names": []}, ValueError, "TensorStatistics(names=[]): expected at least"),
        ({"names": ["a", "a"]}, ValueError, "TensorStatistics(names=['a', 'a']): expected at least"),
        ({"names": ["a"], "statistics": "norm"}, TypeError, "TensorStatistics(statistics='norm'): expected at least"),
        (
            {"names": ["a"], "statistics": ["norms"]},
            ValueError,
            (
                f"TensorStatistics(statistics=['norms']): expected names among {', '.join(stats.all_statistics())}. "
                "Use None for all that are one number per tensor."
            ),
        ),
    ],
    ids=str,
)
def test_it_cannot_be_made_of(arguments, error, message):
    with pytest.raises(error) as raised:
        TensorStatistics(**arguments)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        (
            [torch.ones(2)],
            TypeError,
            (
                "TensorStatistics.update(tensors=<class 'list'>): expected a mapping of names to tensors. "
                "Give {name: p.grad for name, p in model.named_parameters()}."
            ),
        ),
        (
            {"conv.weight": torch.ones(2), "conv.wait": torch.ones(2)},
            ValueError,
            (
                "TensorStatistics.update(tensors=['conv.wait']): expected names it was made for. "
                "Make it with all names, or use one of them, such as conv.weight, conv.bias."
            ),
        ),
        (
            {"conv.weight": 1.0},
            TypeError,
            (
                "TensorStatistics.update(tensors={'conv.weight': <class 'float'>}): expected tensors or None. "
                "Give {name: p.grad for name, p in model.named_parameters()}."
            ),
        ),
    ],
    ids=["a list", "a stranger", "a number"],
)
def test_it_cannot_be_given(tensors, error, message):
    metric = TensorStatistics(["conv.weight", "conv.bias"])
    with pytest.raises(error) as raised:
        metric.update(tensors)
    assert str(raised.value) == message
    assert metric.packed[:, 1].tolist() == [0, 0]


# What users of torchmetrics expect


def test_forward_returns_the_batch_and_accumulates():
    metric = filled(GIVEN[0])
    assert read(metric({"a": GIVEN[1]}), "a") == near(truth(GIVEN[1]))
    assert read(metric.compute(), "a") == near(truth(*GIVEN[:2]))
    assert metric.update_count == 2


def test_reset_forgets():
    metric = filled(*GIVEN)
    metric.reset()
    metric.update({"a": GIVEN[0]})
    assert read(metric.compute(), "a") == near(truth(GIVEN[0]))


@pytest.mark.parametrize(
    "copied",
    [TensorStatistics.clone, copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))],
    ids=["clone", "deepcopy", "pickle"],
)
def test_a_copy_goes_on_alone(copied):
    metric = filled(GIVEN[0])
    other = copied(metric)
    other.update({"a": GIVEN[1]})
    assert read(metric.compute(), "a") == near(truth(GIVEN[0]))
    assert read(other.compute(), "a") == near(truth(*GIVEN[:2]))
    assert read(other({"a": GIVEN[2]}), "a") == near(truth(GIVEN[2]))


needs_merge_state = pytest.mark.skipif(not hasattr(torchmetrics.Metric, "merge_state"), reason="a later torchmetrics")


@needs_merge_state
@pytest.mark.parametrize("as_dict", [True, False])
def test_states_merge_also_after_something_was_computed(as_dict):
    metric, other = filled(GIVEN[0]), filled(*GIVEN[1:])
    metric.compute()
    metric.merge_state(other.metric_state if as_dict else other)
    assert read(metric.compute(), "a") == near(truth(*GIVEN))


@needs_merge_state
@pytest.mark.parametrize("arguments", [{"names": ["a", "c"]}, {"names": ["a"]}, {"statistics": ["extremes"]}], ids=str)
def test_states_about_something_else_do_not_merge(arguments):
    metric = filled(GIVEN[0])
    with pytest.raises(ValueError, match=ALIKE):
        metric.merge_state(filled(GIVEN[1], **arguments))
    with pytest.raises((ValueError, RuntimeError)):
        metric.merge_state(filled(GIVEN[1], **arguments).metric_state)
    assert read(metric.compute(), "a") == near(truth(GIVEN[0]))


def test_its_state_is_saved_on_request():
    metric = filled(GIVEN[0])
    assert metric.state_dict() == {}
    metric.persistent(True)
    fresh = filled(GIVEN[2])
    fresh.compute()
    fresh.load_state_dict(metric.state_dict())
    assert read(fresh.compute(), "a") == near(truth(GIVEN[0]))


@pytest.mark.parametrize("spoil", [lambda state: state.bfloat16(), lambda state: state[:1]], ids=["rounded", "cut"])
def test_a_state_about_something_else_is_not_loaded(spoil):
    metric, holder = filled(GIVEN[0]), nn.ModuleDict({"in": filled(GIVEN[1], names=["a", "b"])})
    holder["in"].persistent(True)
    saved = holder.state_dict()
    for state in (spoil(saved["in.packed"]), filled(names=["b", "a"]).packed):
        with pytest.raises(RuntimeError, match=ALIKE):
            nn.ModuleDict({"in": metric}).load_state_dict({"in.packed": state})
        assert read(metric.compute(), "a") == near(truth(GIVEN[0]))


CASTS = {
    "to bfloat16": lambda net: net.to(torch.bfloat16),
    "to float32": lambda net: net.to(torch.float32),
    "to its device and half": lambda net: net.to("cpu", torch.float16),
    "bfloat16": nn.Module.bfloat16,
    "half": nn.Module.half,
    "float": nn.Module.float,
    "set_dtype": lambda net: net["metric"].set_dtype(torch.bfloat16),
    "to empty": lambda net: net.to_empty(device="cpu"),
    "to meta": lambda net: net.to("meta"),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_no_cast_of_the_network_touches_what_was_counted(cast):
    metric = filled(torch.ones(1001))
    net = nn.ModuleDict({"metric": metric, "layer": nn.Linear(2, 2)})
    computed = metric.compute()
    cast(net)
    assert metric.compute() == computed
    metric.update({"a": torch.zeros(1002)})
    assert metric.packed.dtype == torch.float64
    assert read(metric.compute(), "a") == near(truth(torch.ones(1001), torch.zeros(1002)))
    metric.reset()
    assert metric.packed.dtype == torch.float64


def test_a_network_laid_out_on_the_meta_device_has_a_metric_that_counts():
    with torch.device("meta"):
        net = nn.ModuleDict({"metric": TensorStatistics(["a"]), "layer": nn.Linear(2, 2)})
    net["metric"].update({"a": GIVEN[0]})
    net.to_empty(device="cpu")
    net["metric"].update({"a": GIVEN[1]})
    assert read(net["metric"].compute(), "a") == near(truth(*GIVEN[:2]))


def test_where_there_is_no_float64_it_takes_the_widest_there_is(monkeypatch):
    monkeypatch.setattr(stats, "precise", lambda tensor: torch.float32)  # as on MPS
    metric, other = filled(GIVEN[0]), filled(GIVEN[1])
    nn.ModuleDict({"metric": metric}).to(torch.bfloat16)
    assert metric.packed.dtype == torch.float32
    states = torch.stack([metric.packed, other.packed])
    metric.packed = metric._reductions["packed"](states)
    assert read(metric.compute(), "a") == near(truth(*GIVEN[:2]))
    metric.persistent(True)
    monkeypatch.undo()
    elsewhere = filled(GIVEN[2])
    elsewhere.load_state_dict(metric.state_dict())
    assert elsewhere.packed.dtype == torch.float64
    assert read(elsewhere.compute(), "a") == near(truth(*GIVEN[:2]))


def test_updates_in_inference_mode_and_out_of_it_add_up():
    metric = TensorStatistics(["a"])
    with torch.inference_mode():
        metric.update({"a": GIVEN[0]})
    metric.update({"a": GIVEN[1]})
    with torch.inference_mode():
        computed = metric.compute()
    assert read(computed, "a") == near(truth(*GIVEN[:2]))


def test_nothing_of_the_graph_is_kept():
    weight = torch.ones(3, requires_grad=True)
    metric = filled(weight * 2)
    assert not any(number.requires_grad for number in [*metric({"a": weight * 3}).values(), metric.packed])
    assert weight.grad is None


def test_several_of_them_make_a_collection():
    collection = MetricCollection(
        {"gradients": TensorStatistics(["a", "b"]), "weights": TensorStatistics(["a", "b"], ["norm", "moments"])},
        prefix="train_",
    )
    for tensor in GIVEN:
        collection.update({"a": tensor})
    computed = {key: value.item() for key, value in collection.compute().items()}
    assert computed["train_gradients_max/a"] == 3
    assert computed["train_weights_mean/a"] == pytest.approx(truth(*GIVEN)["mean"])


def test_a_collection_can_give_a_prefix():
    collection = MetricCollection([TensorStatistics(["a"])], prefix="gradient_")
    assert collection({"a": GIVEN[0]})["gradient_l2/a"].item() == pytest.approx(5)
    assert collection.compute()["gradient_l2/a"].item() == pytest.approx(5)


def test_a_collection_does_not_take_one_for_another_before_they_differ():
    """It looks for metrics with equal states after the first update, and updates only one of them from then on."""
    collection = MetricCollection({"ab": TensorStatistics(["a", "b"]), "ac": TensorStatistics(["a", "c"])})
    collection.update({"a": GIVEN[0]})
    assert len(collection.compute_groups) == 2


def test_one_number_can_be_taken_out_and_reckoned_with():
    metric = filled(GIVEN[0])
    assert (metric["l2/a"] + metric["max/a"]).compute().item() == 5 + 3


class Watched(pl.LightningModule):
    """As in the docstring."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.gradients = TensorStatistics(dict(self.named_parameters()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_before_optimizer_step(self, optimizer):
        self.gradients.update({name: p.grad for name, p in self.named_parameters()})
        self.seen.append(self.layer.weight.grad.clone())

    def on_train_epoch_end(self):
        self.log_dict(self.gradients.compute())
        self.gradients.reset()


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_lightning_module_logs_it(precision):
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, precision=precision, accelerator="cpu", **off)
    model = Watched()
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    trainer.fit(model, DataLoader(torch.randn(12, 4, dtype=dtype), batch_size=2))
    logged = read(trainer.callback_metrics, "layer.weight")
    assert len(model.seen) == 6
    assert logged == near(truth(*model.seen))
    assert model.gradients.packed.dtype == torch.float64


# Processes


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    ranks = Ranks(tmp_path_factory.mktemp("accumulators") / "meeting")
    yield ranks
    ranks.close()


def synced(given):
    """Give each tensor of this rank in an update of its own."""
    metric = filled(*given[dist.get_rank()])
    return read(metric.compute(), "a")


@pytest.mark.parametrize(
    "given",
    [(GIVEN[:1], GIVEN[1:2]), (GIVEN[:1], GIVEN[1:]), (GIVEN, [torch.empty(0)])],
    ids=["one each", "more on one", "nothing on one"],
)
def test_different_data_are_averaged_over_processes(two_ranks, given):
    expected = near(truth(*[t for held in given for t in held if t.numel()]))
    assert two_ranks(synced, given) == [expected] * 2


def test_copies_on_every_process_change_nothing(two_ranks):
    assert two_ranks(synced, (GIVEN, GIVEN)) == [near(truth(*GIVEN))] * 2


def synced_shards(rows, placement):
    """Give a tensor that is cut into parts, and twice that tensor in a second update."""
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(1.0, 1 + 3 * rows).reshape(rows, 3)
    return synced([[distribute_tensor(k * whole, mesh, [placement]) for k in (1, 2)]] * 2)


@pytest.mark.parametrize(
    ("rows", "placement"),
    [(5, Shard(0)), (1, Shard(0)), (5, Shard(1)), (2, Replicate())],
    ids=["five rows on two", "one row on two", "columns", "copies"],
)
def test_shards_make_up_wholes(two_ranks, rows, placement):
    whole = torch.arange(1.0, 1 + 3 * rows).reshape(rows, 3)
    assert two_ranks(synced_shards, rows, placement) == [near(truth(whole, 2 * whole))] * 2


def partial_sum():
    tensor = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (2,)), [Partial()])
    return filled(tensor).unmeasured, synced([[tensor]] * 2)["l2"]


def test_a_sum_that_is_not_reduced_yet_is_not_measured(two_ranks):
    reason = {"a": "a partial sum that is not reduced yet"}
    assert two_ranks(partial_sum) == [(reason, pytest.approx(math.nan, nan_ok=True))] * 2


def synced_and_back():
    metric = filled(GIVEN[dist.get_rank()])
    metric.sync()
    together = metric.packed.clone()
    metric.unsync()
    metric.update({"a": GIVEN[2]})
    local = filled(GIVEN[dist.get_rank()], GIVEN[2], sync_on_compute=False)
    batch = read(metric({"b": GIVEN[dist.get_rank()]}), "b")  # not synced, unless asked for
    return together.tolist(), read(metric.compute(), "a"), read(local.compute(), "a"), batch


def test_unsync_brings_back_what_this_process_has(two_ranks):
    answers = two_ranks(synced_and_back)
    assert answers[0][0] == answers[1][0]
    for rank, (_, everything, local, batch) in enumerate(answers):
        assert everything == near(truth(GIVEN[0], GIVEN[2], GIVEN[1], GIVEN[2]))
        assert local == near(truth(GIVEN[rank], GIVEN[2]))
        assert batch == near(truth(GIVEN[rank]))


def collectives(count):
    metric = TensorStatistics([f"layer{i}" for i in range(count)])
    metric.update({name: torch.ones(2) for name in metric.names})
    wanted = ("barrier", "all_gather", "all_reduce", "broadcast", "all_gather_into_tensor", "all_gather_object")
    calls, real = [], {name: getattr(dist, name) for name in wanted}
    for name, function in real.items():
        setattr(dist, name, lambda *a, _n=name, _f=function, **k: calls.append(_n) or _f(*a, **k))
    try:
        metric.compute()
    finally:
        for name, function in real.items():
            setattr(dist, name, function)
    return calls


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_a_sync_is_that_of_one_state_however_many_tensors(two_ranks, count):
    assert two_ranks(collectives, count) == [["barrier", "all_gather", "all_gather"]] * 2


def disagreeing(names):
    metric = TensorStatistics(names[dist.get_rank()])
    metric.update({"a": GIVEN[0]})
    try:
        metric.sync()
    except (ValueError, RuntimeError) as error:
        return str(error)


def test_processes_that_name_different_tensors_are_told_so(two_ranks):
    for message in two_ranks(disagreeing, (["a", "b"], ["b", "a"])):
        assert ALIKE in message
    assert all(two_ranks(disagreeing, (["a", "b"], ["a"])))


def hybrid():
    mesh = init_device_mesh("cpu", (2, 2))
    whole = torch.arange(15.0).reshape(5, 3)
    placements = [[Replicate(), Shard(0)], [Shard(0), Shard(1)], [Replicate(), Replicate()]]
    metric = TensorStatistics(["0", "1", "2"])
    metric.update({str(i): distribute_tensor(whole, mesh, way) for i, way in enumerate(placements)})
    computed = metric.compute()
    return [read(computed, name) for name in metric.names]


def test_shards_that_are_copied_and_shards_of_shards_make_up_wholes(tmp_path):
    ranks = Ranks(tmp_path / "meeting", world_size=4)
    try:
        assert ranks(hybrid) == [[near(truth(torch.arange(15.0)))] * 3] * 4
    finally:
        ranks.close()
