"""Full statistics of one step, whole and in pieces, against NumPy."""

import functools
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch import GradientHealthMonitor, snapshot
from lightning_weightwatch.parameters import Parameter, describe, named_tensors, values
from lightning_weightwatch.recorder import GradientRecorder
from lightning_weightwatch.snapshot import SnapshotMeter
from tests.helpers import fits, nets
from tests.truth import reference

CPU = torch.device("cpu")
WAYS = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


def normal(*shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


# A gradient, the weight before the step and the weight after it; None where there is no gradient.
CASES = {
    "plain": (normal(7, 5), normal(7, 5) + 1, normal(7, 5)),
    "no gradient": (None, normal(4), normal(4)),
    "a gradient of zeros": (torch.zeros(6), normal(6), normal(6)),
    "some zeros": (normal(8).clamp(min=0), normal(8), normal(8)),
    "one NaN": (torch.tensor([1.0, math.nan, -2.0, 0.0]), normal(4), normal(4)),
    "both Infs": (torch.tensor([math.inf, 1.0, -math.inf, 2.0]), normal(4), normal(4)),
    "all NaN": (torch.full((3,), math.nan), normal(3), torch.full((3,), math.nan)),
    "a weight of zeros": (normal(5), torch.zeros(5), normal(5)),
    "a weight turned Inf": (normal(3), normal(3), torch.tensor([0.0, math.inf, 1.0])),
    "one element": (torch.tensor([-4.0]), torch.tensor([2.0]), torch.tensor([2.5])),
    "no dimension": (torch.tensor(0.5), torch.tensor(3.0), torch.tensor(2.0)),
    "negative only": (-normal(9).abs() - 1, normal(9), normal(9)),
    "tiny": (normal(40, scale=1e-25), normal(40, scale=1e-20), torch.zeros(40)),
    "huge": (normal(40, scale=1e25), normal(40, scale=1e20), torch.zeros(40)),
    "bfloat16": (normal(33).bfloat16(), normal(33).bfloat16(), (normal(33) * 300).bfloat16()),
    "float16": (normal(33).half(), normal(33).half(), (normal(33) * 300).half()),
    "float64": (normal(11).double(), normal(11).double(), normal(11).double() * (1 + 1e-12)),
    "complex": (
        torch.complex(normal(6), normal(6, 1)[:, 0]),
        torch.ones(6, dtype=torch.complex64),
        torch.zeros(6) + 1j,
    ),
}
PARAMETERS = [
    Parameter(name, tuple(before.shape), "", "Linear", "linear", i)
    for i, (name, (_, before, _)) in enumerate(CASES.items())
]


def cut(tensor, share):
    """Return a pretended process's share of the elements; flat, as shards are."""
    return None if tensor is None else tensor.reshape(-1)[share(tensor.numel())]


def measured(share):
    """Return the partials of what one process holds."""
    meter = SnapshotMeter(7, len(CASES), CPU, torch.float64)
    held = [[cut(tensor, share) for tensor in case] for case in CASES.values()]
    mine = [(i, values(gradient)) for i, (gradient, _, _) in enumerate(held) if gradient is not None]
    meter.gradients(1, [i for i, _ in mine], [gradient for _, gradient in mine])
    weights = [values(before).clone() for _, before, _ in held]
    meter.weights(1, range(len(CASES)), weights)
    for weight, (_, _, after) in zip(weights, held, strict=True):
        weight.copy_(values(after))
    meter.updates(1, dict(enumerate(weights)))
    return meter.partials


def read(partials):
    return snapshot.read(7, {key: part.numpy() for key, part in partials.items()}, PARAMETERS)


def merged(parts, copies=1):
    """Merge partials as they say; of identical copies each counts by its share."""
    out = {}
    for key, way in snapshot.merges().items():
        mine = [part[key] / (copies if way == "sum" else 1) for part in parts]
        out[key] = functools.reduce(WAYS[way], mine)
    return out


def agrees_with_numpy(found):
    assert found.step == 7
    assert found.parameters == tuple(CASES)
    for name, (gradient, before, after) in CASES.items():
        truth = reference.statistics(*map(reference.array, (gradient, before, after)))
        seen = found.of(name)
        assert list(seen) == list(snapshot.UNITS)
        spread = 1e-6 * np.nanmax([abs(truth["grad_std"]), 0.0])  # a mean of nearly nothing
        assert seen == {key: pytest.approx(value, rel=1e-6, abs=spread, nan_ok=True) for key, value in truth.items()}


def test_statistics_are_those_of_numpy():
    agrees_with_numpy(read(measured(lambda n: slice(None))))


CUTS = {
    "halves": (lambda n: slice(0, n // 2), lambda n: slice(n // 2, n)),
    "uneven": (lambda n: slice(0, n // 3), lambda n: slice(n // 3, n)),
    "all on the first": (lambda n: slice(None), lambda n: slice(0, 0)),
    "all on the last": (lambda n: slice(0, 0), lambda n: slice(None)),
}


@pytest.mark.parametrize("pieces", CUTS)
def test_pieces_merge_into_the_statistics_of_the_whole(pieces):
    agrees_with_numpy(read(merged([measured(share) for share in CUTS[pieces]])))


def test_identical_copies_count_once():
    agrees_with_numpy(read(merged([measured(lambda n: slice(None))] * 2, copies=2)))


def test_what_nobody_measured_is_not_a_number():
    found = read(SnapshotMeter(7, len(CASES), CPU, torch.float64).partials)
    assert all(np.isnan(column).all() for column in found.values.values())


# --- of one optimizer -------------------------------------------------------------------------------------------------


def recorder_of(module):
    recorder = GradientRecorder(describe(module), named_tensors(module), rows=4, sharded=False)
    recorder.begin_snapshot(0)
    return recorder


def taken(recorder):
    return recorder.receive(recorder.send({}, agree=True)).snapshot


def step(recorder, optimizer):
    """Do what the monitor does around one step."""
    recorder.add(0, optimizer, recorder.gradients(optimizer))
    recorder.before_step(optimizer)
    optimizer.step()
    recorder.after_step(0, optimizer, {})


def test_zeros_that_a_sparse_gradient_does_not_store_are_counted():
    net = nn.Embedding(10, 3, sparse=True)
    net(torch.tensor([1, 1, 7])).pow(2).sum().backward()
    dense = reference.array(net.weight.grad)
    recorder = recorder_of(net)
    step(recorder, torch.optim.SGD(net.parameters(), lr=0.1))
    truth = reference.statistics(dense, None, None)
    seen = {key: value for key, value in taken(recorder).of("weight").items() if key.startswith("grad")}
    assert seen == {key: pytest.approx(truth[key], rel=1e-5) for key in seen}


def test_a_sparse_gradient_of_one_sign_still_has_a_zero_for_an_extreme():
    net = nn.Embedding(4, 2, sparse=True)
    net(torch.tensor([2])).sum().backward()
    recorder = recorder_of(net)
    step(recorder, torch.optim.SGD(net.parameters(), lr=0.1))
    seen = taken(recorder).of("weight")
    assert (seen["grad_min"], seen["grad_max"], seen["grad_zero_share"]) == (0.0, 1.0, 0.75)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_update_of_a_half_precision_weight_is_not_rounded(dtype):
    """The difference of two numbers of eight bits may need sixteen."""
    net = nn.Linear(2, 1, bias=False).to(dtype)
    before = torch.tensor([[256.0, -1.0]], dtype=dtype)
    net.weight.data.copy_(before)
    net.weight.grad = torch.tensor([[1.0, 1.0]], dtype=dtype)
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.3)
    recorder.before_step(optimizer)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0078125, 3.0]]))
    recorder.after_step(0, optimizer, {})
    assert taken(recorder).of("weight")["update_norm"] == pytest.approx(math.hypot(256 - 1.0078125, 4.0), rel=1e-7)


def test_of_an_optimizer_that_steps_twice_within_a_step_the_first_counts():
    net = nn.Linear(2, 1, bias=False)
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=1.0)
    truth = None
    for factor in (3.0, 1000.0):
        net.weight.grad = torch.full((1, 2), factor)
        before = net.weight.detach().clone()
        step(recorder, optimizer)
        truth = truth or reference.statistics(*map(reference.array, (net.weight.grad, before, net.weight)))
    seen = taken(recorder).of("weight")
    assert seen == {key: pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True) for key, value in truth.items()}


def test_optimizers_do_not_get_in_each_others_way():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    recorder = recorder_of(net)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=lr) for layer, lr in zip(net, (0.5, 2.0), strict=True)]
    for layer, optimizer in zip(net, optimizers, strict=True):
        layer.weight.grad = torch.ones(2, 2)
        step(recorder, optimizer)
    assert taken(recorder).values["update_norm"].tolist() == pytest.approx([1.0, 4.0])


def test_a_weight_that_changed_its_shape_has_no_update():
    net = nn.Linear(2, 2, bias=False)
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.1)
    recorder.before_step(optimizer)
    net.weight.data = torch.ones(3, 2)
    recorder.after_step(0, optimizer, {})
    seen = taken(recorder).of("weight")
    assert seen["weight_norm"] > 0
    assert np.isnan([seen["update_norm"], seen["update_ratio"]]).all()


@pytest.mark.parametrize("portion", [1, 20, 60])
def test_updates_are_those_of_numpy_however_many_are_measured_together(portion, monkeypatch):
    monkeypatch.setattr(snapshot, "_PORTION", portion)
    agrees_with_numpy(read(measured(lambda n: slice(None))))


# --- memory -----------------------------------------------------------------------------------------------------------


def no_room(*_, **__):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_where_there_is_no_room_for_a_copy_updates_are_not_measured_and_the_rest_is(monkeypatch):
    net = nn.Linear(2, 1)
    net(torch.ones(1, 2)).sum().backward()
    recorder = recorder_of(net)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "clone", no_room)
        recorder.add(0, optimizer := torch.optim.SGD(net.parameters()), recorder.gradients(optimizer))
        recorder.before_step(optimizer)
    optimizer.step()
    recorder.after_step(0, optimizer, {})
    found = taken(recorder).values
    assert np.isnan([found["update_norm"], found["update_ratio"]]).all()
    assert np.isfinite([found["weight_norm"], found["grad_norm"]]).all()


class NoRoom(snapshot.SnapshotMeter):
    """Works on a device that has no room for a copy of the weights, as torch would say it."""

    def weights(self, *arguments):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.Tensor, "clone", no_room)
            super().weights(*arguments)


def watched(**options):
    monitor = GradientHealthMonitor(every_n_steps=1, statistics_every_n_steps=1, max_overhead=None)
    return monitor, fits.fit(nets.Net, [monitor], max_epochs=1, **options)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_run_without_room_for_a_copy_goes_on_and_is_watched(monkeypatch):
    monkeypatch.setattr("lightning_weightwatch.recorder.SnapshotMeter", NoRoom)
    monitor, model = watched()
    assert not monitor.broken
    assert np.isnan(monitor.snapshot.values["update_norm"]).all()
    assert np.isfinite(monitor.snapshot.values["weight_norm"]).all()
    assert same_weights(model, fits.fit(nets.Net, max_epochs=1))


def test_a_run_without_room_for_the_differences_does_not_lose_its_monitor(monkeypatch):
    """Differences take as much memory as the copies; where that was missing, the monitor switched itself off."""
    monkeypatch.setattr(snapshot, "_difference", no_room)
    monitor, model = watched()
    assert same_weights(model, fits.fit(nets.Net, max_epochs=1))
    assert not monitor.broken
    assert np.isnan(monitor.snapshot.values["update_norm"]).all()


class Copies:
    """Notes every copy that is made of a tensor, and which of them are still alive."""

    def __init__(self, monkeypatch):
        self._made, clone = [], torch.Tensor.clone

        def noted(tensor, *arguments, **options):
            made = clone(tensor, *arguments, **options)
            self._made.append(weakref.ref(made))
            return made

        monkeypatch.setattr(torch.Tensor, "clone", noted)

    @property
    def alive(self):
        gc.collect()
        return sum(reference() is not None for reference in self._made)

    @property
    def made(self):
        return len(self._made)


def test_copies_are_kept_from_before_the_step_until_after_it(monkeypatch):
    net = nn.Linear(2, 1)
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.1)
    copies = Copies(monkeypatch)
    recorder.before_step(optimizer)
    assert (copies.made, copies.alive) == (2, 2)
    recorder.after_step(0, optimizer, {})
    assert copies.alive == 0


def test_copies_of_an_optimizer_that_never_steps_go_with_the_snapshot(monkeypatch):
    """A GradScaler skips steps."""
    net = nn.Linear(2, 1)
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.1)
    copies = Copies(monkeypatch)
    recorder.before_step(optimizer)
    assert np.isnan(taken(recorder).values["update_norm"]).all()
    assert copies.alive == 0


def test_between_snapshots_no_copy_is_made(monkeypatch):
    net = nn.Linear(2, 1)
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.1)
    taken(recorder)
    copies = Copies(monkeypatch)
    step(recorder, optimizer)
    assert copies.made == 0


class Balance(nets.Net):
    """Counts, between steps, the tensors that are alive and shaped like its largest weight."""

    def __init__(self):
        super().__init__(width=37)
        self.counted = []

    def on_train_batch_start(self, batch, batch_idx):
        self.optimizers().zero_grad()
        shape = self.body[3].weight.shape
        gc.collect()
        plain = (torch.Tensor, nn.Parameter)  # lazy ones that other tests left have no shape to ask for
        self.counted.append(sum(type(o) in plain and o.shape == shape for o in gc.get_objects()))


def test_no_tensor_of_the_model_stays_alive_after_its_step():
    monitor = GradientHealthMonitor(every_n_steps=2, statistics_every_n_steps=1, max_overhead=None)
    counted = []
    for callbacks in ([], [monitor]):
        torch.manual_seed(0)
        model = Balance()
        fits.trainer(callbacks, max_epochs=1).fit(model)
        counted.append(model.counted)
    assert monitor.snapshot is not None
    assert counted[0] == counted[1]


# --- rows that are copies ---------------------------------------------------------------------------------------------


def copies(weight, gradient):
    """Count, pair by pair in NumPy, the rows that equal another one in weight and in a gradient that is not zero."""
    w, g = (tensor.double().reshape(len(tensor), -1).numpy() for tensor in (weight, gradient))
    pairs = [(i, j) for i in range(len(w)) for j in range(len(w)) if i != j]
    return len({i for i, j in pairs if (w[i] == w[j]).all() and (g[i] == g[j]).all() and g[i].any()})


def counted(weight, gradient):
    return int(snapshot.twins(snapshot.fingerprints(weight), snapshot.fingerprints(gradient)))


def doubled(rows, *pairs):
    """Return random rows in which the second of each pair is a copy of the first."""
    out = normal(rows, 6)
    for first, second in pairs:
        out[second] = out[first]
    return out


TWINS = {
    "none": (normal(8, 6), normal(8, 5)),
    "a pair": (doubled(8, (1, 5)), doubled(8, (1, 5))),
    "three of a kind and a pair": (doubled(8, (1, 5), (1, 6), (2, 3)), doubled(8, (1, 5), (1, 6), (2, 3))),
    "equal weights, other gradients": (doubled(8, (1, 5)), normal(8, 6)),
    "equal gradients, other weights": (normal(8, 6), doubled(8, (1, 5))),
    "of equal weights some equal gradients": (torch.ones(6, 6), doubled(6, (0, 3), (1, 5))),
    "all the same": (torch.full((7, 3), 0.1), torch.full((7, 3), -2.0)),
    "zeros with gradients of their own": (torch.zeros(7, 3), normal(7, 3)),
    "zeros with equal gradients": (torch.zeros(7, 3), torch.ones(7, 3)),
    "without a gradient": (torch.ones(7, 3), torch.zeros(7, 3)),
    "the same sums": (torch.tensor([[1.0, 2, 3], [3, 2, 1], [2, 2, 2]]), torch.ones(3, 3)),
    "opposite rows": (torch.tensor([[1.0, 2], [-1, -2]]), torch.tensor([[1.0, 2], [-1, -2]])),
    "kernels": (torch.ones(4, 2, 3, 3), torch.ones(4, 2, 3, 3)),
    "a last digit apart": (torch.tensor([[1.0], [1.001]]), torch.ones(2, 1)),
    "two": (torch.ones(2, 1), torch.ones(2, 1)),
    "one": (torch.ones(1, 4), torch.ones(1, 4)),
    "half precision": (torch.full((5, 4), 0.1).bfloat16(), torch.full((5, 4), 0.3).bfloat16()),
    "some NaN": (doubled(8, (1, 5)), doubled(8, (1, 5)).index_fill(0, torch.tensor([2]), math.nan)),
    "tiny and huge": (doubled(8, (1, 5)) * 1e-20, doubled(8, (1, 5)) * 1e20),
}


@pytest.mark.parametrize("case", TWINS)
def test_copies_are_counted_as_numpy_counts_them_pair_by_pair(case):
    weight, gradient = TWINS[case]
    assert counted(weight, gradient) == copies(weight, gradient)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_among_many_rows_none_passes_for_a_copy_because_one_of_them_is_large(scale):
    """A large vocabulary: of rows that lie close to one another, one in five was taken for a copy."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(60_000, 8, generator=generator)
    gradient = torch.randn(60_000, 8, generator=generator) * scale
    gradient[7] = 1.0
    assert counted(weight, gradient) <= 6


@pytest.mark.parametrize("width", [3, 16, 33, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_of_a_network_that_begin_equal_are_copies_in_spite_of_rounding(width, dtype):
    """Sums over a batch are taken in another order for the last rows of a block."""
    net = nn.Sequential(nn.Linear(7, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)).to(
        dtype
    )
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    x = normal(37, 7).to(dtype)
    nn.functional.mse_loss(net(x), x[:, :3]).backward()
    recorder = recorder_of(net)
    step(recorder, torch.optim.SGD(net.parameters(), lr=0.1))
    shares = taken(recorder).column("twin_rows")
    assert {"0.weight": 1.0, "2.weight": 1.0}.items() <= shares.items()
    assert shares.keys() == {"0.weight", "2.weight", "4.weight"}
    assert shares["4.weight"] == 0  # each output has a target of its own


def test_a_network_that_begins_at_random_has_no_copies():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(81, 50), nn.Linear(50, 1))
    net(normal(6, 2, 5, 5)).square().sum().backward()
    recorder = recorder_of(net)
    step(recorder, torch.optim.Adam(net.parameters()))
    assert taken(recorder).column("twin_rows") == {"0.weight": 0.0, "3.weight": 0.0}  # a single row has no other


def test_copies_are_counted_in_the_first_two_snapshots_only():
    net = nn.Linear(3, 4)
    recorder, optimizer = recorder_of(net), torch.optim.SGD(net.parameters(), lr=0.1)
    seen = []
    for i in range(3):
        if i:
            recorder.begin_snapshot(0)
        net(normal(5, 3)).square().sum().backward()
        step(recorder, optimizer)
        seen.append(taken(recorder).column("twin_rows"))
    assert seen == [{"weight": 0.0}, {"weight": 0.0}, {}]


# --- elements that a step leaves as they were -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "rate", "share"),
    [
        (torch.float32, 1e-3, 0.25),
        (torch.float32, 0.0, 1.0),
        (torch.float32, 1e-9, 1.0),
        (torch.bfloat16, 1e-3, 1.0),
        (torch.bfloat16, 1e-2, 0.25),
        (torch.float64, 1e-9, 0.25),
    ],
    ids=str,
)
def test_elements_that_a_step_leaves_unchanged_are_counted(dtype, rate, share):
    """What is too small for a precision is lost: there is nothing between 1 and 1.0078 in eight bits."""
    net = nn.Linear(4, 1, bias=False).to(dtype)
    nn.init.ones_(net.weight)
    net.weight.grad = torch.tensor([[1.0, -1.0, 0.0, 1.0]], dtype=dtype)
    recorder = recorder_of(net)
    step(recorder, torch.optim.SGD(net.parameters(), lr=rate))
    assert taken(recorder).of("weight")["update_zero_share"] == share


def test_an_update_of_nan_is_a_change():
    net = nn.Linear(2, 1, bias=False)
    net.weight.grad = torch.tensor([[math.nan, 0.0]])
    recorder = recorder_of(net)
    step(recorder, torch.optim.SGD(net.parameters(), lr=0.1))
    assert taken(recorder).of("weight")["update_zero_share"] == 0.5
