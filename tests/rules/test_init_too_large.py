"""Weights that make the signal grow: silent cases first, then networks that do and do not."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch.evidence import Initial, Layer, Signal
from lightning_weightwatch.rules import Rule
from lightning_weightwatch.rules.init_too_large import RULE, check
from tests.helpers.first_batch import NAN, passed, plain, told
from tests.helpers.verdicts import parameter

INF = float("inf")


def grows(decades, layers=9):
    """Return sizes that grow by so many powers of ten along a straight line."""
    return [float(size) for size in 10.0 ** np.linspace(0.0, decades, layers)]


def broken(came_in, *, nonfinite=3, parameters=(), **known):
    """Return a batch that broke in the second of three layers."""
    layers = (
        Layer("a.weight", spread=1.0, came_in=1.0),
        Layer("b.weight", spread=NAN, came_in=came_in, nonfinite=nonfinite, activation="relu"),
        Layer("c.weight", spread=NAN, came_in=NAN, nonfinite=9),
    )
    return Initial(list(parameters), Signal(layers), **known)


LEVEL = grows(0.0)
SILENT = [
    pytest.param([], id="no parameters"),
    pytest.param(Initial([]), id="no batch was sent"),
    pytest.param(passed(LEVEL, LEVEL), id="a level course"),
    pytest.param(passed(grows(1.99), grows(-1.99)), id="just below what is noted"),
    pytest.param(passed(grows(-6.0), grows(6.0)), id="fading is another illness"),
    pytest.param(passed(grows(2.9, layers=3)), id="three layers are no course"),
    pytest.param(passed([NAN] * 9, [NAN] * 9), id="nothing was measured"),
    pytest.param(passed([1.0] * 8 + [900.0]), id="one odd layer"),
    pytest.param(passed([1.0] * 4 + [900.0] * 5), id="another level from one layer on"),
    pytest.param(passed(LEVEL, grows(-6.0), [1.0] * 9), id="gradients that grow behind normalisation"),
    pytest.param(passed(LEVEL, grows(-6.0), [NAN] * 9), id="gradients that grow, and it is not known why"),
    pytest.param(passed(grows(9.0), resumed=True), id="a checkpoint was loaded"),
    pytest.param(broken(NAN), id="a layer whose input is broken, or not known"),
    pytest.param(broken(1.0, resumed=True), id="a checkpoint breaks"),
    pytest.param(broken(1.0, parameters=[parameter("b.weight", nonfinite=1)]), id="its weights are broken"),
    pytest.param(broken(1.0, parameters=[parameter("b.bias", kind="bias", nonfinite=1)]), id="its biases are broken"),
]


@pytest.mark.parametrize("initial", SILENT)
def test_silent(initial):
    assert RULE(initial) == ()


@pytest.mark.parametrize(
    ("decades", "severity", "limit"), [(2.01, "info", 2.0), (2.99, "info", 2.0), (3.01, "warning", 3.0)]
)
@pytest.mark.parametrize("optimizers", [(), ("SGD",), ("Adam",)])
def test_how_serious_it_is_depends_on_what_is_gained(decades, severity, limit, optimizers):
    own = [10.0 ** (1 - decades / 8)] * 9  # each layer multiplies by ten to the eighth part of it
    back = passed([10.0] * 9, grows(-decades), own, optimizers=optimizers)
    for initial, way in ((passed(grows(decades), optimizers=optimizers), "forwards"), (back, "backwards")):
        (finding,) = RULE(initial)
        assert (finding.severity, finding.limit) == (severity, limit)
        assert (finding.value, finding.unit) == (pytest.approx(decades), f"powers of ten gained {way}")


def test_what_is_said():
    (finding,) = RULE(passed(grows(4.0, layers=5), activation="tanh"))
    assert str(finding) == (
        "WARNING at step 0: init_too_large. What tells samples apart in the layers' outputs grows by 4.0 powers of ten "
        "(limit 3) on its way through 5 layers at the start: 1.0e+00 in 0.weight, 1.0e+04 in 4.weight. Too large: "
        "1.weight, 2.weight, 3.weight, 4.weight. Try first: Draw these layers for what follows them: "
        "nn.init.xavier_normal_(model[1].weight, gain=5 / 3)."
    )


def test_the_layers_that_gain_most_are_named():
    own = [1.0] * 10 + [10.0] * 6 + [1.0] * 4
    (finding,) = RULE(passed(list(np.cumprod(own))))
    assert finding.parameters == tuple(f"{i}.weight" for i in range(10, 16))


def test_outputs_that_grow_count_whoever_does_it():
    """Branches of the right size add up, where nothing normalises their sum."""
    (finding,) = RULE(passed(grows(4.0), came_in=grows(4.0)))
    assert (finding.severity, len(finding.parameters)) == ("warning", 9)
    assert "begin the last layer of each skipped branch at zero" in finding.try_first


def test_one_layer_that_does_it_alone_is_told_from_a_thousand_on():
    (finding,) = RULE(passed([1.0, 1.0, 1001.0, 1001.0]))
    assert (finding.severity, finding.parameters, finding.limit) == ("warning", ("2.weight",), 3.0)
    assert finding.value == pytest.approx(np.log10(1001.0))
    assert finding.saw.startswith("2.weight makes what comes in 1.0e+03 times as large at the start, 3.0 powers of ten")
    (small,) = RULE(passed([1.0, 1001.0]))  # also where there are too few layers for a course
    assert small.parameters == ("1.weight",)


def test_of_a_course_that_is_a_note_and_a_layer_that_is_not_the_layer_is_told():
    sizes = grows(2.5)
    (finding,) = RULE(passed([*sizes[:5], *(2000 * size for size in sizes[5:])]))
    assert (finding.severity, finding.parameters) == ("warning", ("5.weight",))


@pytest.mark.parametrize("came_in", [1.0, INF])
def test_the_first_layer_that_breaks_is_named(came_in):
    """Inf is how far apart large numbers lie; where numbers are broken already it is NaN."""
    (finding,) = RULE(broken(came_in))
    assert (finding.severity, finding.parameters, finding.value) == ("critical", ("b.weight",), 3.0)
    assert finding.saw == (
        "3 elements of what b.weight gives for the first batch are NaN or Inf (limit 0); what came in is not."
    )
    (one,) = RULE(broken(1.0, nonfinite=1))
    assert one.saw.startswith("1 element of")


def test_limits_are_keywords():
    assert list(check(passed(grows(4.0)), decades=4.5, note=4.5)) == []
    (finding,) = Rule("init_too_large", check, limits={"decades": 4.5})(passed(grows(4.0)))
    assert (finding.severity, finding.limit) == ("info", 2.0)


# --- networks ---------------------------------------------------------------------------------------------------------


class Adding(nn.Module):
    """Branches drawn for ReLU that are added up."""

    def __init__(self, *, begins_at_zero, blocks=24):
        super().__init__()
        self.first, self.last = plain(2, gain=2**0.5)[0], nn.Linear(64, 10)
        self.branches = nn.ModuleList(plain(3, gain=2**0.5)[:3] for _ in range(blocks))
        if begins_at_zero:
            for branch in self.branches:
                nn.init.zeros_(branch[2].weight)

    def forward(self, x):
        x = self.first(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.last(x)


def normalised(depth, norm, gain):
    net = plain(depth, gain=gain)
    return nn.Sequential(*[p for part in net for p in ([norm(64)] if isinstance(part, nn.ReLU) else []) + [part]])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(plain(24), id="PyTorch's default, deep"),
        pytest.param(plain(24, gain=2**0.5), id="made for ReLU, deep"),
        pytest.param(plain(12, nn.Tanh, gain=5 / 3), id="made for tanh"),
        pytest.param(normalised(50, nn.BatchNorm1d, 2**0.5), id="batch norm, whose gradients grow by 4 decades"),
        pytest.param(normalised(20, nn.LayerNorm, 3.0), id="large weights, layer norm"),
        pytest.param(Adding(begins_at_zero=True), id="branches that begin at zero"),
    ],
)
def test_networks_that_keep_their_size(model):
    assert told("init_too_large", model) == []


@pytest.mark.parametrize(
    ("model", "way"),
    [
        pytest.param(plain(16, gain=3.0), "", id="a gain of 3"),
        pytest.param(plain(16, nn.Tanh, gain=8.0), "backwards", id="outputs of tanh cannot grow, gradients do"),
        pytest.param(Adding(begins_at_zero=False), "", id="branches that add up"),
    ],
)
def test_networks_that_explode(model, way):
    (finding,) = told("init_too_large", model)
    assert finding.severity == "warning"
    assert finding.unit.endswith(way)


def test_a_network_that_overflows():
    model = plain(6).half()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(100)
    (finding,) = told("init_too_large", model, torch.randn(64, 64).half())
    torch.manual_seed(1)
    x = torch.randn(64, 64).half()
    first = next(i for i, part in enumerate(model) if not (x := part(x)).isfinite().all())
    assert (finding.severity, finding.parameters) == ("critical", (f"{first}.weight",))
