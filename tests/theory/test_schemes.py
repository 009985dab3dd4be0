"""Schemes against freshly drawn tensors, SciPy's distributions and published formulas."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from lightning_weightwatch.theory import (
    Place,
    Scheme,
    candidates,
    default_scheme,
    kurtosis_interval,
    magnitude_interval,
    recognise,
    std_interval,
)
from lightning_weightwatch.theory.recognition import epsilon
from lightning_weightwatch.theory.schemes import cut_moments, least_range, normal, truncated, uniform
from tests.helpers.recognised import recognised

DEFAULT_LAYERS = {
    "linear": lambda: nn.Linear(40, 30),
    "linear of one weight": lambda: nn.Linear(1, 1),
    "linear to one unit": lambda: nn.Linear(4, 1),
    "linear from one": lambda: nn.Linear(1, 6),
    "bilinear": lambda: nn.Bilinear(20, 7, 30),
    "conv1d": lambda: nn.Conv1d(8, 16, 5),
    "conv2d": lambda: nn.Conv2d(3, 16, 3),
    "conv3d": lambda: nn.Conv3d(3, 8, 3),
    "grouped": lambda: nn.Conv2d(16, 32, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(32, 32, 3, groups=32),
    "pointwise": lambda: nn.Conv2d(2, 3, 1),
    "transposed": lambda: nn.ConvTranspose2d(24, 6, 3),
    "transposed, grouped": lambda: nn.ConvTranspose2d(24, 12, 3, groups=3),
    "embedding": lambda: nn.Embedding(100, 16),
    "embedding with padding": lambda: nn.Embedding(10, 512, padding_idx=0),
    "embedding bag": lambda: nn.EmbeddingBag(50, 8),
    "rnn": lambda: nn.RNN(5, 12, num_layers=2, bidirectional=True),
    "lstm": lambda: nn.LSTM(5, 12),
    "lstm, projected": lambda: nn.LSTM(5, 12, proj_size=3),
    "gru": lambda: nn.GRU(7, 16),
    "gru cell": lambda: nn.GRUCell(7, 16),
    "attention": lambda: nn.MultiheadAttention(32, 4),
    "attention, other keys": lambda: nn.MultiheadAttention(32, 4, kdim=20, vdim=12, add_bias_kv=True),
    "encoder layer": lambda: nn.TransformerEncoderLayer(32, 4, 64),
    "batch norm": lambda: nn.BatchNorm2d(16),
    "layer norm": lambda: nn.LayerNorm((4, 8)),
    "group norm": lambda: nn.GroupNorm(2, 16),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "rms norm": lambda: nn.RMSNorm(8),
    "prelu": nn.PReLU,
    "prelu per channel": lambda: nn.PReLU(8),
    "adaptive softmax": lambda: nn.AdaptiveLogSoftmaxWithLoss(32, 100, [20, 60]),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 64, 3)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(20, 30)),
    "bfloat16": lambda: nn.Linear(300, 300, dtype=torch.bfloat16),
    "float16": lambda: nn.Linear(300, 300, dtype=torch.float16),
}


def recognitions(model: nn.Module) -> dict[str, str]:
    return {name: str(found) for name, found in recognised(model).items()}


def named(tensor: torch.Tensor) -> str:
    """Recognise a tensor as a user's own matrix, which has no default."""
    holder = nn.Module()
    holder.matrix = nn.Parameter(tensor)
    return recognitions(holder)["matrix"]


@pytest.mark.parametrize("make", DEFAULT_LAYERS.values(), ids=DEFAULT_LAYERS.keys())
def test_what_torch_draws_is_recognised_as_torch_default(make):
    torch.manual_seed(7)
    for _ in range(25):
        for name, scheme in recognitions(make()).items():
            assert scheme.startswith("PyTorch default"), (name, scheme)


def test_the_coarse_steps_of_bfloat16_are_allowed_for():
    torch.manual_seed(0)
    layer = nn.Linear(777, 2000, dtype=torch.bfloat16)
    off_centre = layer.weight.double().mean() / (1 / math.sqrt(3 * 777 * 777 * 2000))
    assert abs(off_centre) > 6  # as many standard errors: this generator is not centred
    assert recognitions(layer)["weight"] == "PyTorch default (uniform ±1/sqrt(fan_in))"


@pytest.mark.parametrize("make", [DEFAULT_LAYERS["bfloat16"], DEFAULT_LAYERS["float16"]])
def test_half_precision_is_named_without_alternatives(make):
    assert set(recognitions(make()).values()) == {"PyTorch default (uniform ±1/sqrt(fan_in))"}


def test_transformer_redraws_its_matrices_by_xavier():
    found = recognitions(nn.Transformer(64, 4, 1, 1, 128, batch_first=True))
    matrices = {name: scheme for name, scheme in found.items() if "weight" in name and "norm" not in name}
    assert all("Xavier uniform" in scheme for scheme in matrices.values()), matrices
    assert "unrecognised" not in found.values()


RELU = math.sqrt(2)
DRAWN = {
    "Kaiming uniform (fan_in, relu)": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "Kaiming normal (fan_in, relu)": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "Kaiming uniform (fan_out, relu)": lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu"),
    "Kaiming normal (fan_out, relu)": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "Xavier uniform": nn.init.xavier_uniform_,
    "Xavier normal": nn.init.xavier_normal_,
    "Xavier uniform (gain relu)": lambda w: nn.init.xavier_uniform_(w, gain=RELU),
    "Xavier normal (gain relu)": lambda w: nn.init.xavier_normal_(w, gain=RELU),
    "LeCun uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="linear"),
    "LeCun normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"),
    "uniform ±1/sqrt(fan_in)": lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
    "orthogonal": nn.init.orthogonal_,
    "normal (std 0.02)": lambda w: nn.init.normal_(w, std=0.02),
    "normal (std 0.01)": lambda w: nn.init.normal_(w, std=0.01),
    "normal (std 1)": nn.init.normal_,
    "truncated normal (std 0.02, cut at ±0.04)": lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04),
    "zeros": nn.init.zeros_,
    "ones": nn.init.ones_,
    "constant (0.3)": lambda w: nn.init.constant_(w, 0.3),
}


@pytest.mark.parametrize(("name", "draw"), DRAWN.items(), ids=DRAWN.keys())
def test_a_scheme_of_torch_nn_init_is_named_first_and_others_only_where_their_numbers_are_as_near(name, draw):
    """Such as leaky ReLU's gain for a slope of 0.1, half a percent off ReLU's, which 39,000 elements cannot tell."""
    torch.manual_seed(3)
    for _ in range(5):
        holder = nn.Module()
        holder.matrix = nn.Parameter(torch.empty(300, 130, dtype=torch.float64))
        draw(holder.matrix)
        found = recognised(holder)["matrix"]
        assert found.scheme.name == name
        for other in found.alternatives:
            low, high = std_interval(found.scheme, 39_000, sigmas=10)
            assert other.family == found.scheme.family
            assert low <= other.std <= high


def test_trunc_normal_cut_at_two_whole_units_is_a_plain_normal():
    # torch's bounds are absolute: with std 0.02 they lie at 100 standard deviations and cut nothing.
    assert named(nn.init.trunc_normal_(torch.empty(300, 130), std=0.02)) == "normal (std 0.02)"


def test_square_matrices_name_all_that_cannot_be_told_apart():
    torch.manual_seed(0)
    holder = nn.Module()
    holder.matrix = nn.Parameter(nn.init.xavier_normal_(torch.empty(200, 200)))
    found = recognised(holder)["matrix"]
    alike = {"Xavier normal", "LeCun normal", "Kaiming normal (fan_out, linear)"}
    assert {found.scheme.name, *(s.name for s in found.alternatives[:2])} == alike
    assert found.confidence < 0.5
    assert str(found) == "Xavier normal or 3 others"  # 0.07 is 1 % off, within the scatter of 40,000 elements


def test_an_orthogonal_matrix_is_told_from_random_ones_of_the_same_spread():
    torch.manual_seed(0)
    assert named(nn.init.orthogonal_(torch.empty(200, 200))) == "orthogonal"


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.empty(200, 100).exponential_(), id="skewed"),
        pytest.param(torch.empty(200, 100).normal_() * 0.37, id="of no known width"),
        pytest.param(torch.empty(200, 100).normal_() * 0.02 + 0.005, id="off centre"),
        pytest.param(torch.empty(200, 100).uniform_(-0.03464, 0.03464), id="uniform with the std of normal 0.02"),
        pytest.param(torch.cat([torch.empty(199, 100).normal_() * 0.02, torch.ones(1, 100)]), id="with outliers"),
        pytest.param(torch.tensor([[1.0, 1.0], [1.0, -0.5]]) * 1e-9, id="tiny"),
    ],
)
def test_what_no_scheme_drew_is_unrecognised(tensor):
    assert named(tensor) == "unrecognised"


def test_a_mean_shift_or_an_element_beyond_the_bound_gives_a_default_away():
    torch.manual_seed(0)
    for spoil in (lambda w: w.add_(0.02), lambda w: w[0, 0].fill_(0.3), lambda w: w.mul_(0.9)):
        layer = nn.Linear(64, 64)
        with torch.no_grad():
            spoil(layer.weight)
        assert not recognitions(layer)["weight"].startswith("PyTorch default")


CONV = Place("weight", (16, 3, 3, 3), "convolution", "Conv2d", {"weight": (16, 3, 3, 3), "bias": (16,)})


def test_432_weights_of_xavier_do_not_rule_the_default_out():
    # Xavier's std of 0.1081 lies within the scatter of the default's 0.1111, and its bound inside the default's. But
    # that all 432 weights of the default stay below Xavier's bound of 0.1873 happens once in 118,000 times.
    torch.manual_seed(1)
    layer = nn.Conv2d(3, 16, 3)
    nn.init.xavier_uniform_(layer.weight)
    found = recognised(layer)["weight"]
    assert str(found) == "Xavier uniform or PyTorch default (uniform ±1/sqrt(fan_in))"
    low, high = found.interval
    assert low < 0.108148 < 0.111111 < high
    assert 0.99 < found.confidence < 1


def test_the_largest_of_432_default_weights_rules_xavier_out():
    # One magnitude beyond Xavier's bound of 0.1873 is enough; the standard deviation alone would leave both.
    torch.manual_seed(1)
    alone = [recognitions(nn.Conv2d(3, 16, 3))["weight"] for _ in range(20)]
    assert set(alone) == {"PyTorch default (uniform ±1/sqrt(fan_in))"}


def test_default_is_preferred_where_a_handful_of_numbers_fits_many():
    found = recognitions(nn.Linear(2, 2))["weight"]
    assert found.startswith("PyTorch default (uniform ±1/sqrt(fan_in)) or ")


@pytest.mark.parametrize(
    ("kind", "role", "layer_type", "shapes", "std", "mean"),
    [
        ("convolution", "weight", "Conv2d", {"weight": (16, 3, 3, 3)}, 1 / 9, 0),
        ("linear", "weight", "Linear", {"weight": (10, 4096)}, 0.0090211, 0),
        ("linear", "bias", "Linear", {"weight": (10, 4096), "bias": (10,)}, 0.0090211, 0),
        ("linear", "bias", "NonDynamicallyQuantizableLinear", {"weight": (8, 8), "bias": (8,)}, 0, 0),
        ("embedding", "weight", "Embedding", {"weight": (9, 4)}, 1, 0),
        ("attention", "in_proj_weight", "MultiheadAttention", {"in_proj_weight": (192, 64)}, 0.0883883, 0),
        ("attention", "in_proj_bias", "MultiheadAttention", {"in_proj_bias": (192,)}, 0, 0),
        ("norm", "weight", "LayerNorm", {"weight": (8,), "bias": (8,)}, 0, 1),
        ("norm", "bias", "LayerNorm", {"weight": (8,), "bias": (8,)}, 0, 0),
        ("other", "weight", "PReLU", {"weight": (1,)}, 0, 0.25),
    ],
)
def test_default_numbers(kind, role, layer_type, shapes, std, mean):
    scheme = default_scheme(Place(role, shapes[role], kind, layer_type, shapes))
    assert (scheme.std, scheme.mean) == (pytest.approx(std, rel=1e-5), mean)
    assert scheme.name.startswith("PyTorch default")


@pytest.mark.parametrize(
    ("kind", "role", "layer_type"),
    [("other", "gate", "MyBlock"), ("linear", "lora_A", "Linear"), ("embedding", "scale", "Embedding")],
)
def test_parameters_that_torch_did_not_make_have_no_default(kind, role, layer_type):
    shapes = {"weight": (8, 8), role: (8, 2)}
    assert default_scheme(Place(role, (8, 2), kind, layer_type, shapes)) is None


@pytest.mark.parametrize("family", ["uniform", "normal", "truncated normal"])
@pytest.mark.parametrize("count", [2, 3, 5, 10, 100, 5000])
def test_intervals_hold_what_is_drawn_and_little_more(family, count):
    draws = {
        "uniform": scipy.stats.uniform(-1, 2),
        "normal": scipy.stats.norm(),
        "truncated normal": scipy.stats.truncnorm(-2, 2),
    }[family]
    scheme = Scheme("drawn", family, 0.0, draws.std(), None if family == "normal" else -draws.support()[0], "scipy")
    sample = draws.rvs(size=(400, count), random_state=0)
    low, high = std_interval(scheme, count)
    assert ((sample.std(axis=1) >= low) & (sample.std(axis=1) <= high)).all()
    if count >= 100:
        middle = np.diff(std_interval(scheme, count, sigmas=1))[0] / 2
        assert middle == pytest.approx(sample.std(axis=1).std(), rel=0.15)
    least, most = magnitude_interval(scheme, count)
    largest = np.abs(sample).max(axis=1)
    assert ((largest >= least) & (largest <= most)).all()


@pytest.mark.parametrize("cut", [1.0, 2.0, 3.0, 8.0])
def test_moments_of_a_cut_normal_are_those_of_scipy(cut):
    draws = scipy.stats.truncnorm(-cut, cut)
    assert cut_moments(cut) == pytest.approx([draws.moment(k) for k in (2, 4, 6, 8)])


def test_a_truncated_normal_knows_the_normal_it_was_cut_from():
    scheme = truncated("cut", 0.02, "", cut=3.0)
    assert (scheme.parent, scheme.bound) == pytest.approx((0.02, 0.06))
    assert scheme.std == pytest.approx(scipy.stats.truncnorm(-3, 3, scale=0.02).std())


@pytest.mark.parametrize("count", [200, 2000])
@pytest.mark.parametrize(
    ("scheme", "draws"),
    [
        (uniform("u", 1.0, ""), scipy.stats.uniform(-1, 2)),
        (normal("n", 1.0, ""), scipy.stats.norm()),
        (truncated("t", 1.0, ""), scipy.stats.truncnorm(-2, 2)),
    ],
    ids=["uniform", "normal", "truncated normal"],
)
def test_kurtosis_intervals_hold_what_is_drawn_and_little_more(scheme, draws, count):
    sample = draws.rvs(size=(1000, count), random_state=0)
    kurtosis = (sample**4).mean(1) / (sample**2).mean(1) ** 2
    low, high = kurtosis_interval(scheme, count)
    assert ((kurtosis >= low) & (kurtosis <= high)).all()
    if count >= 2000:
        middle = np.diff(kurtosis_interval(scheme, count, sigmas=1))[0] / 2
        assert middle == pytest.approx(kurtosis.std(), rel=0.1)


def test_a_uniform_sample_spans_its_least_range_but_for_the_share_it_is_asked_for():
    scheme, sample = uniform("u", 1.0, ""), scipy.stats.uniform(-1, 2).rvs(size=(20_000, 5), random_state=0)
    for missed in (0.3, 0.03):
        below = np.ptp(sample, axis=1) < least_range(scheme, 5, missed)
        assert 0 < below.mean() <= missed


def test_magnitudes_are_the_quantiles_of_the_largest():
    normal = Scheme("n", "normal", 0.0, 2.0, None, "")
    low, high = magnitude_interval(normal, 1000, missed=0.01)
    inside = scipy.stats.halfnorm(scale=2.0)
    assert inside.cdf(low) ** 1000 == pytest.approx(0.01)
    assert inside.cdf(high) ** 1000 == pytest.approx(0.99)


def test_a_tensor_of_a_billion_elements_is_not_asked_for_magnitudes_float32_cannot_draw():
    low, _ = magnitude_interval(Scheme("n", "normal", 0.0, 1.0, None, ""), 10**10)
    assert low == 5.0


def test_nothing_finite_is_unrecognised():
    nan = float("nan")
    nothing = {"count": 0.0, "mean": nan, "std": nan, "min": nan, "max": nan}
    assert str(recognise(nothing, candidates(CONV))) == "unrecognised"


def test_candidates_have_one_default_first_and_no_second_of_the_same_numbers():
    found = candidates(CONV)
    assert found[0].name == "PyTorch default (uniform ±1/sqrt(fan_in))"
    assert sum(s.family == "uniform" and math.isclose(s.std, 1 / 9) for s in found) == 1
    assert all(s.source for s in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_coarsest_type_shows_in_the_smallest_and_the_largest_element(dtype):
    sample = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype).double()
    assert epsilon({"min": sample.min().item(), "max": sample.max().item()}) == torch.finfo(dtype).eps
