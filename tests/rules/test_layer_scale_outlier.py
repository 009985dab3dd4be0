"""One matrix far larger or smaller than those that do the same work: silent cases first."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_weightwatch.audit import audit_init
from lightning_weightwatch.evidence import Evidence, Initial, Layer, Listened, LossCall, Signal, Watched
from lightning_weightwatch.rules.layer_scale_outlier import RULE, check
from tests.helpers.runs import falling
from tests.helpers.shots import train
from tests.helpers.verdicts import parameter

STUCK = [2.3] * 30


def matrix(name, shape, std, kind="linear"):
    """Return a weight and the norm it has if its elements have this deviation."""
    numel = math.prod(shape)
    several = math.prod(shape[1:]) > 1 and kind not in ("embedding", "norm", "bias")
    return Watched(name, numel, several, kind=kind, shape=shape), std * math.sqrt(numel)


def begun(weights, losses=STUCK, *, first=0, heard=None):
    """Return evidence of a run that began with these weights."""
    evidence = Evidence([watched for watched, _ in weights])
    if heard is not None:
        evidence.add_reading(Listened(first, losses=(heard,)))
    return train(evidence, losses, first=first, shots={first: {"weight_norm": [norm for _, norm in weights]}})


def blocks(stds, shape=(32, 32), name="blocks.{}.mlp.up.weight"):
    return [matrix(name.format(i), shape, std) for i, std in enumerate(stds)]


def usual(shape):
    return 1 / math.sqrt(3 * math.prod(shape[1:]))  # torch's own initialisation


def plain(shapes, factors=None):
    """Return a plain nn.Sequential as torch initialises it, times a factor for each layer."""
    factors = factors or [1.0] * len(shapes)
    return [matrix(f"{2 * i}.weight", s, usual(s) * f) for i, (s, f) in enumerate(zip(shapes, factors, strict=True))]


MLP = [(784, 64), (256, 784), (32, 256), (10, 32)]
SIREN = [matrix("0.weight", (64, 1, 1), 0.58)] + [
    matrix(f"{2 * i}.weight", (64, 64), math.sqrt(2 / 64) / 30) for i in (1, 2, 3)
]
SILENT = [
    pytest.param(begun([]), id="no matrix"),
    pytest.param(begun(blocks([0.02] * 4)), id="equal peers"),
    pytest.param(begun(blocks([0.02, 0.02, 0.19, 0.02])), id="a tenth of a decade below the limit"),
    pytest.param(begun(blocks([0.02, 0.02, 0.0, 0.02])), id="a branch that begins at zero"),
    pytest.param(begun(blocks([1.0, 0.1, 0.01, 0.001, 0.0001])), id="peers that differ have no usual size"),
    pytest.param(begun(plain(MLP)), id="torch's own initialisation of very different layers"),
    pytest.param(begun(SIREN), id="SIREN: the first layer has another law than the others"),
    pytest.param(begun(plain(MLP, [1, 1, 1, 0.001])), id="a head that begins near zero"),
    pytest.param(begun(plain(MLP, [1, 1, 40, 1])), id="40 times without peers"),
    pytest.param(
        begun([*plain(MLP), matrix("embed.weight", (1000, 64), 100.0, "embedding")]), id="an embedding is no peer"
    ),
    pytest.param(
        begun([*plain(MLP), matrix("pos", (1, 400, 64), 5.0, "other")]), id="a table of places is none either"
    ),
    pytest.param(begun(plain(MLP[:2], [1, 1e4])), id="two matrices have no usual size"),
    pytest.param(begun(blocks([0.02, 0.02, 2.0]), losses=[]), id="no step yet"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


@pytest.mark.parametrize(("factor", "word"), [(100, "large"), (0.01, "small")])
def test_a_matrix_a_hundred_times_off_its_peers_is_named(factor, word):
    (finding,) = RULE(begun(blocks([0.02, 0.02, 0.02 * factor, 0.021])))
    assert (finding.severity, finding.parameters) == ("warning", ("blocks.2.mlp.up.weight",))
    assert (finding.since_step, finding.step, finding.limit) == (0, 29, 1.0)
    assert finding.value == pytest.approx(2.0, abs=0.02)
    assert f"times too {word} for its peers" in finding.saw


def test_peers_are_told_at_the_first_judgement():
    assert [f.severity for f in RULE(begun(blocks([0.02, 0.02, 2.0]), STUCK[:10]))] == ["warning"]


def test_layers_of_a_plain_sequence_are_peers_if_their_shapes_are_equal():
    shapes = [(64, 64)] * 4 + [(10, 64)]
    (finding,) = RULE(begun(plain(shapes, [1, 1, 15, 1, 1])))
    assert (finding.parameters, finding.limit) == (("4.weight",), 1.0)


def test_a_matrix_without_peers_needs_more_and_longer():
    weights = plain(MLP, [1, 100, 1, 1])
    (finding,) = RULE(begun(weights, STUCK[:20]))
    assert (finding.severity, finding.parameters, finding.limit) == ("warning", ("2.weight",), 1.7)
    assert finding.value == pytest.approx(2.0)
    assert [f.severity for f in RULE(begun(weights, STUCK[:19]))] == ["info"]


def test_a_matrix_that_is_small_in_the_middle_is_told_too():
    (finding,) = RULE(begun(plain(MLP, [1, 0.01, 1, 1])))
    assert finding.parameters == ("2.weight",)


@pytest.mark.parametrize(
    "weights", [blocks([0.02, 0.02, 2.0, 0.02]), plain(MLP, [1, 100, 1, 1])], ids=["peers", "none"]
)
@pytest.mark.parametrize("losses", [[falling(t) for t in range(40)], [None] * 40], ids=["falling", "unknown"])
def test_while_the_loss_falls_or_is_unknown_it_is_worth_knowing_only(weights, losses):
    assert [f.severity for f in RULE(begun(weights, losses))] == ["info"]


def test_a_first_loss_far_above_a_guess_counts_though_the_loss_falls():
    heard = LossCall("cross_entropy", classes=10, chance=math.log(10))
    for start, severity in ((3.1, "warning"), (2.9, "info")):
        losses = [start * math.log(10) * 0.9**t for t in range(30)]
        assert [f.severity for f in RULE(begun(blocks([0.02, 0.02, 2.0]), losses, heard=heard))] == [severity]


def test_both_forms_may_be_found_at_once():
    findings = RULE(begun([*blocks([0.02, 0.02, 2.0, 0.02]), *plain(MLP, [1, 1000, 1, 1])]))
    assert [f.parameters for f in findings] == [("blocks.2.mlp.up.weight",), ("2.weight",)]


def test_the_first_snapshot_counts_and_not_what_training_made_of_it():
    evidence = begun(blocks([0.02] * 4), first=100)
    train(evidence, STUCK, first=130, shots={130: {"weight_norm": [1.0, 1.0, 100.0, 1.0]}})
    assert RULE(evidence) == ()


def test_limits_can_be_moved():
    assert list(check(begun(blocks([0.02, 0.02, 0.15, 0.02])), decades=0.5))
    assert list(check(begun(plain(MLP, [1, 40, 1, 1])), alone=1.5))


# --- before the first step --------------------------------------------------------------------------------------------

SHAPES = (MLP[0], *[(64, 64)] * 4, MLP[-1])


def drawn(factors, *, shapes=SHAPES, loss=None, feeds=(), **fields):
    """Return a plain sequence as torch initialises it, times a factor for each layer, and its first loss."""
    parameters = [
        parameter(f"net.{2 * i}.weight", shape=s, std=usual(s) * f)
        for i, (s, f) in enumerate(zip(shapes, factors, strict=True))
    ]
    layers = tuple(Layer(v.name, feeds_loss=i in feeds) for i, v in enumerate(parameters))
    calls = (LossCall("cross_entropy", classes=10),)
    return Initial(parameters, None if loss is None else Signal(layers, loss=loss, losses=calls), **fields)


LOUD = [1, 1, 100, 1, 1, 1]


@pytest.mark.parametrize(
    "initial",
    [
        pytest.param([], id="no parameters"),
        pytest.param(drawn([1] * 6), id="torch's own initialisation"),
        pytest.param(drawn([1, 1, 9, 1, 1, 1]), id="nine times"),
        pytest.param(drawn([1, 1, 0, 1, 1, 1]), id="a branch that begins at zero"),
        pytest.param(drawn([1, 1, 1, 1, 1, 1e-3]), id="a head that begins near zero"),
        pytest.param(drawn([1e-3, 1, 1, 1, 1, 1], loss=2.3, feeds=[0]), id="a head that was registered first"),
        pytest.param(drawn([1e-3, 1, 1], shapes=[(10, 32), *MLP[:2]], loss=2.3, feeds=[0]), id="few layers and a head"),
        pytest.param(drawn([1, 100], shapes=SHAPES[:2]), id="two matrices have no usual size"),
        pytest.param(drawn(LOUD, resumed=True), id="a checkpoint was loaded"),
        pytest.param(
            [
                *drawn([1] * 6),
                parameter("embed.weight", kind="embedding", std=30.0),
                parameter("pos", kind="other", std=9),
            ],
            id="embeddings and free parameters are left out",
        ),
        pytest.param(
            [parameter(f"net.{i}.weight", std=0.0, mean=1e-3, constant=1e-3) for i in range(3)]
            + [parameter("net.9.weight")],
            id="constants have no usual size",
        ),
        pytest.param([*drawn([1] * 5, shapes=SHAPES[:5]), parameter("net.9.weight", std=None)], id="not measured"),
        pytest.param(
            [*drawn([1] * 5, shapes=SHAPES[:5]), parameter("net.9.weight", std=1e9, nonfinite=1)], id="broken"
        ),
    ],
)
def test_silent_at_the_start(initial):
    assert RULE(initial) == ()


@pytest.mark.parametrize(
    ("initial", "severity"),
    [
        (drawn(LOUD), "info"),
        (drawn(LOUD, loss=float("nan")), "info"),
        (drawn(LOUD, loss=2.9 * math.log(10)), "info"),
        (drawn(LOUD, loss=3.1 * math.log(10)), "warning"),
        (drawn(LOUD, loss=3.1 * math.log(10), pretrained=True), "info"),
    ],
)
def test_it_is_a_warning_where_the_first_loss_is_far_above_a_guess(initial, severity):
    (finding,) = RULE(initial)
    assert (finding.severity, finding.parameters) == (severity, ("net.4.weight",))
    assert (finding.value, finding.limit) == (pytest.approx(2.0), 1.0)
    assert (finding.step, finding.since_step) == (0, 0)


def test_what_is_said_at_the_start():
    (finding,) = RULE(drawn(LOUD))
    assert str(finding) == (
        "INFO at step 0: layer_scale_outlier. At the start the weights of net.4.weight are up to 100 times too large "
        "for its peers: 2.0 decades from their median (limit 1). Try first: Initialise these layers as the others are: "
        "nn.init.normal_(model.net[4].weight, std=0.072)."
    )


@pytest.mark.parametrize(("factor", "told"), [(0.01, True), (0.03, False), (100, True), (40, False)])
def test_without_peers_it_needs_more(factor, told):
    found = RULE(drawn([1, factor, 1, 1], shapes=MLP))
    assert [(f.parameters, f.limit) for f in found] == [(("net.2.weight",), 1.7)] * told


def test_a_mean_counts_as_size():
    """Weights about one hundredth and next to no spread have a gain as others that are spread so much."""
    ill = [parameter(f"net.{i}.weight", std=0.07) for i in range(4)] + [parameter("net.4.weight", std=1e-4, mean=0.07)]
    assert RULE([*ill, parameter("head.weight", shape=(10, 64))]) == ()


def test_training_and_audit_agree():
    """The same weights give the same finding, whether norms or standard deviations are known."""
    for factors in (LOUD, [1, 1, 1, 0.01, 1, 1], [1, 30, 1, 1, 1, 1]):
        (before,), (during,) = RULE(drawn(factors)), RULE(begun(plain(SHAPES, factors)))
        assert before.parameters == tuple(f"net.{name}" for name in during.parameters)
        assert before.value == pytest.approx(during.value)
        assert (before.limit, before.unit) == (during.limit, during.unit)


def test_in_a_real_network_the_remedy_is_one():
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 10))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    with torch.no_grad():
        model[6].weight.mul_(100)
    batch = (torch.randn(64, 32), torch.randint(10, (64,)))

    def found():
        report = audit_init(model, batch, functional.cross_entropy)
        return [f for f in report.findings if f.rule == "layer_scale_outlier"]

    (finding,) = found()
    assert (finding.severity, finding.parameters) == ("warning", ("6.weight",))
    eval(finding.try_first.partition(": ")[2].removesuffix("."), {"nn": nn, "model": model})
    assert found() == []
