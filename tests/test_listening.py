"""What is heard of a forward pass, against NumPy."""

import contextlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own short name
from torch import nn

from lightning_weightwatch import listening
from lightning_weightwatch.evidence import Listened
from lightning_weightwatch.meters.targets import Targets
from tests.helpers.hearing import LABELS, LAYER, X, hear, listener, normal

NAN = math.nan

# --- every way to say it ----------------------------------------------------------------------------------------------

WAYS = {
    "relu": [
        *(F.relu, torch.relu, torch.Tensor.relu, nn.ReLU(), torch.relu_, torch.Tensor.relu_, F.relu_),
        *(nn.ReLU(inplace=True), lambda h: F.relu(h, inplace=True), lambda h: torch.relu(input=h)),
        *(lambda h: F.relu(input=h), lambda h: h.relu()),
    ],
    "relu6": [F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True), lambda h: F.hardtanh(h, 0.0, 6.0)],
    "tanh": [torch.tanh, torch.Tensor.tanh, nn.Tanh(), F.tanh, torch.tanh_, torch.Tensor.tanh_],
    "sigmoid": [
        *(torch.sigmoid, torch.Tensor.sigmoid, nn.Sigmoid(), F.sigmoid, torch.special.expit, torch.sigmoid_),
        lambda h: torch.sigmoid(input=h),
    ],
    "hardtanh": [F.hardtanh, nn.Hardtanh(), nn.Hardtanh(inplace=True), F.hardtanh_],
    "hardsigmoid": [F.hardsigmoid, nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True)],
    "softmax": [lambda h: F.softmax(h, 1), lambda h: h.softmax(1), nn.Softmax(1), lambda h: torch.softmax(h, 1)],
    "log_softmax": [
        *(lambda h: F.log_softmax(h, 1), lambda h: h.log_softmax(1), nn.LogSoftmax(1)),
        lambda h: torch.special.log_softmax(h, 1),
    ],
    "gelu": [F.gelu, nn.GELU(), nn.GELU("tanh")],
    "silu": [F.silu, nn.SiLU(), nn.SiLU(inplace=True)],
    "elu": [F.elu, nn.ELU(inplace=True), F.elu_],
    "selu": [F.selu, torch.selu, nn.SELU(), torch.selu_],
    "leaky_relu": [F.leaky_relu, nn.LeakyReLU(0.1, inplace=True), F.leaky_relu_],
    "softplus": [F.softplus, nn.Softplus()],
    "mish": [F.mish, nn.Mish(inplace=True)],
    "hardswish": [F.hardswish, nn.Hardswish()],
}


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, ways in WAYS.items() for way in ways])
def test_a_function_is_heard_once_however_it_is_called(name, way):
    made = []
    heard = hear(lambda: made.append((h := LAYER(X)).detach().clone()) or made.append(way(h)), LAYER)
    (activation,) = heard.activations
    before, after = (tensor.detach().double().numpy() for tensor in made)
    low, high = {"tanh": (-0.97, 0.97), "sigmoid": (0.03, 0.97), "hardtanh": (-1, 1), "hardsigmoid": (0, 1)}.get(
        name, (NAN, NAN)
    )
    assert (activation.function, activation.after, activation.units) == (name, "weight", 6)
    assert activation.std == pytest.approx(before.std(ddof=1), rel=1e-5)
    is_dead = (after == 0).all(axis=0).mean() if name in ("relu", "relu6") else NAN
    flat = ((after <= low) | (after >= high)).mean() if low == low else NAN
    assert activation.dead == pytest.approx(is_dead, nan_ok=True)
    assert activation.saturated == pytest.approx(flat, nan_ok=True)


def test_every_function_is_known_in_all_the_ways_torch_has():
    """A way that is missing above was not tried."""
    assert set(listening._NAMES.values()) == {*WAYS, *LOSSES, "dropout", "backward"}


def test_functions_within_functions_of_torch_are_not_heard():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), normal(2, 5, 8)
    assert hear(lambda: attention(x, x, x), attention) == Listened(3)
    assert hear(lambda: nn.LSTM(4, 3)(normal(2, 5, 4))) == Listened(3)
    assert hear(lambda: F.gumbel_softmax(normal(2, 3).requires_grad_(), hard=True)).activations == ()


def test_a_layer_of_a_transformer_is_heard_where_it_calls_functions():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.3, batch_first=True)
    heard = hear(lambda: layer(normal(2, 5, 8)), layer)
    assert [(a.function, a.after, a.units) for a in heard.activations] == [("relu", "linear1.weight", 12)]
    assert heard.dropout == (0.3,) * 3


# --- numbers ----------------------------------------------------------------------------------------------------------

SHARP = torch.tensor([[-3.0, 0.0, 0.5, 0.96, 0.98, 1.0], [-1.0, 2.0, 0.5, -0.96, -0.98, 7.0]])


def of(function, x=SHARP):
    (activation,) = hear(lambda: function(x.clone().requires_grad_() + 0)).activations
    return activation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("function", "share"),
    [
        (F.hardtanh, 5 / 12),
        (lambda x: F.hardtanh(x, -2.0, 2.0), 3 / 12),
        (nn.Hardtanh(-0.5, 0.5), 11 / 12),
        (lambda x: F.hardsigmoid(x * 3), 5 / 12),
        (F.logsigmoid, None),
    ],
    ids=["hardtanh", "a wide one", "a narrow one", "hardsigmoid", "another"],
)
def test_saturated_is_what_lies_at_the_ends_of_this_function(function, share, dtype):
    """Half precision never lay beyond 0.99999, and every hardtanh was judged as if it ended at 1."""
    heard = hear(lambda: function(SHARP.to(dtype).requires_grad_() + 0)).activations
    assert [a.saturated for a in heard] == ([] if share is None else [pytest.approx(share)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_flat_ends_of_tanh_and_sigmoid_are_the_same_in_every_precision(dtype):
    x = torch.linspace(-6, 6, 10_000).to(dtype)[None]
    for function, low, high in ((torch.tanh, -0.97, 0.97), (torch.sigmoid, 0.03, 0.97)):
        exact = function(x).double()
        assert of(function, x).saturated == pytest.approx(((exact < low) | (exact > high)).double().mean().item())


@pytest.mark.parametrize("function", [nn.ReLU6(), nn.Hardtanh(0, 20), F.relu6], ids=str)
def test_a_function_that_is_cut_off_from_zero_on_has_dead_units_and_is_not_saturated(function):
    """MobileNet's ReLU6 was judged as a hardtanh that ends at 1."""
    x = torch.tensor([[-1.0, 3.0, -2.0, 30.0], [-1.0, 4.0, 2.0, 30.0]])
    assert (of(function, x).dead, math.isnan(of(function, x).saturated)) == (0.25, True)


def test_nan_is_neither_dead_nor_saturated():
    """A network that broke was said to be dead."""
    broken = torch.full((3, 4), NAN)
    assert of(F.relu, broken).dead == 0
    assert of(torch.tanh, broken).saturated == 0
    assert math.isnan(of(F.relu, broken).std)


UNITS = {
    "a table": (nn.Linear(4, 6), normal(5, 4), lambda h: h, 6),
    "sequences": (nn.Linear(4, 6), normal(5, 3, 4), lambda h: h, 6),
    "pictures": (nn.Conv2d(3, 6, 3), normal(2, 3, 5, 5), lambda h: h, 6),
    "pictures up": (nn.ConvTranspose2d(3, 6, 3), normal(2, 3, 5, 5), lambda h: h, 6),
    "sequences of channels": (nn.Conv1d(3, 6, 2), normal(2, 3, 9), lambda h: h, 6),
    "volumes": (nn.Conv3d(2, 6, 1), normal(2, 2, 3, 3, 3), lambda h: h, 6),
    "pictures laid flat": (nn.Conv2d(3, 6, 5), normal(2, 3, 5, 5), lambda h: h.flatten(1), 6),
    "pictures pooled to a vector": (nn.Conv2d(3, 6, 5), normal(1, 3, 5, 5), lambda h: h.flatten(), 6),
    "patches as tokens": (nn.Conv2d(3, 6, 1), normal(2, 3, 5, 5), lambda h: h.flatten(2).transpose(1, 2), 6),
    "pictures with channels last": (nn.Linear(3, 6), normal(2, 5, 5, 3), lambda h: h, 6),
    "a table made a picture": (nn.Linear(4, 18), normal(5, 4), lambda h: h.view(5, 2, 3, 3), 2),
    "one sample": (nn.Linear(4, 6), normal(4), lambda h: h, 6),
    "a single unit": (nn.Linear(4, 1), normal(5, 4), lambda h: h[:, 0], 1),
    "a single unit of sequences": (nn.Linear(4, 1), normal(5, 3, 4), lambda h: h[..., 0], 1),
}


@pytest.mark.parametrize("case", UNITS)
def test_units_are_the_outputs_of_the_layer_before(case):
    """An activation of one dimension after a convolution ended the listening."""
    layer, x, shape, units = UNITS[case]
    (activation,) = hear(lambda: F.relu(shape(layer(x))), layer).activations
    assert (activation.units, activation.after) == (units, "weight")


def test_a_single_unit_that_is_silent_for_most_samples_is_not_dead():
    """Samples were taken for units."""
    x = torch.tensor([[-1.0], [-1.0], [-1.0], [1.0]])
    assert of(lambda h: F.relu(h[:, 0]), x).dead == 0
    assert of(lambda h: F.relu(h[:3, 0]), x).dead == 1


def test_a_unit_of_a_picture_is_dead_if_it_is_in_all_of_it():
    layer = nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([-1.0, 1.0, -1.0]))
        layer.weight[2] = 1.0
    x = torch.zeros(2, 1, 3, 3)
    x[1, 0, 2, 2] = 2.0
    (activation,) = hear(lambda: F.relu(layer(x)), layer).activations
    assert activation.dead == pytest.approx(1 / 3)


# --- what is not read -------------------------------------------------------------------------------------------------


class Shards(torch.Tensor):
    """A tensor of several processes: any operation on it but the user's own would be a collective."""

    @staticmethod
    def __new__(cls, local):
        return torch.Tensor._make_wrapper_subclass(cls, local.shape, requires_grad=local.requires_grad)

    def __init__(self, local):
        self.local, self.asked = local.detach(), []

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        first = next(arg for arg in args if isinstance(arg, Shards))
        first.asked.append(func._opname)
        plain = [arg.local if isinstance(arg, Shards) else arg for arg in args]
        made = cls(func(*plain, **(kwargs or {})))
        made.asked = first.asked
        return made


@pytest.mark.parametrize("run", [F.relu, torch.tanh, nn.ReLU6()], ids=str)
def test_a_distributed_tensor_is_not_read(run):
    def operations(around):
        x = Shards(normal(3, 4).requires_grad_())
        with around:
            run(x)
        return x.asked

    alone = operations(contextlib.nullcontext())
    assert operations(listener(batch=Shards(normal(3, 4)))) == alone != []


def test_a_loss_of_distributed_tensors_is_heard_by_its_graph_alone():
    def run():
        output, target = Shards(normal(4).requires_grad_()), Shards(normal(4))
        with contextlib.suppress(RuntimeError):
            F.mse_loss(output, target, reduction="none")

    (call,) = hear(run).losses
    assert (call.function, call.after, math.isnan(call.target_mean)) == ("mse_loss", "", True)


ODD = {
    "integers": lambda: torch.relu(torch.tensor([-1, 2])),
    "nothing": lambda: torch.relu(torch.empty(0, 3)),
    "no dimension": lambda: torch.relu(torch.tensor(1.0)),
    "one number": lambda: torch.relu(torch.tensor([1.0])),
    "complex numbers": lambda: torch.sigmoid(torch.ones(3, dtype=torch.complex64)),
    "sparse": lambda: torch.relu(torch.eye(3).to_sparse()),
    "no values": lambda: torch.relu(torch.ones(3, device="meta")),
    "a subclass": lambda: torch.relu(torch.ones(3).as_subclass(nn.Buffer)),
    "quantised": lambda: torch.relu(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)),
    "a loss of integers": lambda: F.l1_loss(torch.tensor([1]), torch.tensor([2]), reduction="none"),
    "an operand that is no tensor": lambda: F.dropout(torch.ones(3), 0.5, False),
}


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("run", ODD.values(), ids=ODD)
def test_what_holds_no_real_numbers_is_passed_over(run):
    assert hear(run) == Listened(3)


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_what_runs_without_gradients_is_not_heard(grad):
    """Metrics counted as losses, and other networks as this one."""

    def run():
        with grad():
            F.relu(LAYER(X))
            F.cross_entropy(LAYER(X), torch.zeros(5).long())
            F.dropout(X, 0.9)

    assert hear(run, LAYER) == Listened(3)


def test_a_loss_that_cannot_be_differentiated_is_a_metric():
    output = LAYER(X)[:, 0]
    heard = hear(lambda: (F.mse_loss(output.detach(), X[:, 0]), F.l1_loss(output, X[:, 0])), LAYER)
    assert [call.function for call in heard.losses] == ["l1_loss"]


def test_the_first_backward_pass_ends_it():
    """Steps of one's own, as of a network and its opponent, were heard as one pass."""

    def run():
        F.relu(LAYER(X)).sum().backward()
        F.tanh(LAYER(X)).sum().backward()

    assert [a.function for a in hear(run, LAYER).activations] == ["relu"]


def test_a_loop_over_time_is_heard_up_to_a_bound():
    def run():
        h = X[:, 0].clone().requires_grad_()
        for _ in range(3 * listening._MOST):
            h = torch.tanh(h)

    assert len(hear(run).activations) == listening._MOST


# --- losses -----------------------------------------------------------------------------------------------------------

REAL, BINARY = normal(5, 6), (normal(5, 6) > 0).float()
LOSSES = {
    "cross_entropy": [
        (F.cross_entropy, LABELS),
        (nn.CrossEntropyLoss(), LABELS),
        (nn.CrossEntropyLoss(), REAL.softmax(1)),
        (lambda h, y: F.cross_entropy(input=h, target=y), LABELS),
    ],
    "nll_loss": [(F.nll_loss, LABELS), (nn.NLLLoss(), LABELS)],
    "binary_cross_entropy": [(lambda h, y: F.binary_cross_entropy(h * 0 + 0.5, y), BINARY)],
    "binary_cross_entropy_with_logits": [
        (F.binary_cross_entropy_with_logits, BINARY),
        (nn.BCEWithLogitsLoss(), BINARY),
    ],
    "mse_loss": [(F.mse_loss, REAL), (nn.MSELoss(), REAL), (lambda h, y: F.mse_loss(h, target=y), REAL)],
    "l1_loss": [(F.l1_loss, REAL), (nn.L1Loss(), REAL)],
    "smooth_l1_loss": [(F.smooth_l1_loss, REAL), (nn.SmoothL1Loss(), REAL)],
    "huber_loss": [(F.huber_loss, REAL), (nn.HuberLoss(), REAL)],
}


@pytest.mark.parametrize(("name", "loss", "target"), [(n, *way) for n, ways in LOSSES.items() for way in ways])
def test_a_loss_is_heard_once_however_it_is_called(name, loss, target):
    heard = hear(lambda: loss(LAYER(X), target), LAYER)
    (call,) = heard.losses
    assert (call.function, call.after, call.fed_by, call.one_unit) == (name, "weight", "", False)
    if not target.is_floating_point():
        assert (call.classes, call.target_least, call.target_greatest, call.same) == (6, 0, 5, pytest.approx(0.2))
        assert call.chance == pytest.approx(math.log(5), rel=1e-5)
    elif name != "cross_entropy":
        assert (call.target_least, call.target_greatest) == (target.min().item(), target.max().item())


@pytest.mark.parametrize(
    "loss",
    [
        lambda h: F.cross_entropy(h, LABELS, torch.arange(6.0)),
        lambda h: nn.CrossEntropyLoss(torch.arange(6.0))(h, LABELS),
        lambda h: F.cross_entropy(h, LABELS, label_smoothing=0.1),
        lambda h: F.cross_entropy(h, LABELS, reduction="sum"),
    ],
    ids=["weights by place", "weights of a module", "smoothing", "a sum"],
)
def test_a_loss_that_is_no_plain_mean_has_no_chance(loss):
    (call,) = hear(lambda: loss(LAYER(X)), LAYER).losses
    assert math.isnan(call.chance)
    assert call.same == pytest.approx(0.2)


def test_the_function_that_feeds_a_loss_is_marked():
    net = nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 6), nn.Softmax(1))
    heard = hear(lambda: F.cross_entropy(net(X), LABELS), net)
    assert [(a.after, a.feeds_loss) for a in heard.activations] == [("0.weight", False), ("2.weight", True)]
    assert [(c.after, c.fed_by) for c in heard.losses] == [("2.weight", "softmax")]


@pytest.mark.parametrize("last", [nn.ReLU6(), nn.Hardtanh(), nn.Tanh()], ids=str)
def test_a_cut_off_function_that_feeds_a_loss_is_marked_too(last):
    heard = hear(lambda: F.mse_loss(last(LAYER(X)), REAL), LAYER)
    assert [a.feeds_loss for a in heard.activations] == [True]
    assert heard.losses[0].fed_by == heard.activations[0].function


@pytest.mark.parametrize(("units", "is_one"), [(1, True), (2, False)])
def test_a_softmax_over_one_unit_is_told(units, is_one):
    layer = nn.Linear(4, units)
    (call,) = hear(lambda: F.cross_entropy(layer(X).softmax(1), torch.zeros(5).long()), layer).losses
    assert call.one_unit is is_one


def test_frequencies_are_those_of_all_passes():
    targets = Targets()
    for labels in ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1]):
        (call,) = hear(lambda: F.cross_entropy(LAYER(X), torch.tensor(labels)), LAYER, targets=targets).losses  # noqa: B023
    assert (call.chance, call.same) == (pytest.approx(math.log(2)), 1.0)


def test_dropout_is_heard_where_it_drops():
    def run():
        F.dropout(X, 0.25)
        F.dropout(X, p=0.5, training=False)
        F.dropout(X, 0.1, False)
        nn.Dropout(0.75)(X)
        nn.Dropout(0.75).eval()(X)

    assert hear(run).dropout == (0.25, 0.75)


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "aim",
    [lambda y: y, lambda y: y[:, None].squeeze(1), lambda y: y.view(5), lambda y: y.detach(), lambda y: y.float()],
    ids=["itself", "of another shape", "a view", "detached", "of the same type"],
)
@pytest.mark.parametrize("with_gradient", [True, False], ids=["a loss", "a metric"])
def test_targets_are_no_inputs(aim, with_gradient):
    """A target that had been given another shape was judged as an input."""
    y = normal(5)
    output = LAYER(X)[:, 0] if with_gradient else LAYER(X)[:, 0].detach()
    heard = hear(lambda: F.mse_loss(output, aim(y)), LAYER, batch=(X, y))
    (scale,) = heard.inputs
    assert (scale.name, scale.features, scale.nonfinite) == ("batch[0]", 4, 0)
    assert (scale.mean, scale.abs_max) == (pytest.approx(X.mean().item(), rel=1e-4), X.abs().max().item())


def test_a_part_of_an_input_may_be_the_target():
    heard = hear(lambda: F.mse_loss(LAYER(X)[:, 0], X[:, 0]), LAYER, batch=X)
    assert [scale.name for scale in heard.inputs] == ["batch"]


def test_inputs_are_measured_as_the_network_saw_them():
    """Scaled within the training step."""
    x = torch.full((5, 4), 255.0)
    heard = hear(lambda: LAYER(x.div_(255)), LAYER, batch=x)
    assert heard.inputs[0].abs_max == 1.0


def test_numbers_find_their_reading_among_many():
    x, y = normal(5, 4, scale=100.0), normal(5)

    def run():
        h = F.relu(LAYER(x))
        F.softmax(h, 1)
        F.mse_loss(torch.tanh(h)[:, 0], y)

    heard = hear(run, LAYER, batch={"x": x, "y": y})
    h = LAYER(x).detach()
    assert [a.function for a in heard.activations] == ["relu", "softmax", "tanh"]
    assert [a.std for a in heard.activations] == [pytest.approx(t.std().item()) for t in (h, h.relu(), h.relu())]
    assert heard.losses[0].target_std == pytest.approx(y.std(correction=0).item())
    assert [(i.name, i.abs_max) for i in heard.inputs] == [("batch['x']", x.abs().max().item())]


@pytest.mark.parametrize("shape", [(64, 3000), (50, 16, 20, 20), (70_000, 3), (200_000, 1)])
def test_a_spread_of_some_elements_is_that_of_all(shape):
    """Columns differ in spread, so a sample that kept to some of them would show."""
    columns = np.linspace(0.1, 3.0, shape[1])
    x = np.random.default_rng(0).standard_normal(shape) * columns.reshape(1, -1, *[1] * (len(shape) - 2))
    x = torch.from_numpy(x).float().requires_grad_()
    with listening.Listener(0, {}, None, Targets()) as listener:
        torch.tanh(x)
    listener.close()
    (heard,) = listener.read(listener.numbers.numpy()).activations
    exact = x.detach().numpy()
    assert heard.std == pytest.approx(exact.std(), rel=0.02)
    assert heard.saturated == pytest.approx((np.abs(np.tanh(exact)) >= 0.97).mean(), abs=0.01)
