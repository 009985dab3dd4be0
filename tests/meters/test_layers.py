"""What passes each layer, held against hooks on modules, autograd and NumPy."""

import io
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own short name
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from lightning_weightwatch.meters import layers as meter
from lightning_weightwatch.parameters import describe, named_tensors
from lightning_weightwatch.propagation import Propagation
from tests.helpers.hearing import stack
from tests.helpers.layers import Call, array, heard, same, truth, watched

NAN = math.nan
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # of our own hooks, on first layers
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed + len(shape)))


def seeded(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs)


def weighed(out):
    """Return a loss that weighs every element differently, so that no gradient passes for another."""
    out = out[0] if isinstance(out, tuple) else out
    return (out.double() * normal(*out.shape, seed=9).double()).sum() + out.double().square().mean()


def passed(x):
    return lambda model: weighed(model(x))


@pytest.fixture(autouse=True)
def nothing_stays_entered():
    yield
    assert stack() == []


# --- modules ----------------------------------------------------------------------------------------------------------

X = normal(6, 4)
SEQ = normal(3, 5, 4)  # three sequences of five
WORDS = torch.tensor([[0, 1, 2, 3, 1], [4, 4, 8, 0, 5], [6, 2, 2, 7, 3]])


def conv(n, transposed=False, **options):
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{n}d")
    return seeded(kind, 4, 6, 3, **options), normal(3, 4, *range(5, 5 + n))


CASES = {  # the model, its input, the parameter that the layer is named after; unit, sample, units of what went in
    "linear": (seeded(nn.Linear, 4, 3), X, "weight", (-1, 0, -1)),
    "linear on sequences": (seeded(nn.Linear, 4, 3), SEQ, "weight", (-1, 0, -1)),
    "linear on maps as high as it has units": (seeded(nn.Linear, 4, 3), normal(2, 3, 5, 4), "weight", (-1, 0, -1)),
    "one unit": (seeded(nn.Linear, 4, 1), X, "weight", (-1, 0, -1)),
    "one sample": (seeded(nn.Linear, 4, 3), X[:1], "weight", (-1, 0, -1)),
    "one sample of several places": (seeded(nn.Linear, 4, 3), SEQ[:1], "weight", (-1, 0, -1)),
    "float64": (seeded(nn.Linear, 4, 3).double(), X.double(), "weight", (-1, 0, -1)),
    "conv1d": (*conv(1), "weight", (1, 0, 1)),
    "conv2d": (*conv(2), "weight", (1, 0, 1)),
    "conv3d": (*conv(3), "weight", (1, 0, 1)),
    "grouped": (*conv(2, groups=2, padding=1), "weight", (1, 0, 1)),
    "depthwise": (seeded(nn.Conv2d, 4, 4, 3, groups=4), normal(3, 4, 5, 6), "weight", (1, 0, 1)),
    "conv of one image": (seeded(nn.Conv2d, 4, 6, 3), normal(4, 8, 8), "weight", (0, None, 0)),
    "conv1d as long as it has units": (seeded(nn.Conv1d, 4, 5, 3), normal(3, 4, 7), "weight", (1, 0, 1)),
    "transposed": (*conv(2, transposed=True, stride=2), "weight", (1, 0, 1)),
    "transposed 1d": (*conv(1, transposed=True), "weight", (1, 0, 1)),
    "transposed 3d": (*conv(3, transposed=True), "weight", (1, 0, 1)),
    "channels last": (
        seeded(nn.Conv2d, 4, 6, 3).to(memory_format=torch.channels_last),
        normal(3, 4, 5, 6).to(memory_format=torch.channels_last),
        "weight",
        (1, 0, 1),
    ),
    "embedding": (seeded(nn.Embedding, 9, 4), WORDS, "weight", (-1, 0, -1)),
    "embedding with max_norm": (seeded(nn.Embedding, 9, 4, max_norm=1.0), WORDS, "weight", (-1, 0, -1)),
    "bag of embeddings": (seeded(nn.EmbeddingBag, 9, 4), WORDS, "weight", (-1, 0, -1)),
    "lstm": (seeded(nn.LSTM, 4, 5, 2), SEQ, "weight_hh_l1", (-1, 1, -1)),
    "lstm, batch first": (seeded(nn.LSTM, 4, 5, 2, batch_first=True), SEQ, "weight_hh_l1", (-1, 0, -1)),
    "lstm with projection": (seeded(nn.LSTM, 4, 5, 2, proj_size=3), SEQ, "weight_hr_l1", (-1, 1, -1)),
    "both ways": (seeded(nn.GRU, 4, 5, 2, bidirectional=True), SEQ, "weight_hh_l1_reverse", (-1, 1, -1)),
    "rnn": (seeded(nn.RNN, 4, 5, nonlinearity="relu"), SEQ, "weight_hh_l0", (-1, 1, -1)),
    "lstm cell": (seeded(nn.LSTMCell, 4, 5), X, "weight_hh", (-1, 0, -1)),
    "gru cell": (seeded(nn.GRUCell, 4, 5), X, "weight_hh", (-1, 0, -1)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_of_a_module(case):
    model, x, name, axes = CASES[case]
    (layer,) = heard(model, passed(x)).layers
    assert layer.name == name
    same(layer, truth(watched(model, passed(x), [""])[""], *axes))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(3, 4, 5)

    def forward(self, x):
        return self.layer(x[:, :3], x)


def test_bilinear():
    model = seeded(TwoInputs)
    (layer,) = heard(model, passed(X)).layers
    assert layer.name == "layer.weight"
    same(layer, truth(watched(model, passed(X), ["layer"])["layer"]))


class Attending(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.layer = nn.MultiheadAttention(4, 2, **options)

    def forward(self, x):
        values = x[..., :3] if "kdim" in self.options else x
        return self.layer(x, values, values)[0]


@pytest.mark.parametrize(
    "options",
    [{"batch_first": True}, {"batch_first": False}, {"batch_first": True, "kdim": 3, "vdim": 3}],
    ids=str,
)
def test_attention_is_one_layer_named_after_its_last_matrix(options):
    model = seeded(Attending, **options)
    (layer,) = heard(model, passed(SEQ)).layers
    assert layer.name == "layer.out_proj.weight"
    same(layer, truth(watched(model, passed(SEQ), ["layer"])["layer"], sample=0 if options["batch_first"] else 1))


def test_attention_of_one_sequence_without_a_batch():
    model = seeded(Attending)
    (layer,) = heard(model, passed(SEQ[0])).layers
    same(layer, truth(watched(model, passed(SEQ[0]), ["layer"])["layer"], sample=None))


def test_recurrent_layers_on_packed_sequences():
    model = seeded(nn.GRU, 4, 5)
    packed = nn.utils.rnn.pack_padded_sequence(SEQ, [5, 3, 2], batch_first=True)
    (layer,) = heard(model, lambda m: weighed(m(packed)[0].data)).layers
    out = model(packed)[0].data
    out.retain_grad()
    weighed(out).backward()
    same(layer, truth([Call(array(packed.data), array(out), array(out.grad))]))


# --- functions --------------------------------------------------------------------------------------------------------


class Matrix(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.w, self.bias = nn.Parameter(normal(*shape, seed=3)), nn.Parameter(torch.full((shape[-1],), 0.1))


W = Matrix(5, 4)
FUNCTIONS = {  # the parameters, the call; unit, sample, units of what went in
    "F.linear": (W, lambda m, x: F.linear(x, m.w), X, (-1, 0, -1)),
    "F.linear by keywords": (W, lambda m, x: F.linear(weight=m.w, input=x), X, (-1, 0, -1)),
    "x @ w.T": (W, lambda m, x: x @ m.w.T, X, (-1, 0, -1)),
    "x @ w.t() of a sequence": (W, lambda m, x: x @ m.w.t(), SEQ, (-1, 0, -1)),
    "matmul": (W, lambda m, x: torch.matmul(x, m.w.transpose(0, 1)), X, (-1, 0, -1)),
    "w @ x": (W, lambda m, x: m.w @ x, X.T, (0, 1, 0)),
    "w @ x of as many samples as units": (W, lambda m, x: m.w @ x, X[:5].T, (0, 1, 0)),
    "w @ maps": (W, lambda m, x: m.w @ x, SEQ.transpose(1, 2), (1, 0, 1)),
    "mm": (W, lambda m, x: torch.mm(m.w, x), X.T, (0, 1, 0)),
    "addmm, as the Conv1D of GPT-2": (Matrix(4, 7), lambda m, x: torch.addmm(m.bias, x, m.w), X, (-1, 0, -1)),
    "addmm of one input": (Matrix(1, 7), lambda m, x: torch.addmm(m.bias, x, m.w), X[:, :1], (-1, 0, -1)),
    "bmm over experts": (Matrix(3, 4, 7), lambda m, x: torch.bmm(x, m.w), SEQ, (-1, 0, -1)),
    "one of several experts": (Matrix(3, 4, 7), lambda m, x: x @ m.w[1], X, (-1, 0, -1)),
    "einsum": (W, lambda m, x: torch.einsum("bsi,oi->bso", x, m.w), SEQ, (-1, 0, -1)),
    "einsum, the weight first": (W, lambda m, x: torch.einsum("oi,...i->...o", m.w, x), SEQ, (-1, 0, -1)),
    "einsum over channels": (W, lambda m, x: torch.einsum("oi,bis->bos", m.w, x), SEQ.mT, (1, 0, 1)),
    "einsum of a list": (W, lambda m, x: torch.einsum("bi,oi->bo", [x, m.w]), X, (-1, 0, -1)),
    "tensordot": (W, lambda m, x: torch.tensordot(x, m.w, ([1], [1])), X, (-1, 0, -1)),
    "F.conv2d": (
        Matrix(6, 4, 3, 3),
        lambda m, x: F.conv2d(x, m.w, padding=1),
        normal(3, 4, 5, 6),
        (1, 0, 1),
    ),
    "F.embedding": (W, lambda m, x: F.embedding(x, m.w), WORDS.clamp(max=4), (-1, 0, -1)),
    "a factor cast to another type": (W, lambda m, x: x.double() @ m.w.double().T, X, (-1, 0, -1)),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_the_numbers_of_a_function_without_a_module(case):
    model, call, x, axes = FUNCTIONS[case]
    (layer,) = heard(model, lambda m: weighed(call(m, x))).layers
    out = call(model, x)
    out.retain_grad()
    weighed(out).backward()
    model.zero_grad()
    assert layer.name == "w"
    same(layer, truth([Call(array(x) if x.is_floating_point() else None, array(out), array(out.grad))], *axes))


def test_a_frozen_matrix_is_a_layer_too():
    model = Matrix(5, 4)
    model.requires_grad_(False)
    x = X.clone().requires_grad_()
    for call in (lambda m: F.linear(x, m.w), lambda m: x @ m.w.T):
        (layer,) = heard(model, lambda m, call=call: weighed(call(m))).layers
        out = call(model)
        out.retain_grad()
        weighed(out).backward()
        same(layer, truth([Call(array(X), array(out), array(out.grad))]))


# --- what is no layer -------------------------------------------------------------------------------------------------


class HandMade(nn.Module):
    """Attention as it is written by hand: queries and keys are multiplied by one another."""

    def __init__(self, width=4):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.c_attn(x).split(x.shape[-1], dim=-1)
        scores = (q @ k.transpose(-2, -1)) / 2
        return self.c_proj(torch.einsum("bst,btc->bsc", scores.softmax(-1), v))


@pytest.mark.parametrize("length", [5, 4, 12])  # also as long as the matrices are
def test_products_of_activations_are_no_layers(length):
    model, x = seeded(HandMade), normal(3, length, 4)
    found = heard(model, passed(x)).layers
    assert [layer.name for layer in found] == ["c_attn.weight", "c_proj.weight"]
    seen = watched(model, passed(x), ["c_attn", "c_proj"])
    for layer, calls in zip(found, seen.values(), strict=True):
        same(layer, truth(calls))


class Hyper(nn.Module):
    """Its second layer has a weight that the first computes from the input."""

    def __init__(self):
        super().__init__()
        self.makes, self.last = nn.Linear(4, 20), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(F.linear(x, self.makes(x.mean(0, keepdim=True)).view(5, 4)))


def test_a_weight_computed_from_the_input_is_no_parameter():
    model = seeded(Hyper)
    found = heard(model, passed(X)).layers
    assert [layer.name for layer in found] == ["makes.weight", "last.weight"]
    for layer, calls in zip(found, watched(model, passed(X), ["makes", "last"]).values(), strict=True):
        same(layer, truth(calls))


class Merged(nn.Module):
    """LoRA as a part of the weight: its factors see no input."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 5)
        self.a, self.b = nn.Parameter(normal(2, 4)), nn.Parameter(normal(5, 2))

    def forward(self, x):
        return F.linear(x, self.base.weight + self.b @ self.a)


def test_a_product_of_parameters_is_no_layer():
    (layer,) = heard(Merged(), passed(X)).layers
    assert (layer.name, layer.units, layer.samples) == ("base.weight", 5, 6)


def test_vectors_and_whole_numbers_are_passed_over():
    model = nn.ParameterDict({"w": nn.Parameter(normal(5, 4)), "v": nn.Parameter(normal(4))})

    def run(m):
        torch.ones(2, 3, dtype=torch.int64) @ torch.ones(3, 2, dtype=torch.int64)
        return F.linear(X[0], m["w"]).sum() + (X @ m["v"]).sum() + (X * m["v"]).sum()

    assert heard(model, run).layers == ()


def test_layers_without_gradients_are_not_heard():
    model = seeded(nn.Sequential, nn.Linear(4, 4), nn.Linear(4, 2))

    def run(m):
        with torch.no_grad():
            h = m[0](X)
        return weighed(m[1](h))

    (layer,) = heard(model, run).layers
    assert layer.name == "1.weight"
    same(layer, truth(watched(model, run, ["1"])["1"]))


# --- weights that are computed ----------------------------------------------------------------------------------------


def pruned():
    layer = nn.Linear(4, 4)
    prune.custom_from_mask(layer, "weight", torch.eye(4))
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "parametrizations.weight.original1"),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), "parametrizations.weight.original"),
        (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "parametrizations.weight.original"),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), "weight_v"),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "weight_orig"),
        (pruned, "weight_orig"),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "old weight_norm", "old spectral_norm", "pruned"],
)
@pytest.mark.parametrize("x", [X, SEQ], ids=["samples", "sequences"])
def test_a_parametrised_layer_is_named_after_the_matrix_that_it_is_made_of(make, name, x):
    model = nn.Sequential(seeded(make), nn.ReLU()).eval()  # a power iteration would move on between both runs
    (layer,) = heard(model, passed(x)).layers
    assert (layer.name, layer.activation) == (f"0.{name}", "relu")
    same(layer, truth(watched(model, passed(x), ["0"])["0"]))


def test_no_part_of_a_parametrised_weight_is_said_to_be_unheard():
    """A length for each place of a kernel looks like a matrix, and is multiplied with nothing."""
    model = parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=2)
    signal = heard(model, passed(SEQ.mT))
    assert signal.gradients.keys() == {name for name, _ in model.named_parameters()}
    assert signal.not_measured == ()


# --- several calls ----------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One layer three times, and a cell in a loop over time."""

    def __init__(self):
        super().__init__()
        self.layer, self.cell, self.head = nn.Linear(4, 4), nn.GRUCell(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(3):
            x = self.layer(x).tanh()
        h = torch.zeros(len(x), 4)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.head(h)


def test_calls_of_one_layer_are_taken_together():
    model = seeded(Shared)
    found = {layer.name: layer for layer in heard(model, passed(SEQ)).layers}
    assert list(found) == ["layer.weight", "cell.weight_hh", "head.weight"]
    seen = watched(model, passed(SEQ), ["layer", "cell", "head"])
    assert [len(calls) for calls in seen.values()] == [3, 5, 1]
    for layer, calls in zip(found.values(), seen.values(), strict=True):
        same(layer, truth(calls))


def test_calls_of_different_sizes_weigh_as_many_elements_as_they_give():
    model = seeded(nn.Linear, 4, 3)

    def run(m):
        return weighed(m(X)) + weighed(m(3 * SEQ))

    (layer,) = heard(model, run).layers
    same(layer, truth(watched(model, run, [""])[""]))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.write = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.write.weight = self.read.weight

    def forward(self, words):
        return self.write(self.read(words))


def test_a_tied_matrix_is_a_layer_where_it_is_looked_up_and_another_where_it_multiplies():
    found = heard(seeded(Tied), passed(WORDS)).layers
    assert [(layer.name, layer.kind) for layer in found] == [("read.weight", "embedding"), ("read.weight", "linear")]
    for layer, calls in zip(found, watched(seeded(Tied), passed(WORDS), ["read", "write"]).values(), strict=True):
        same(layer, truth(calls))


# --- how a pass is computed ------------------------------------------------------------------------------------------


def mlp(inplace=False):
    return seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace), nn.Linear(8, 3)))


def test_what_an_activation_overwrites_was_measured_before():
    """The gradient is that of the layer's own output: the hook was there before ``relu_``."""
    found = heard(mlp(inplace=True), passed(X)).layers
    seen = watched(mlp(), passed(X), ["0", "2"])
    for layer, calls in zip(found, seen.values(), strict=True):
        same(layer, truth(calls))
    assert found[0].dead == np.mean((np.concatenate([c.output for c in seen["0"]]) <= 0).all(0))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    model, x = seeded(lambda: nn.Sequential(nn.Linear(4, 4), mlp(), nn.Linear(3, 2))), X.clone().requires_grad_()

    def run(m):
        return weighed(m[2](checkpoint(m[1], m[0](x), use_reentrant=reentrant)))

    signal = heard(model, run)
    seen = watched(model, lambda m: weighed(m(X)), ["0", "1.0", "1.2", "2"])
    inside = {"1.0", "1.2"} if reentrant else set()
    heard_now = [name for name in seen if name not in inside]
    assert [layer.name for layer in signal.layers] == [f"{name}.weight" for name in heard_now]
    for layer, name in zip(signal.layers, heard_now, strict=True):
        same(layer, truth(seen[name]))
    missing = "what layers give that got a gradient and were not heard: 1.0.weight, 1.2.weight"
    assert signal.not_measured == ((missing,) if reentrant else ())


def test_autocast():
    model = mlp()

    def run(m):
        with torch.autocast("cpu", torch.bfloat16):
            return weighed(m(X))

    found = heard(model, run).layers
    for layer, calls in zip(found, watched(model, run, ["0", "2"]).values(), strict=True):
        same(layer, truth(calls), rel=1e-3)  # module hooks cast what comes back, as the next layer's input is cast


def test_weights_of_half_precision():
    model = mlp().bfloat16()
    found = heard(model, passed(X.bfloat16())).layers
    for layer, calls in zip(found, watched(model, passed(X.bfloat16()), ["0", "2"]).values(), strict=True):
        same(layer, truth(calls))


@pytest.mark.parametrize("scale", [1e-25, 1e25], ids=["fading", "exploding"])
def test_sizes_whose_squares_leave_the_range_of_float32(scale):
    """Thirty layers with half the spread they need give 1e-9; a hundred give nothing that float32 can square."""
    model = mlp()
    model.requires_grad_(True)
    nn.init.zeros_(model[0].bias)

    def run(m):
        return (m[0](X * scale) * scale).sum() * 1.0

    (layer,) = heard(model, run).layers
    same(layer, truth(watched(model, run, ["0"])["0"]))
    assert layer.rms > 0
    assert math.isfinite(layer.rms)


def test_a_penalty_within_the_forward_pass_is_not_taken_for_the_loss():
    model = mlp()

    def run(m):
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(m(x).sum() * 1e3, x, create_graph=True)
        return weighed(m(X)) + slope.square().mean()

    found = heard(model, run).layers
    outputs = {}

    def keep(module, _, out):
        outputs.setdefault(module, []).append(out)

    twin = mlp()
    for part in (twin[0], twin[2]):
        part.register_forward_hook(keep)
    loss = run(twin)
    for layer, made in zip(found, outputs.values(), strict=True):
        back = torch.autograd.grad(loss, made, retain_graph=True, allow_unused=True)
        felt = torch.cat([g.flatten() for g in back if g is not None])
        assert layer.gradient == pytest.approx(felt.square().mean().sqrt().item(), rel=1e-5)


# --- what is odd about an output -------------------------------------------------------------------------------------


def test_what_is_not_finite_is_counted():
    model, x = mlp(), X.clone()
    x[1, 2] = NAN
    x[3, 0] = math.inf
    found = heard(model, passed(x)).layers
    outputs = [calls[0].output for calls in watched(model, passed(x), ["0", "2"]).values()]
    assert [layer.nonfinite for layer in found] == [(~np.isfinite(out)).sum() for out in outputs]
    assert not math.isfinite(found[0].rms)


def test_copies_are_counted_and_silent_units_are_none():
    model = seeded(nn.Linear, 4, 8)
    with torch.no_grad():
        model.weight[5], model.bias[5] = model.weight[1], model.bias[1]
        model.weight[6], model.bias[6] = model.weight[1], model.bias[1]
        model.weight[[2, 3]], model.bias[[2, 3]] = 0.0, 0.0
        model.weight[4], model.bias[4] = -model.weight[0], -model.bias[0]  # a mirror image is no copy
    (layer,) = heard(model, passed(X)).layers
    assert layer.copies == 3 / 8
    same(layer, truth(watched(model, passed(X), [""])[""]))


def test_of_very_many_units_none_is_a_copy_by_chance():
    """Sums over two samples of fifty thousand units lie as close as rounding; the outputs themselves do not."""
    model = seeded(nn.Linear, 2, 50_000)
    (layer,) = heard(model, lambda m: m(X[:2, :2]).sum()).layers
    assert layer.copies < 1e-3
    with torch.no_grad():
        model.weight[1::2], model.bias[1::2] = model.weight[::2], model.bias[::2]
    assert heard(model, lambda m: m(X[:2, :2]).sum()).layers[0].copies > 0.999


def test_large_outputs_are_measured_of_some_samples_and_in_pieces(monkeypatch):
    model, x = seeded(nn.Conv2d, 4, 6, 3), normal(40, 4, 16, 16)
    wanted = truth(watched(model, passed(x), [""])[""], 1, 0, 1)
    monkeypatch.setattr(meter, "_PIECE", 1000)
    (layer,) = heard(model, passed(x)).layers
    same(layer, wanted)
    monkeypatch.setattr(meter, "_ELEMENTS", 2000)
    (layer,) = heard(model, passed(x)).layers
    same(layer, {name: number for name, number in wanted.items() if name not in ("spread", "came_in")})
    assert layer.spread == pytest.approx(wanted["spread"], rel=0.1)
    assert layer.came_in == pytest.approx(wanted["came_in"], rel=0.1)


def test_samples_are_not_taken_from_some_places_alone(monkeypatch):
    """Every third word of a sentence of 24 would be the same eight places of all sentences."""
    model, x = seeded(nn.Linear, 4, 50), normal(16, 24, 4) * torch.tensor([0.01, 1.0, 1.0] * 8)[:, None]
    wanted = truth(watched(model, passed(x), [""])[""])
    monkeypatch.setattr(meter, "_ELEMENTS", 16 * 24 * 50 // 3)
    (layer,) = heard(model, passed(x)).layers
    assert layer.spread == pytest.approx(wanted["spread"], rel=0.1)
    assert layer.came_in == pytest.approx(wanted["came_in"], rel=0.1)


def test_a_few_samples_of_many_units_spread_as_all_do(monkeypatch):
    """Two samples spread around their own mean by half of what they spread around that of all."""
    model, x = seeded(nn.Linear, 4, 2000), normal(200, 4)
    wanted = np.sqrt(array(model(x)).var(axis=0).mean())
    monkeypatch.setattr(meter, "_ELEMENTS", 1)
    found = [heard(model, passed(x.roll(i, 0))).layers[0].spread for i in range(20)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(wanted, rel=0.25)


def test_after_so_many_calls_no_more_are_measured_and_that_is_said(monkeypatch):
    monkeypatch.setattr(meter, "_MOST", 1)
    signal = heard(mlp(), passed(X))
    assert [layer.name for layer in signal.layers] == ["0.weight"]
    assert signal.not_measured == ("what layers give that got a gradient and were not heard: 2.weight",)


class Odd(nn.Module):
    """Names that torch allows and that mean something elsewhere."""

    def __init__(self):
        super().__init__()
        self.add_module("weight", nn.Linear(4, 4))
        self.add_module("*[0] | x", nn.ModuleDict({"grad": nn.Linear(4, 4), "1": nn.Linear(4, 2)}))

    def forward(self, x):
        inner = getattr(self, "*[0] | x")
        return inner["1"](inner["grad"](self.weight(x)))


def test_odd_names():
    found = heard(seeded(Odd), passed(X)).layers
    assert [layer.name for layer in found] == ["weight.weight", "*[0] | x.grad.weight", "*[0] | x.1.weight"]


# --- activations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["tanh", "sigmoid", "hardtanh", "relu", "relu6", "gelu"])
def test_dead_and_saturated(function):
    model = seeded(nn.Linear, 4, 8)
    with torch.no_grad():
        model.weight.mul_(6)
        model.bias[:3] = -50.0
    (layer,) = heard(model, lambda m: weighed(getattr(F, function)(m(X)))).layers
    out = array(getattr(F, function)(model(X)))
    low, high = {"tanh": (-0.97, 0.97), "sigmoid": (0.03, 0.97), "hardtanh": (-1, 1)}.get(function, (NAN, NAN))
    is_one_sided = function in ("relu", "relu6")
    assert layer.activation == function
    assert layer.dead == pytest.approx((out == 0).all(0).mean() if is_one_sided else NAN, nan_ok=True)
    wanted = ((out <= low) | (out >= high)).mean() if math.isfinite(low) else NAN
    assert layer.saturated == pytest.approx(wanted, nan_ok=True)
    assert not is_one_sided or layer.dead >= 3 / 8


# --- what the user may do with an output ------------------------------------------------------------------------------


def changed_in_part(out):
    out[:, :1].mul_(2)
    return out


def cut_off(out):
    return out.detach_().requires_grad_()


def saved(out):
    torch.save(out, io.BytesIO())
    return out


def given_other_numbers(out):
    out.data = torch.zeros_like(out)
    return out


@pytest.mark.parametrize("use", [changed_in_part, cut_off, saved, given_other_numbers])
def test_an_output_can_be_used_as_ever(use):
    model = seeded(nn.Linear, 4, 3)
    (layer,) = heard(model, lambda m: weighed(use(m(X)))).layers
    same(layer, {"rms": truth([Call(array(X), array(model(X)))])["rms"]})


# --- what is left behind ----------------------------------------------------------------------------------------------


def test_no_output_lives_longer_than_without():
    model, kept = mlp(), []
    model[0].register_forward_hook(lambda _, __, out: kept.append(weakref.ref(out)))
    passing = Propagation(describe(model), named_tensors(model), X)
    with passing.listener:
        loss = weighed(model(X))
    assert kept[0]() is None  # torch keeps what it needs, and not the tensor that the module gave
    loss.backward()
    del loss
    assert passing.read().layers[0].gradient > 0
