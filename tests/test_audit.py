"""The verdict on initialisations: silent cases first, each with its reason; then the ill; then the probe."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch import stats
from lightning_weightwatch.audit import InitReport, audit_init, judge, measure, readouts
from lightning_weightwatch.parameters import describe, named_tensors


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def verdicts(model: nn.Module) -> dict[str, str]:
    return {p.name: p.verdict for p in audit_init(model).parameters}


def only(model: nn.Module, name: str):
    return next(p for p in audit_init(model).parameters if p.name == name)


class Net(nn.Module):
    """A network with all that a forward pass may change or draw from."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 12, max_norm=1.0)
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(0.5)
        self.body = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12))
        self.head = nn.Linear(12, 3)

    def forward(self, indices):
        random.random()
        np.random.rand()
        return self.head(torch.relu(self.body(self.drop(self.norm(self.embed(indices))))))


class LoRA(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(16, 16).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(4, 16) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(16, 4))


class Scalars(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.layer_scale = nn.Parameter(torch.full((16,), 1e-6))
        self.per_head = nn.Parameter(torch.ones(8, 1, 1))


def zeroed(layer: nn.Module) -> nn.Module:
    nn.init.zeros_(layer.weight)
    return layer


def trained() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.pow_(3).mul_(20).add_(0.05)
    return model


HEALTHY = {
    "zero-initialised head (muP, ViT, detectors)": lambda: nn.Sequential(nn.Linear(8, 8), zeroed(nn.Linear(8, 4))),
    "zero-initialised last norm of a residual branch": lambda: nn.Sequential(nn.Linear(8, 8), zeroed(nn.LayerNorm(8))),
    "LoRA, whose B begins at zero": LoRA,
    "ReZero scalar, temperature, layer scale": Scalars,
    "norm gains and biases, which are constant by design": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm((8, 4))
    ),
    "embedding with a padding row of zeros": lambda: nn.Embedding(30, 8, padding_idx=3),
    "pre-trained weights, which no scheme drew": trained,
    "layers of one to four weights": lambda: nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2), nn.Linear(2, 1)),
    "transformer": lambda: nn.TransformerEncoderLayer(32, 4, 64),
    "recurrent": lambda: nn.LSTM(4, 8, 2),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
    "orthogonal parametrisation": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(16, 16)),
    "no parameters": nn.ReLU,
    "frozen": lambda: nn.Linear(8, 8).requires_grad_(False),
    "complex": lambda: nn.Linear(8, 8, dtype=torch.complex64),
    "float64": lambda: nn.Linear(8, 8, dtype=torch.float64),
}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY.keys())
def test_silent(make):
    report = audit_init(make())
    assert report.findings == ()
    assert {p.verdict for p in report.parameters} <= {"ok", "note"}


DEFAULT = {
    "network": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.PReLU(),
        nn.ConvTranspose2d(16, 4, 2),
        nn.Flatten(),
        nn.Linear(36, 10),
    ),
    "text": lambda: nn.Sequential(nn.Embedding(40, 16), nn.GRU(16, 24, 2), nn.Linear(24, 40)),
    "attention": lambda: nn.TransformerDecoderLayer(32, 4, 64),
}


@pytest.mark.parametrize("make", DEFAULT.values(), ids=DEFAULT.keys())
def test_defaults_are_ok_and_named(make):
    for _ in range(10):
        for p in audit_init(make()).parameters:
            assert (p.verdict, p.scheme.startswith("PyTorch default")) == ("ok", True), p


def test_numbers_are_those_numpy_computes():
    layer = nn.Linear(50, 20)
    p = only(layer, "weight")
    weights = layer.weight.detach().double().numpy()
    assert (p.mean, p.std) == (pytest.approx(weights.mean()), pytest.approx(weights.std()))
    assert p.expected_std == pytest.approx(1 / np.sqrt(150))
    assert (p.shape, p.kind, p.nonfinite, p.constant, p.trainable) == ((20, 50), "linear", 0, None, True)


def test_unrecognised_is_ok_and_shows_what_the_default_would_have_given():
    p = only(trained(), "0.weight")
    assert (p.verdict, p.scheme) == ("ok", "unrecognised")
    assert p.reason == "matches no known scheme: loaded, trained, or of the model's own making"
    assert p.expected_std == pytest.approx(1 / np.sqrt(48))


def test_zero_matrix_is_a_note_with_its_reason():
    p = only(nn.Sequential(nn.Linear(8, 8), zeroed(nn.Linear(8, 4))), "1.weight")
    assert (p.verdict, p.scheme, p.constant) == ("note", "zeros", 0.0)
    assert p.reason == (
        "all zeros: right for the last layer of a residual branch, a head or LoRA's B; elsewhere gradients will tell"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("trainable", [True, False])
def test_non_finite_is_critical_and_the_rest_is_still_measured(bad, trainable):
    layer = nn.Linear(50, 20).requires_grad_(trainable)
    with torch.no_grad():
        layer.weight[0, :3] = bad
    report = audit_init(layer)
    p = report.parameters[0]
    assert (p.verdict, p.nonfinite, p.reason) == ("critical", 3, "3 of 1000 elements are NaN or Inf")
    assert 0.07 < p.std < 0.09
    assert [(f.rule, f.parameters) for f in report.findings] == [("non_finite_weights", ("weight",))]
    assert report.parameters[1].verdict == "ok"


def test_nothing_finite_has_no_spread():
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, float("nan"))
    p = only(layer, "weight")
    assert (p.std, p.mean, p.constant, p.nonfinite, p.verdict) == (None, None, None, 16, "critical")


def test_finite_elements_alone_do_not_make_a_matrix_constant():
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, 0.1)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    report = audit_init(layer)
    assert report.parameters[0].constant is None
    assert [f.rule for f in report.findings] == ["non_finite_weights"]


def test_constant_matrices_in_a_row_are_critical():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.constant_(model[0].weight, 0.01)
    nn.init.constant_(model[1].weight, 0.01)
    assert {name for name, verdict in verdicts(model).items() if verdict != "ok"} == {"0.weight", "1.weight"}
    assert verdicts(model)["0.weight"] == "critical"
    assert only(model, "0.weight").reason == "all 64 elements are 0.01: every unit computes the same"


def test_what_cannot_be_measured_is_skipped_with_its_reason():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2, device="meta"), nn.Linear(3, 3))
    model.empty = nn.Parameter(torch.empty(0, 4))
    found = {p.name: (p.verdict, p.reason) for p in audit_init(model).parameters}
    assert found["0.weight"] == ("skipped", "uninitialised lazy parameter")
    assert found["1.weight"] == ("skipped", "on the meta device, without values")
    assert found["empty"] == ("skipped", "empty")
    assert found["2.weight"][0] == "ok"
    assert len(found) == 7


def test_a_part_never_passes_for_the_whole():
    model = nn.Linear(50, 20)
    parameters = describe(model)
    part = {name: tensor[:5] for name, tensor in named_tensors(model).items()}
    report = judge(parameters, readouts(parameters, measure(parameters, part)))
    assert [(p.verdict, p.reason) for p in report.parameters] == [
        ("skipped", "only 250 of its 1000 elements are held here"),
        ("skipped", "only 5 of its 20 elements are held here"),
    ]


def test_merged_parts_give_the_verdict_on_the_whole():
    model = nn.Linear(50, 20)
    parameters, tensors = describe(model), named_tensors(model)
    parts = [measure(parameters, {n: t[cut] for n, t in tensors.items()}) for cut in (slice(0, 7), slice(7, 20))]
    merge = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}
    how = stats.merges(["moments", "extremes"])
    merged = {key: merge[how[key]](parts[0][key], parts[1][key]) for key in how}
    whole, again = audit_init(model).parameters, judge(parameters, readouts(parameters, merged)).parameters
    for one, other in zip(whole, again, strict=True):
        assert (one.scheme, one.verdict, one.std) == (other.scheme, other.verdict, pytest.approx(other.std))


def test_resumed_says_nothing_of_schemes_and_still_finds_what_is_ill():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.constant_(model[0].weight, 0.5)
    nn.init.constant_(model[1].weight, 0.5)
    nn.init.constant_(model[2].weight, float("nan"))
    parameters = describe(model)
    report = judge(parameters, readouts(parameters, measure(parameters, named_tensors(model))), resumed=True, step=70)
    assert {p.scheme for p in report.parameters} == {"restored"}
    assert {p.expected_std for p in report.parameters} == {None}
    assert {(f.rule, f.severity, f.step, f.since_step) for f in report.findings} == {
        ("constant_weights", "critical", 70, 70),
        ("non_finite_weights", "critical", 70, 70),
    }
    assert report.headline == "Restored weights of 6 parameters: 3 critical, 3 ok"


def test_a_selected_bias_is_judged_by_the_weight_beside_it():
    model = nn.Linear(400, 30)
    everything = describe(model)
    chosen = [p for p in everything if p.name == "bias"]
    report = judge(chosen, readouts(chosen, measure(chosen, named_tensors(model))), among=everything)
    (bias,) = report.parameters
    assert bias.scheme == "PyTorch default (uniform ±1/sqrt(fan_in))"
    assert bias.expected_std == pytest.approx(1 / np.sqrt(1200))


def test_tied_weights_are_reported_once():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False))
    model[1].weight = model[0].weight
    assert list(verdicts(model)) == ["0.weight"]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 32)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 32)),
        lambda: nn.MultiheadAttention(16, 2, add_bias_kv=True),
        lambda: nn.utils.parametrizations.weight_norm(nn.LSTM(4, 8), "weight_hh_l0"),
    ],
    ids=["weight norm", "spectral norm", "bias_v of attention", "weight norm of a recurrent layer"],
)
def test_a_parameter_is_found_in_its_layer_under_any_parametrisation(layer):
    assert all(p.scheme.startswith("PyTorch default") for p in audit_init(layer()).parameters)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_weight_norm_and_pruning_are_seen_through():
    from torch.nn.utils import prune

    for layer in (nn.utils.weight_norm(nn.Linear(16, 32)), prune.random_unstructured(nn.Linear(16, 32), "weight", 0.5)):
        assert all(p.scheme.startswith("PyTorch default") for p in audit_init(layer).parameters)


def test_auditing_changes_nothing():
    model = Net()
    state, stream = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    audit_init(model)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("training", [True, False])
def test_probe_leaves_no_trace(training):
    model = Net().train(training)
    batch = torch.randint(20, (16,)), torch.randint(3, (16,))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = [id(t) for t in (*model.parameters(), *model.buffers())]
    random.seed(1)
    np.random.seed(1)
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    report = audit_init(model, batch, nn.functional.cross_entropy)
    assert report.probe["output_nonfinite"] == 0
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == tensors
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training is training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == streams[1:]
    # A second probe sees what the first saw, and so does the first step of a training.
    assert audit_init(model, batch, nn.functional.cross_entropy).probe == report.probe
    output = model(batch[0])
    assert report.probe["loss"] == nn.functional.cross_entropy(output, batch[1]).item()
    assert report.probe["output_rms"] == pytest.approx(output.square().mean().sqrt().item())


def test_probe_puts_everything_back_when_the_model_fails():
    class Broken(Net):
        def forward(self, indices):
            super().forward(indices)
            raise KeyError("no")

    model, batch = Broken(), torch.randint(20, (16,))
    state, stream = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(KeyError):
        audit_init(model, batch)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)


class Pair(nn.Module):
    def forward(self, a, b):
        return {"sum": a + b, "labels": [torch.tensor([3, 4])], "text": "x", "nothing": torch.zeros(0)}


@pytest.mark.parametrize(
    "batch", [(torch.ones(2), torch.ones(2)), {"a": torch.ones(2), "b": torch.ones(2)}], ids=["tuple", "mapping"]
)
def test_probe_passes_what_the_model_takes_and_reads_nested_outputs(batch):
    assert audit_init(Pair(), batch).probe == {"output_rms": pytest.approx(np.sqrt(33 / 4)), "output_nonfinite": 0}


def test_probe_counts_what_is_not_finite_and_stays_json():
    model = nn.Linear(2, 2, bias=False)
    nn.init.constant_(model.weight, float("inf"))
    report = audit_init(model, (torch.ones(3, 2), torch.ones(3, 2)), nn.functional.mse_loss)
    assert report.probe == {"output_rms": None, "output_nonfinite": 6, "loss": float("inf")}
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["probe"]["loss"] == "inf"


def test_probe_of_a_model_without_all_values_says_why_not():
    report = audit_init(nn.LazyLinear(3), torch.ones(2, 2))
    assert report.probe == {"skipped": "weight: uninitialised lazy parameter"}


def test_batch_must_be_a_pair_with_a_loss():
    with pytest.raises(TypeError) as caught:
        audit_init(nn.Linear(2, 2), torch.ones(2, 2), nn.functional.mse_loss)
    assert str(caught.value) == (
        "audit_init(batch=Tensor): expected a pair (input, target), because loss_fn is given. Pass both, or leave "
        "loss_fn out."
    )


def ill() -> InitReport:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.LazyLinear(2, bias=False))
    nn.init.constant_(model[1].weight, float("nan"))
    return audit_init(model)


def test_json():
    plain = json.loads(json.dumps(ill().to_dict(), allow_nan=False))
    assert list(plain) == ["resumed", "fresh", "parameters", "findings", "probe", "signal"]
    assert [p["verdict"] for p in plain["parameters"]] == ["ok", "critical", "skipped"]
    assert plain["parameters"][0]["shape"] == [8, 8]
    assert plain["findings"][0]["rule"] == "non_finite_weights"


def test_table_is_worst_first_and_says_what_is_not_well():
    lines = str(ill()).splitlines()
    assert lines[0] == "Initial weights of 3 parameters: 1 critical, 1 skipped, 1 ok"
    assert lines[1].split() == ["parameter", "shape", "kind", "scheme", "mean", "std", "expected", "verdict"]
    assert [line.split()[0] for line in lines[3:6]] == ["1.weight", "2.weight", "0.weight"]
    assert lines[-2].startswith(
        "CRITICAL at step 0: non_finite_weights. 64 elements of 1 of 3 parameters are NaN or Inf"
    )
    assert lines[-1] == "skipped 2.weight: uninitialised lazy parameter"


def test_markdown():
    page = [" ".join(line.split()) for line in ill().to_markdown().splitlines()]
    assert page[0] == "**Initial weights of 3 parameters: 1 critical, 1 skipped, 1 ok**"
    assert page[1] == ""  # or the list below would be one paragraph with the line above
    assert page[2].startswith("* CRITICAL at step 0: non_finite_weights.")
    assert "| parameter | shape | kind | scheme | mean | std | expected | verdict |" in page
    assert page[-3] == "| 1.weight | 8 x 8 | linear | unrecognised | - | - | 0.2041 | critical |"


def test_when_all_is_well_it_is_still_a_table():
    title, header, *_ = str(audit_init(nn.Linear(8, 8))).splitlines()
    assert (title, header.split()[-1]) == ("Initial weights of 2 parameters: 2 ok", "verdict")


def test_a_model_without_parameters():
    report = audit_init(nn.ReLU())
    assert (report.parameters, report.headline) == ((), "Initial weights of 0 parameters: none")
    assert str(report)


def test_what_only_whole_tensors_tell_goes_along_until_it_is_merged():
    model = nn.LSTM(16, 16)
    for block in model.weight_hh_l0.data.chunk(4):
        nn.init.orthogonal_(block)
    parameters = describe(model)
    measured = measure(parameters, named_tensors(model))
    assert measured.keys() == stats.merges(["moments", "extremes"]).keys()
    whole, merged = (judge(parameters, readouts(parameters, partials)) for partials in (measured, dict(measured)))
    (hidden,) = [p for p in whole.parameters if p.name == "weight_hh_l0"]
    assert (hidden.scheme, hidden.reason) == ("orthogonal, per gate", "drawn from orthogonal, per gate")
    (hidden,) = [p for p in merged.parameters if p.name == "weight_hh_l0"]
    assert hidden.scheme == "Xavier normal (per gate) or 4 others"  # they have the spread of an orthogonal gate
    assert hidden.reason.endswith("; its rows were not compared, because no process holds all of it")


def test_a_part_of_a_matrix_is_not_taken_for_a_matrix():
    model = nn.Linear(64, 64)
    nn.init.orthogonal_(model.weight)
    parameters = describe(model)
    found = readouts(parameters, measure(parameters, {n: t[:32] for n, t in named_tensors(model).items()}))
    assert "cosine" not in found["weight"]


def test_the_reason_says_how_exactly_the_elements_tell_candidates_apart():
    model = nn.Conv2d(3, 16, 3)
    nn.init.xavier_uniform_(model.weight)
    p = only(model, "weight")
    assert p.scheme == "Xavier uniform or PyTorch default (uniform ±1/sqrt(fan_in))"
    assert p.expected_std == pytest.approx(np.sqrt(2 / (27 + 144)))
    low, high = p.std * (1 - 1.96 * np.sqrt(0.8 / 4 / 432)), p.std * (1 + 1.96 * np.sqrt(0.8 / 4 / 432))
    assert p.reason == f"drawn from {p.scheme}: 432 elements tell its std to lie within {low:.3g} and {high:.3g}"


def test_a_bias_beside_a_tied_weight_has_its_default():
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 100))
    model[1].weight = model[0].weight
    bias = only(model, "1.bias")
    assert bias.scheme == "PyTorch default (uniform ±1/sqrt(fan_in))"
    assert bias.expected_std == pytest.approx(1 / np.sqrt(24))
