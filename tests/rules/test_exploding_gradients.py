"""Gradients that grow until a step destroys what was learnt: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Setup, Snapshot
from lightning_weightwatch.rules.exploding_gradients import RULE
from tests.helpers.chains import chain
from tests.helpers.runs import INF, MISSING, STUCK, falling, layers, rising, run

LEVEL = [0.3, 0.5, 0.2, 0.4, 0.3, 0.6]
STEEP = [1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3]


def converged_then(t, bad, back=0):
    """Return the gradients of a run that converged and meets something bad at step 40."""
    return [bad if 40 <= t <= 40 + back else 1e-4 if t > 10 else 1.0] * 3


def recovered(t):
    return 2.3 if t < 5 or t == 40 else 0.01


SILENT = [
    pytest.param(run(lambda t: LEVEL), id="level"),
    pytest.param(run(lambda t: LEVEL, loss=rising), id="the loss rises, gradients do not"),
    pytest.param(run(lambda t: [10 ** (t / 10)] * 3, loss=falling), id="grows while the loss falls"),
    pytest.param(run(lambda t: [1e6] * 3, loss=falling), id="a summed loss that falls"),
    pytest.param(run(lambda t: STEEP, loss=falling), id="a steep profile while the loss falls"),
    pytest.param(run(lambda t: converged_then(t, 1.0), loss=recovered), id="one bad batch in a converged run"),
    pytest.param(run(lambda t: [1e6] * 3 if t == 40 else LEVEL[:3]), id="one bad batch in a run that is stuck"),
    pytest.param(run(lambda t: [1e6] * 3 if 55 <= t <= 56 else LEVEL[:3], steps=58), id="two bad batches at the end"),
    pytest.param(run(lambda t: [0.1 + t / 60] * 3), id="learning rate warm-up, one decade"),
    pytest.param(run(lambda t: [225.0] * 3, loss=lambda t: 1e5), id="390 at the start: targets in large units"),
    pytest.param(run(lambda t: [3e4] * 3, loss=lambda t: 1e10), id="targets in huge units, loss 1e10"),
    pytest.param(run(lambda t: [1e6] * 3 if t % 3 else [1.0] * 3), id="now and then above the level"),
    pytest.param(run(lambda t: [0.0] * 3 if t < 10 else [1.0] * 3), id="zero at first"),
    pytest.param(run(lambda t: [MISSING, 300.0] if t % 2 else [1.0, MISSING]), id="GAN: two scales, turn by turn"),
    pytest.param(run(lambda t: [INF] * 3 if t < 8 else LEVEL[:3], scaled_loss=True), id="AMP looks for its scale"),
    pytest.param(run(lambda t: [INF] * 3 if t > 20 else LEVEL[:3]), id="not finite is another illness"),
    pytest.param(run(lambda t: [1e9] * 3, steps=9), id="too few steps to tell"),
    pytest.param(run(lambda t: [1e3, 1e-3]), id="two layers make no profile"),
    *[
        pytest.param(
            run(lambda t, i=i: [1e3 if i == j else 1e-3 for j in range(6)]), id=f"one odd layer of six, at {i}"
        )
        for i in range(6)
    ],
    pytest.param(run(lambda t: STEEP[::-1]), id="fading towards the first layer is another illness"),
    pytest.param(run(lambda t: [1e5, *LEVEL], matrices=[False] + [True] * 6, steps=9), id="an embedding"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_growth_is_told_from_the_step_at_which_it_passed_the_limit():
    def norms(t):
        return [0.1, 1.0, 1.0] if t < 30 else [0.1, 1.0, 10 ** ((t - 29) / 4)]

    (finding,) = RULE(run(norms, steps=50, loss=rising))
    assert (finding.severity, finding.parameters) == ("critical", layers(2))
    assert finding.unit == "decades above the calmest steps"
    # The calm norm is sqrt(2.01); a hundred times that is 10 ** 2.15, passed nine steps after step 29.
    assert (finding.since_step, finding.step) == (38, 49)
    assert finding.value == pytest.approx(18 / 4 - 0.15, abs=0.01)


def test_a_plateau_that_is_a_hundred_times_higher_is_growth():
    (finding,) = RULE(run(lambda t: [200.0 if t >= 30 else 1.0], loss=lambda t: 2.3 if t < 30 else 9.0))
    assert finding.since_step == 30


@pytest.mark.parametrize("loss", [lambda t: 2.3, lambda t: INF if t > 40 else 2.3, rising], ids=["flat", "inf", "up"])
def test_growth_needs_a_loss_no_lower_than_at_the_start(loss):
    norms = lambda t: [1.0 if t < 40 else 1e3]  # noqa: E731
    assert RULE(run(norms, loss=loss))[0].severity == "critical"
    assert RULE(run(norms, loss=lambda t: 2.3 if t < 5 else 2.2)) == ()


def test_large_from_the_first_step_names_the_layers_that_make_the_norm():
    (finding,) = RULE(run(lambda t: [1e9, 1.0, 2e9, 1.0], steps=10))
    assert (finding.severity, finding.parameters) == ("critical", layers(0, 2))
    assert (finding.since_step, finding.step, finding.limit) == (0, 9, 1e4)
    assert finding.value == pytest.approx(5**0.5 * 1e9)


def test_a_steep_profile_names_the_first_layers():
    (finding,) = RULE(run(lambda t: STEEP, steps=50))
    assert (finding.severity, finding.parameters) == ("warning", layers(0, 1))
    assert (finding.since_step, finding.step) == (0, 49)
    assert finding.value == pytest.approx(5.0)


@pytest.mark.parametrize(
    "profile", [[1.0] * 3 + [1e-6] * 3, [1e-2] * 5 + [1e-6] * 5, [1.0, 1e-4, 1e-4, 1e-4, 1e-4]], ids=str
)
def test_two_levels_are_not_told_as_a_trend(profile):
    """Two healthy networks side by side were told as one whose gradients fade: R² of a step is 0.75."""
    assert RULE(run(lambda t: profile)) == ()


def test_an_unknown_loss_is_not_said_not_to_fall():
    (finding,) = RULE(run(lambda t: [1e9], loss=lambda t: None))
    assert "loss" not in finding.saw


def test_growth_without_a_known_loss_is_told_at_twice_the_decades():
    """It was never told."""
    grown = lambda decades: RULE(run(lambda t: [10.0 ** (decades * (t > 40))], loss=lambda t: None))  # noqa: E731
    assert grown(3.9) == ()
    assert grown(4.1)[0].since_step == 41


def test_a_long_illness_is_dated_from_its_beginning():
    (finding,) = RULE(run(lambda t: [1e9 if t >= 20 else 1.0]))
    assert finding.since_step == 20


def test_only_the_worst_form_is_told():
    (finding,) = RULE(run(lambda t: [1e6 * 10 ** (t / 10), *STEEP], loss=rising))
    assert finding.unit == "decades above the calmest steps"


def test_an_unknown_loss_does_not_hide_a_norm_of_a_billion():
    (finding,) = RULE(run(lambda t: [1e9], loss=lambda t: None))
    assert finding.severity == "critical"


def after(norms, first, **options):
    """Return a run of which the first full statistics are known."""
    evidence = run(norms, **options)
    evidence.add_snapshot(Snapshot(0, ("fc0",), {"grad_norm": np.array([first])}))
    return evidence


def test_a_run_that_converged_and_comes_back_to_where_it_began_does_not_explode():
    """A policy that always did the same had gradients of 1e-5; then a reward surprised it."""
    norms = lambda t: [1.0 if t > 40 else 1e-5]  # noqa: E731
    assert RULE(after(norms, 0.11, loss=STUCK)) == ()
    assert RULE(after(norms, 0.09, loss=STUCK))[0].severity == "critical"


@pytest.mark.parametrize("optimizers", [("Adam",), ("Adam", "Adam")])
def test_opponents_must_grow_by_twice_the_decades(optimizers):
    def told(decades):
        evidence = run(lambda t: [10.0 ** (decades * (t > 40))])
        evidence.setup = Setup(optimizers=optimizers)
        return bool(RULE(evidence))

    assert (told(3.9), told(4.1)) == (len(optimizers) == 1, True)


def test_large_until_they_broke_is_dated_from_when_they_were_large():
    """The loss was not a number from the third step on, and nothing was told but that."""
    (finding,) = RULE(run(lambda t: [INF if t > 2 else 1e9], steps=10, loss=lambda t: INF if t > 2 else 50.0))
    assert (finding.severity, finding.since_step, finding.value) == ("critical", 0, 1e9)


def test_what_breaks_out_of_nothing_did_not_explode():
    assert RULE(run(lambda t: [INF if t > 2 else 1.0], steps=30, loss=lambda t: INF if t > 2 else 50.0)) == ()


def biased(gradient, *, loss=STUCK, kind="linear"):
    norm = lambda step, name: 1e-3 * gradient(int(name[1]) / 6) if "bias" in name else 0.1  # noqa: E731
    return chain(*[f"l{i}" for i in range(7)], steps=20, norm=norm, loss=loss, kinds=[kind] * 7)


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(biased(lambda depth: 10 ** (2.9 * (1 - depth))), id="2.9 decades"),
        pytest.param(biased(lambda depth: 10 ** (6 * (1 - depth)), loss=falling), id="the loss falls"),
        pytest.param(biased(lambda depth: 10 ** (6 * (1 - depth)), loss=lambda t: None), id="the loss is unknown"),
        pytest.param(biased(lambda depth: 10 ** (6 * (1 - depth)), kind="convolution"), id="sums over positions"),
        pytest.param(biased(lambda depth: 10 ** (-6 * (1 - depth))), id="fading is another illness"),
    ],
)
def test_silent_on_biases(evidence):
    assert RULE(evidence) == ()


def test_biases_tell_what_the_matrices_hide():
    (finding,) = RULE(biased(lambda depth: 10 ** (5.9 * (1 - depth))))
    assert (finding.severity, finding.value) == ("warning", pytest.approx(5.9))
    assert finding.parameters == ("l0.weight", "l1.weight", "l2.weight")  # nearly a decade for each layer
