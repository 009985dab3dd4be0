"""Layers that were copied: silent cases first, then the trainings that show which of them part."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_weightwatch.audit import audit_init
from lightning_weightwatch.evidence import Initial, Layer, Signal
from lightning_weightwatch.rules.identical_layers import RULE, check
from tests.helpers.verdicts import parameter

UNRECOGNISED = "unrecognised"


def copies(*names, content="same", **fields):
    return [parameter(name, content=content, **fields) for name in names]


def batch(**gradients):
    """Return a signal with the gradient of each layer's weight, whose numbers are those of the gradient too."""
    layers = tuple(Layer(f"{n}.weight", rms=1 + g, spread=1 + g, gradient=g) for n, g in gradients.items())
    return Signal(layers, {f"{name}.weight": (gradient,) for name, gradient in gradients.items()})


PAIR = copies("a.weight", "b.weight")
SILENT = [
    pytest.param([], id="no parameters"),
    pytest.param([parameter("a.weight"), parameter("b.weight")], id="drawn one by one"),
    pytest.param([*copies("a.weight"), *copies("b.weight", shape=(32, 64))], id="another shape"),
    pytest.param(copies("a.weight", "b.weight", content=""), id="not compared"),
    pytest.param(copies("a.weight", "b.weight", constant=0.0), id="zeros, which other rules look at"),
    pytest.param(copies("a.weight", "b.weight", scheme="identity (gain 1)"), id="identities are alike by design"),
    pytest.param(copies("a.bias", "b.bias", shape=(64,), kind="bias"), id="biases"),
    pytest.param([*copies("a.weight"), *copies("teacher.weight", trainable=False)], id="a frozen teacher"),
    pytest.param(copies("a.weight", "b.weight", trainable=False), id="a frozen backbone"),
    pytest.param(copies("a.A_log", "b.A_log", kind="other", scheme=UNRECOGNISED), id="filled by a formula (Mamba)"),
    pytest.param(copies("a.w", "b.w", kind="embedding", scheme=UNRECOGNISED), id="tables of sines"),
    pytest.param([parameter("a.weight", content="same", tied=("b.weight",))], id="tied: one tensor"),
    pytest.param(Initial(PAIR, resumed=True), id="a checkpoint was loaded"),
    pytest.param(
        Initial(copies("a.weight", "b.weight", scheme=UNRECOGNISED), pretrained=True), id="trained layers, stacked"
    ),
    pytest.param(Initial(PAIR, batch(a=0.1)), id="a target network, which gets no gradient"),
]


@pytest.mark.parametrize("initial", SILENT)
def test_silent(initial):
    assert RULE(initial) == ()


@pytest.mark.parametrize("scheme", ["Xavier uniform", UNRECOGNISED])
@pytest.mark.parametrize("kind", ["linear", "convolution", "recurrent", "attention"])
def test_two_of_a_layer_are_a_note(kind, scheme):
    (finding,) = RULE(copies("a.weight", "b.weight", kind=kind, scheme=scheme))
    assert (finding.severity, finding.parameters, finding.value) == ("info", ("a.weight", "b.weight"), 2.0)


def test_a_free_matrix_counts_where_it_was_drawn():
    """Experts are often kept as parameters of their own; so are the layers of GPT-2."""
    (finding,) = RULE(copies("a.w", "b.w", kind="other", scheme="normal (std 0.02)"))
    assert finding.parameters == ("a.w", "b.w")


def test_a_fresh_head_on_a_trained_backbone_counts():
    trained = [parameter(f"body.{i}.weight", scheme=UNRECOGNISED) for i in range(4)]
    (finding,) = RULE(Initial([*trained, *PAIR], pretrained=True))
    assert finding.parameters == ("a.weight", "b.weight")


def test_all_are_told_at_once_in_their_order():
    layers = [
        parameter(f"enc.layers.{i}.{name}.weight", content=name) for i in range(3) for name in ("linear1", "linear2")
    ]
    (finding,) = RULE([*layers, parameter("head.weight")])
    assert finding.parameters == tuple(v.name for v in layers)
    assert "6 weight matrices" in finding.saw
    assert "2 sets" in finding.saw
    assert finding.try_first.endswith("for p in model.enc.layers.parameters() if p.dim() > 1].")


def test_what_is_said_where_gradients_differ():
    (finding,) = RULE(Initial(PAIR, batch(a=0.1, b=0.11)))
    assert str(finding) == (
        "INFO at step 0: identical_layers. 2 weight matrices hold the same numbers as another one at the start "
        "(limit 0), and their gradients differ, so that they part; such as a.weight, b.weight. Try first: Draw them "
        "anew, as copy.deepcopy and nn.TransformerEncoder do not: [nn.init.xavier_uniform_(p) for p in "
        "model.parameters() if p.dim() > 1]."
    )


def test_with_the_same_gradient_they_stay_copies():
    (finding,) = RULE(Initial(PAIR, batch(a=0.1, b=0.1 * (1 + 5e-6))))
    assert (finding.severity, finding.parameters) == ("warning", ("a.weight", "b.weight"))
    assert "stay copies" in finding.saw


@pytest.mark.parametrize(
    "signal",
    [
        pytest.param(batch(a=0.1, b=0.1 * (1 + 2e-5)), id="a little more"),
        pytest.param(batch(a=0.0, b=0.0), id="none at all"),
        pytest.param(Signal(gradients={"a.weight": (float("nan"),), "b.weight": (float("nan"),)}), id="broken"),
        pytest.param(
            Signal((Layer("a.weight", rms=1.0), Layer("b.weight", rms=2.0)), {"a.weight": (0.1,), "b.weight": (0.1,)}),
            id="gradients of one size by chance: the outputs differ",
        ),
    ],
)
def test_otherwise_they_may_part(signal):
    assert [f.severity for f in RULE(Initial(PAIR, signal))] == ["info"]


def test_without_layers_that_were_heard_gradients_decide():
    signal = Signal(gradients={"a.weight": (0.1, 0.2), "b.weight": (0.1, 0.3)})
    assert [f.severity for f in RULE(Initial(PAIR, signal))] == ["warning"]


def test_those_that_stay_and_those_that_part_are_told_apart():
    found = RULE(Initial(copies("a.weight", "b.weight", "c.weight"), batch(a=0.1, b=0.1, c=0.2)))
    assert [(f.severity, f.parameters) for f in found] == [
        ("warning", ("a.weight", "b.weight")),
        ("info", ("c.weight",)),
    ]


def test_limits_can_be_moved():
    assert not list(check(PAIR, copies=3))
    assert [f.severity for f in check(Initial(PAIR, batch(a=0.1, b=0.11)), alike=0.2)] == ["warning"]


# --- real networks ----------------------------------------------------------------------------------------------------


class Averaged(nn.Module):
    """Members side by side, averaged or behind a router."""

    def __init__(self, member, *, routed):
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(member) for _ in range(3))
        self.router = nn.Linear(16, 3) if routed else None

    def forward(self, x):
        outputs = torch.stack([member(x) for member in self.members], 1)
        if self.router is None:
            return outputs.mean(1)
        return (self.router(x).softmax(-1)[..., None] * outputs).sum(1)


def in_series():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 3)
    return nn.Sequential(nn.Unflatten(1, (1, 16)), encoder, nn.Flatten(), nn.Linear(16, 3))


def member():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))


NETWORKS = {
    "in series": (in_series, "1.layers.{}.linear1.weight", True),
    "averaged": (lambda: Averaged(member(), routed=False), "members.{}.0.weight", False),
    "routed": (lambda: Averaged(member(), routed=True), "members.{}.0.weight", True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_gradient_tells_which_copies_part(name):
    """In series and behind a router they part; averaged ones are the same, bit by bit, after the training."""
    make, pattern, part = NETWORKS[name]
    torch.manual_seed(0)
    model, x, y = make(), torch.randn(64, 16), torch.randint(3, (64,))
    found = [f for f in audit_init(model, (x, y), functional.cross_entropy).findings if f.rule == "identical_layers"]
    assert [f.severity for f in found] == ["info" if part else "warning"]
    assert {pattern.format(i) for i in range(3)} <= set(found[0].parameters)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    one, other = (model.get_parameter(pattern.format(i)) for i in (0, 1))
    assert torch.equal(one, other) is not part
    assert not part or (one - other).norm() > 0.01 * one.norm()


def test_the_remedy_draws_them_apart():
    torch.manual_seed(0)
    model = nn.Sequential(in_series())
    (finding,) = audit_init(model).findings
    line = finding.try_first.partition(": ")[2].removesuffix(".")
    eval(line, {"nn": nn, "model": model})
    assert audit_init(model).findings == ()
