"""First losses that are not those of a guess: silent cases first, then networks that have them."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_weightwatch.audit import audit_init
from lightning_weightwatch.evidence import Initial, InputScale, Layer, LossCall, Signal
from lightning_weightwatch.rules import Rule
from lightning_weightwatch.rules.bad_initial_loss import RULE, check
from tests.helpers.first_batch import NAN, plain, told
from tests.helpers.verdicts import parameter

GUESS = math.log(10)
CLASSES = LossCall("cross_entropy", "head.weight", classes=10, chance=2.2)
RARE = LossCall("cross_entropy", "head.weight", classes=2, chance=0.056, same=0.99)
TARGETS = LossCall("mse_loss", "head.weight", chance=81.0, target_mean=22.5, target_std=9.0)
CENTRED = LossCall("mse_loss", "head.weight", chance=81.0, target_mean=0.0, target_std=9.0)


def begins(loss, *calls, rms=9.0, came_in=1.0, spread=9.0, kind="linear", inputs=(), parameters=(), **known):
    head = Layer("head.weight", kind, 10, 128, rms=rms, spread=spread, came_in=came_in, feeds_loss=True)
    return Initial(list(parameters), Signal((head,), loss=loss, losses=calls, inputs=inputs), **known)


def numbers(std, name="batch[0]"):
    return InputScale(name, 64, 0.0, std, abs_max=4 * std, largest_std=std, spread=1.0, offset=0.0)


SILENT = [
    pytest.param([], id="no parameters"),
    pytest.param(Initial([]), id="no batch was sent"),
    pytest.param(begins(GUESS, CLASSES), id="a guess"),
    pytest.param(begins(2.99 * GUESS, CLASSES), id="somewhat sure of itself"),
    pytest.param(begins(0.51 * 2.2, CLASSES), id="somewhat below what frequencies allow"),
    pytest.param(begins(0.06, RARE), id="a bias that knows the frequencies"),
    pytest.param(begins(NAN, CLASSES), id="the loss is unknown"),
    pytest.param(begins(float("inf"), CLASSES), id="a loss that is broken"),
    pytest.param(begins(900.0), id="a loss of the user's own"),
    pytest.param(begins(900.0, CLASSES, CENTRED), id="two losses that are added up somehow"),
    pytest.param(begins(900.0, LossCall("cross_entropy", "head.weight", classes=10)), id="a sum, or weighted classes"),
    pytest.param(begins(900.0, LossCall("l1_loss", "head.weight")), id="a loss of which no guess is known"),
    pytest.param(begins(0.0, LossCall("cross_entropy", classes=10, chance=0.0)), id="one class in the batch"),
    pytest.param(begins(40 * GUESS, CLASSES, rms=0.9), id="outputs too small for that: something else is in it"),
    pytest.param(begins(90.0, CENTRED), id="a regression"),
    pytest.param(begins(8100.0, CENTRED), id="a regression far off, not by the mean of its targets"),
    pytest.param(begins(2.9 * 81, TARGETS), id="a regression whose bias is near the mean"),
    pytest.param(begins(0.1, CLASSES, pretrained=True), id="trained, and good at it"),
    pytest.param(begins(40 * GUESS, CLASSES, resumed=True), id="a checkpoint was loaded"),
]


@pytest.mark.parametrize("initial", SILENT)
def test_silent(initial):
    assert RULE(initial) == ()


@pytest.mark.parametrize(
    ("times", "severity", "limit"),
    [(3.01, "info", 3.0), (9.99, "info", 3.0), (10.01, "warning", 10.0), (900.0, "warning", 10.0)],
)
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_how_serious_it_is_depends_on_how_far_above_a_guess_it_begins(times, severity, limit, classes):
    call = LossCall("some_loss", "head.weight", classes=classes, chance=0.6)
    (finding,) = RULE(begins(times * math.log(max(classes, 2)), call))
    assert (finding.severity, finding.limit, finding.parameters) == (severity, limit, ("head.weight",))
    assert finding.value == pytest.approx(times)


def test_what_is_said():
    verdict = parameter("head.weight", shape=(10, 64))
    (finding,) = RULE(begins(31.0, CLASSES, parameters=[verdict]))
    assert str(finding) == (
        "WARNING at step 0: bad_initial_loss. The first cross_entropy is 31 where a guess has 2.3, 13.5 times as much "
        "(limit 10); the outputs of head.weight have a root mean square of 9. Try first: Begin the last layer smaller: "
        "nn.init.xavier_normal_(model.head.weight)."
    )


@pytest.mark.parametrize(
    ("known", "line"),
    [
        ({"spread": 9.0, "came_in": 9.0}, "nn.init.zeros_(model.head.weight)"),
        ({"spread": 9.0, "came_in": 2.9}, "nn.init.xavier_normal_(model.head.weight)"),
        ({"spread": 9.0, "came_in": NAN}, "nn.init.xavier_normal_(model.head.weight)"),
        ({"kind": "embedding"}, "nn.init.normal_(model.head.weight, std=0.12)"),
    ],
)
def test_the_line_depends_on_whether_the_last_layer_does_it(known, line):
    (finding,) = RULE(begins(31.0, CLASSES, parameters=[parameter("head.weight", shape=(10, 64))], **known))
    assert finding.try_first == f"Begin the last layer smaller: {line}."


def test_a_loss_that_no_layer_is_known_to_feed_has_no_place():
    (finding,) = RULE(begins(31.0, LossCall("cross_entropy", classes=10, chance=2.2)))
    assert (finding.severity, finding.parameters) == ("warning", ())
    assert finding.try_first == "Begin the last layer smaller, or at zero."


def test_raw_inputs_are_told_as_the_cause():
    (finding,) = RULE(begins(31.0, CLASSES, inputs=(numbers(1.0), numbers(80.0, "batch[1]"))))
    assert (finding.severity, finding.limit) == ("info", 3.0)
    assert finding.try_first.startswith("Normalise batch[1] (")
    (other,) = RULE(begins(31.0, CLASSES, inputs=(numbers(1.0),)))
    assert other.severity == "warning"


@pytest.mark.parametrize(("call", "least"), [(CLASSES, 2.2), (RARE, 0.056), (TARGETS, 81.0)])
def test_far_below_a_guess_is_a_note(call, least):
    assert RULE(begins(0.51 * least, call)) == ()
    (finding,) = RULE(begins(0.49 * least, call))
    assert (finding.severity, finding.limit, finding.value) == ("info", 0.5, pytest.approx(0.49))
    assert "reaches the network among its inputs" in finding.try_first


def test_raw_targets_are_a_note_with_the_bias_that_mends_it():
    bias = parameter("head.bias", kind="bias", shape=(1,))
    (finding,) = RULE(begins(22.5**2 + 81.0, TARGETS, parameters=[bias]))
    assert (finding.severity, finding.limit) == ("info", 3.0)
    assert finding.value == pytest.approx((22.5**2 + 81.0) / 81.0)
    assert finding.try_first.endswith(": nn.init.constant_(model.head.bias, 22.5).")
    (without,) = RULE(begins(22.5**2 + 81.0, TARGETS))
    assert without.try_first == "Standardise the targets, or start the last bias at their mean."


def test_raw_targets_are_not_blamed_for_what_outputs_do():
    """The mean of the targets must account for half of the loss."""
    assert len(RULE(begins(2 * 22.5**2 - 1, TARGETS))) == 1
    assert RULE(begins(2 * 22.5**2 + 1, TARGETS)) == ()


def test_limits_are_keywords():
    assert list(check(begins(31.0, CLASSES), times=20.0, note=20.0)) == []
    (finding,) = Rule("bad_initial_loss", check, limits={"times": 20.0})(begins(31.0, CLASSES))
    assert (finding.severity, finding.limit) == ("info", 3.0)
    assert list(check(begins(0.3, CLASSES), leak=0.1)) == []
    assert list(check(begins(22.5**2 + 81.0, TARGETS), offset=0.9)) == []


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(plain(3), id="PyTorch's default"),
        pytest.param(plain(8, gain=2**0.5), id="made for ReLU"),
        pytest.param(plain(8, nn.Tanh, gain=5 / 3), id="made for tanh"),
    ],
)
def test_networks_that_begin_like_a_guess(model):
    assert told("bad_initial_loss", model) == []


def test_a_network_that_is_sure_of_itself_and_the_line_that_mends_it():
    model = plain(3)
    nn.init.normal_(model[4].weight, std=100.0)
    (finding,) = told("bad_initial_loss", model)
    assert (finding.severity, finding.parameters) == ("warning", ("4.weight",))
    exec(finding.try_first.partition(": ")[2].rstrip("."), {"nn": nn, "model": model})
    assert told("bad_initial_loss", model) == []


def test_house_prices_and_the_bias_that_mends_it():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 1)), torch.randn(64, 13), torch.rand(64, 1)
    prices = y * 9 + 22.5

    def findings():
        return [f for f in audit_init(model, (x, prices), functional.mse_loss).findings if f.rule == "bad_initial_loss"]

    (finding,) = findings()
    exec(finding.try_first.partition(": ")[2].rstrip("."), {"nn": nn, "model": model})
    assert model[2].bias.item() == pytest.approx(prices.mean().item(), rel=1e-2)
    assert findings() == []


def test_a_sum_over_the_batch_is_no_first_loss_too_high():
    model, x = plain(3), torch.randn(128, 64)
    batch = (x, torch.randint(10, (128,)))
    report = audit_init(model, batch, lambda out, y: functional.cross_entropy(out, y, reduction="sum"))
    assert [f for f in report.findings if f.rule == "bad_initial_loss"] == []
    assert SimpleNamespace(**report.probe).loss > 100 * GUESS
