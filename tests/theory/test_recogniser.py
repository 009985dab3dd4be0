"""Schemes that are known, drawn by torch and by published formulas: how often the right one is named.

A part of ``benchmarks/recogniser.py``, which draws all of them in all shapes, five times.
"""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import init

from tests.helpers.drawn import LARGE, SCHEMES, SMALL, drawn, outcome
from tests.helpers.recognised import recognised

QUICK = [name for name in LARGE if not name.endswith(("x 512", "x 768", "x 2048"))][::2]
BY_ROWS_ALONE = ("orthogonal (gain 0.73)",)  # whose spread is that of no known scheme


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def judged(shapes, seed: int, *, merged: bool = False):
    """Yield every scheme in every shape with what was recognised and how right it is."""
    for scheme in SCHEMES:
        for make in shapes:
            layer = drawn(make, scheme, seed)
            if layer is not None:
                found = recognised(layer, merged=merged)["weight"]
                yield scheme, found, outcome(found, scheme, layer.weight.numel())


def test_of_many_elements_the_right_scheme_is_named_in_99_of_100():
    told = list(judged([LARGE[name] for name in QUICK], seed=11))
    count = Counter(outcome for _, _, outcome in told)
    assert count.total() > 400
    assert count["missing"] == 0
    assert count["first"] + count["either"] >= 0.99 * count.total()
    for scheme, found, how in told:
        if not found.alternatives or found.confidence > 0.95:
            assert how == "first", (scheme.name, found)


def test_of_few_elements_the_right_scheme_is_always_among_those_named():
    for scheme, found, how in judged(SMALL.values(), seed=12):
        assert how != "missing", (scheme.name, str(found))
        assert found.alternatives or how == "first", (scheme.name, str(found))


def test_where_shards_were_merged_the_right_scheme_is_named_or_it_is_said_that_rows_were_not_compared():
    for scheme, found, how in judged([LARGE[name] for name in QUICK[::2]], seed=13, merged=True):
        assert how != "missing" or (scheme.name in BY_ROWS_ALONE and "rows were not compared" in found.untold)


def gates(weight: torch.Tensor, draw, number: int = 4) -> None:
    for block in weight.data.chunk(number):
        draw(block)


def keras_lstm() -> nn.Module:
    """As Keras makes it: Glorot uniform and orthogonal, gate by gate, and a forget bias of one."""
    layer = nn.LSTM(32, 64)
    gates(layer.weight_ih_l0, init.xavier_uniform_)
    gates(layer.weight_hh_l0, init.orthogonal_)
    init.zeros_(layer.bias_ih_l0).data[64:128] = 1
    init.zeros_(layer.bias_hh_l0)
    return layer


def lstm_with_a_forget_bias() -> nn.Module:
    layer = nn.LSTM(32, 64)
    with torch.no_grad():
        layer.bias_ih_l0[64:128] = 1
        init.orthogonal_(layer.weight_hh_l0)
    return layer


def irnn() -> nn.Module:
    """Le et al., 2015: the identity for the hidden state, small numbers for the inputs."""
    layer = nn.RNN(32, 64, nonlinearity="relu")
    init.eye_(layer.weight_hh_l0)
    init.normal_(layer.weight_ih_l0, std=0.001)
    return layer


def gru_by_gates() -> nn.Module:
    layer = nn.GRU(64, 64)
    gates(layer.weight_ih_l0, lambda w: init.eye_(w).mul_(0.1), 3)
    gates(layer.weight_hh_l0, lambda w: init.orthogonal_(w, gain=2.0), 3)
    return layer


def attention(draw) -> nn.Module:
    layer = nn.MultiheadAttention(64, 4)
    for i, block in enumerate(layer.in_proj_weight.data.chunk(3)):
        draw(block, i)
    return layer


def fused_qkv() -> nn.Module:
    """As timm draws the ``qkv`` of a vision transformer: by the fans of one third."""
    layer = nn.Linear(128, 384)
    bound = math.sqrt(6 / (384 // 3 + 128))
    init.uniform_(layer.weight, -bound, bound)
    return layer


STACKED = {
    "Keras' LSTM": (
        keras_lstm,
        {
            "weight_ih_l0": "Xavier uniform (per gate)",
            "weight_hh_l0": "orthogonal, per gate",
            "bias_ih_l0": "zeros, forget ones",
            "bias_hh_l0": "zeros",
        },
    ),
    "LSTM with a forget bias": (
        lstm_with_a_forget_bias,
        {
            "weight_hh_l0": "orthogonal",
            "bias_ih_l0": "PyTorch default (uniform ±1/sqrt(hidden_size)), forget ones",
            "bias_hh_l0": "PyTorch default (uniform ±1/sqrt(hidden_size))",
        },
    ),
    "IRNN": (irnn, {"weight_hh_l0": "identity", "weight_ih_l0": "normal (std 0.001)"}),
    "GRU, gate by gate": (
        gru_by_gates,
        {"weight_ih_l0": "identity times 0.1, per gate", "weight_hh_l0": "orthogonal (gain 2), per gate"},
    ),
    "attention, block by block": (
        lambda: attention(lambda block, _: init.xavier_normal_(block)),
        {"in_proj_weight": "Xavier normal (per block)"},
    ),
    "attention, values begin at zero": (
        lambda: attention(lambda block, i: init.normal_(block, std=0.02 if i < 2 else 0.0)),
        {"in_proj_weight": "normal (std 0.02), value zeros"},
    ),
    "attention, each block its own": (
        lambda: attention(lambda block, i: [init.orthogonal_, init.eye_, init.zeros_][i](block)),
        {"in_proj_weight": "orthogonal, key identity, value zeros"},
    ),
    "fused qkv": (fused_qkv, {"weight": "Xavier uniform (per block)"}),
}


@pytest.mark.parametrize(("make", "names"), STACKED.values(), ids=STACKED.keys())
def test_matrices_that_are_stacked_in_one_tensor_are_named_one_by_one(make, names):
    found = recognised(make())
    assert {name: found[name].scheme.name for name in names} == names


def test_the_spread_of_stacked_matrices_is_that_of_all_elements():
    layer = keras_lstm()
    found = recognised(layer)
    for name in ("weight_hh_l0", "bias_ih_l0"):
        whole = getattr(layer, name).detach()
        assert found[name].scheme.std == pytest.approx(whole.std(correction=0).item(), rel=1e-2)


def test_a_stack_of_shards_is_not_taken_for_one_matrix():
    merged = recognised(lstm_with_a_forget_bias(), merged=True)["bias_ih_l0"]
    assert str(merged) == "unrecognised"
    assert merged.untold == "its rows and blocks were not compared, because no process holds all of it"


ROUNDED = {
    "orthogonal": init.orthogonal_,
    "identity": init.eye_,
    "Xavier uniform": init.xavier_uniform_,
    "Kaiming normal (fan_in, relu)": lambda w: init.kaiming_normal_(w, nonlinearity="relu"),
    "truncated normal (std 0.02, cut at ±0.04)": lambda w: init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("name", "draw"), ROUNDED.items(), ids=ROUNDED.keys())
def test_rounding_hides_no_scheme(name, draw, dtype):
    layer = nn.Linear(200, 300)
    draw(layer.weight)
    for cast in (layer.to(dtype), layer.to(dtype).float()):  # what was rounded once is often held in float32
        assert recognised(cast)["weight"].scheme.name == name


@pytest.mark.parametrize("rows", [2, 3, 8])
def test_few_rows_are_orthogonal_to_the_digits_of_their_type(rows):
    layer = nn.Linear(64, rows)
    init.orthogonal_(layer.weight)
    assert str(recognised(layer)["weight"]) == "orthogonal"
    with torch.no_grad():
        layer.weight[0] += 0.002 * layer.weight[1]
    assert recognised(layer)["weight"].scheme.family != "orthogonal" or rows > 3


def test_rows_at_right_angles_of_different_lengths_are_not_called_orthogonal():
    layer = nn.Linear(64, 64)
    init.orthogonal_(layer.weight)
    with torch.no_grad():
        layer.weight[0] *= 1.5
    assert str(recognised(layer)["weight"]) == "unrecognised"


def test_zeros_without_an_order_are_not_called_sparse():
    def sparse(spoil) -> str:
        layer = nn.Linear(100, 200)
        init.sparse_(layer.weight, sparsity=0.3, std=0.05)
        spoil(layer.weight.data)
        return str(recognised(layer)["weight"])

    assert sparse(lambda _: None) == "sparse (30% of each column zero, normal std 0.05)"
    assert "sparse" not in sparse(lambda w: w.masked_fill_(torch.rand_like(w) < 0.1, 0.0))
    assert "sparse" not in sparse(lambda w: w.copy_(torch.randn_like(w))[:50].zero_())


def test_a_padding_row_is_left_out_of_any_embedding():
    layer = nn.Embedding(100, 32, padding_idx=7)
    init.normal_(layer.weight, std=0.02).data[7] = 0
    assert recognised(layer)["weight"].scheme.name == "normal (std 0.02), a padding row"


def test_a_group_of_a_convolution_has_fans_and_an_identity_of_its_own():
    layer = nn.Conv2d(64, 64, 3, groups=4)
    init.dirac_(layer.weight, groups=4)
    assert str(recognised(layer)["weight"]) == "identity (dirac)"
    init.normal_(layer.weight, std=math.sqrt(2 / (9 * 64 // 4)))  # as timm draws an EfficientNet
    assert "Kaiming normal (fan_in, relu)" in str(recognised(layer)["weight"])  # the same number, 16 channels each way
    layer = nn.Conv2d(32, 128, 3, groups=4)
    init.normal_(layer.weight, std=math.sqrt(2 / (9 * 128 // 4)))
    assert recognised(layer)["weight"].scheme.name == "Kaiming normal (fan_out, relu, per group)"


def test_ones_that_do_not_lie_on_the_diagonal_are_no_identity():
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(16)[torch.arange(15, -1, -1)])
    assert str(recognised(layer)["weight"]) == "orthogonal"


def test_a_tied_weight_is_known_by_whichever_of_its_layers_drew_it():
    for first in ("embed", "head"):
        model = nn.Module()
        model.embed, model.head = nn.Embedding(300, 64), nn.Linear(64, 300)
        if first == "embed":
            model.head.weight = model.embed.weight
        else:
            model.embed.weight = model.head.weight
        found = {name: str(of) for name, of in recognised(model).items()}
        own = {"embed": "PyTorch default (normal, std 1)", "head": "PyTorch default (uniform ±1/sqrt(fan_in))"}[first]
        assert found == {"embed.weight": own, "head.bias": "PyTorch default (uniform ±1/sqrt(fan_in))"}


def test_what_was_trained_matches_no_scheme():
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    inputs = torch.randn(512, 64)
    labels = (inputs @ torch.randn(64, 10)).argmax(1)
    for _ in range(100):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        for weight, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
            weight.data -= 0.3 * gradient
    found = recognised(model)
    assert {str(found[f"{i}.weight"]) for i in (0, 2)} == {"unrecognised"}
    assert not str(found["4.weight"]).startswith("PyTorch default")  # 1,280 elements may well look like some scheme's


@pytest.mark.parametrize(
    "tails", [torch.distributions.Laplace(0, 0.02 / math.sqrt(2)), torch.distributions.StudentT(5)]
)
def test_heavy_tails_are_not_called_normal_for_their_spread(tails):
    layer = nn.Linear(128, 128)
    sample = tails.sample((128, 128))
    layer.weight.data.copy_(sample * 0.02 / sample.std())
    assert str(recognised(layer)["weight"]) == "unrecognised"


def test_the_interval_holds_the_true_spread_in_95_of_100():
    held = 0
    for _ in range(100):
        layer = nn.Linear(16, 16)
        init.normal_(layer.weight, std=0.02)
        low, high = recognised(layer)["weight"].interval
        held += low <= 0.02 <= high
    assert 89 <= held <= 99


def test_confidence_falls_where_schemes_cannot_be_told_apart():
    square, oblong = nn.Linear(256, 256), nn.Linear(256, 300)
    for layer in (square, oblong):
        init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert recognised(square)["weight"].confidence < 0.5
    assert recognised(oblong)["weight"].confidence > 0.8


def test_one_number_may_be_anything():
    holder = nn.Module()
    holder.temperature, holder.layer = nn.Parameter(torch.tensor(0.07)), nn.Linear(1, 1)
    found = recognised(holder)
    assert found["temperature"].scheme.name == "constant (0.07)"
    assert found["layer.weight"].scheme.name == "PyTorch default (uniform ±1/sqrt(fan_in))"
    assert any(scheme.family == "constant" for scheme in found["layer.weight"].alternatives)
