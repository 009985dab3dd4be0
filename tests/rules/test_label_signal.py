"""Targets that say nothing about the inputs: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Evidence, Listened, LossCall, Setup, Snapshot, Watched
from lightning_weightwatch.rules.label_signal import RULE

NOISE = np.random.default_rng(0).normal(size=2000)
LN10 = float(np.log(10))
MANY = LossCall("cross_entropy", classes=10, chance=LN10, same=0.2, target_least=0, target_greatest=9)


def one_class(target, *, classes=10):
    function = "cross_entropy" if classes > 1 else "binary_cross_entropy_with_logits"
    return LossCall(function, classes=classes, chance=0.0, same=1.0, target_least=target, target_greatest=target)


def one_number(target):
    return LossCall(
        "mse_loss", chance=0.0, target_mean=target, target_std=0.0, target_least=target, target_greatest=target
    )


def stuck(step):
    return LN10 + 0.02 * NOISE[step]


def at_once(step):
    return 2.3 * 0.9**step + 0.0001


def trained(call, loss=stuck, *, steps=120, ratio=0.01, epoch=40):
    """Return a run in which every tenth forward pass is listened to; ``call`` may depend on the step."""
    evidence = Evidence([Watched("fc0", 1, True), Watched("fc1", 1, True)])
    for step in range(steps):
        evidence.add(step, [1.0, 1.0], loss=loss(step), batch=step % epoch)
        if step % 10 == 0:
            calls = call(step) if callable(call) else call
            calls = calls if isinstance(calls, tuple) else (calls,)
            evidence.add_reading(Listened(step, losses=calls))
            evidence.add_snapshot(Snapshot(step, ("fc0", "fc1"), {"update_ratio": np.full(2, ratio)}))
    return evidence


def shuffled_samples(step):
    return one_class(int(step * 7.3) % 10)


SILENT = [
    pytest.param(trained(MANY, at_once), id="it learns"),
    pytest.param(trained(MANY, lambda t: 2.25 + 0.02 * NOISE[t]), id="clearly better than chance"),
    pytest.param(trained(MANY, ratio=1e-3), id="it has hardly moved: a small learning rate"),
    pytest.param(trained(MANY, ratio=0.2), id="huge steps: another illness"),
    pytest.param(trained(MANY, epoch=1000), id="no sample was seen twice"),
    pytest.param(trained(MANY, steps=80), id="too short to tell"),
    pytest.param(trained(one_class(4), steps=20), id="two passes"),
    pytest.param(trained(shuffled_samples, lambda t: 2.3 * np.exp(NOISE[t])), id="batches of one sample"),
    pytest.param(trained((one_class(1, classes=1), one_class(0, classes=1))), id="real against made up"),
    pytest.param(trained((one_class(1, classes=1), MANY)), id="one of two losses"),
    pytest.param(trained(()), id="no loss function was heard"),
    pytest.param(Evidence([]), id="nothing was heard"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_opponents_have_one_target_each():
    evidence = trained(one_class(1, classes=1), at_once)
    evidence.setup = Setup(optimizers=("Adam", "Adam"))
    assert RULE(evidence) == ()


@pytest.mark.parametrize(
    ("call", "loss", "severity"),
    [
        (one_class(4), at_once, "warning"),
        (one_number(3.0), at_once, "warning"),
        (one_class(4), stuck, "info"),
        (one_class(0), at_once, "warning"),
        (one_class(0), lambda t: max(at_once(t), 0.1), "info"),
        (one_class(1, classes=1), lambda t: max(at_once(t), 0.1), "info"),
        (one_class(1, classes=1), at_once, "warning"),
        (one_number(0.0), at_once, "info"),
        (one_class(4), lambda t: 2.0 if t == 115 else at_once(t), "info"),
    ],
    ids=[
        "one class",
        "one number",
        "the loss does not show it",
        "the first class, and the loss vanishes",
        "the first of several candidates is right by design",
        "the better of two by design",
        "one logit, and the loss vanishes",
        "a remainder that is to be zero",
        "a sample that had another target",
    ],
)
def test_one_target(call, loss, severity):
    (finding,) = RULE(trained(call, loss))
    assert (finding.severity, finding.since_step, finding.step, finding.parameters) == (severity, 0, 119, ())
    assert (finding.value, finding.limit) == (12.0, 3.0)


def test_three_passes_are_enough():
    (finding,) = RULE(trained(one_class(4), steps=30))
    assert finding.value == 3.0
    assert "every target was 4" in finding.saw


def in_order(step):
    return one_class(step % 80 // 10)


def along(step):
    return 0.2 + 4 * (1 - step % 10 / 10) + 0.01 * NOISE[step] ** 2


def test_sorted_data_hold_one_class_in_each_batch():
    (finding,) = RULE(trained(in_order, along, steps=80, epoch=80))
    assert (finding.severity, finding.since_step, finding.value) == ("warning", 0, 8.0)
    assert "the data are sorted" in finding.saw


def test_the_order_is_that_of_the_epoch():
    assert RULE(trained(in_order, along, steps=200, epoch=80))
    assert RULE(trained(in_order, along, steps=200, epoch=70)) == ()


def test_sorted_data_are_known_by_a_loss_that_goes_along():
    assert RULE(trained(in_order, lambda t: 2.3 * np.exp(NOISE[t]), steps=80, epoch=80)) == ()


@pytest.mark.parametrize("steps", [40, 50])
def test_five_passes_make_an_order(steps):
    assert bool(RULE(trained(in_order, along, steps=steps, epoch=80))) is (steps == 50)


def test_labels_that_have_nothing_to_do_with_the_input():
    (finding,) = RULE(trained(MANY))
    assert (finding.severity, finding.since_step, finding.step, finding.parameters) == ("warning", 0, 119, ())
    assert finding.value == pytest.approx(120 * 0.01)  # steps times update over weight
    assert finding.limit == 0.4
    assert "labels may be shuffled" in finding.saw


def test_a_quarter_of_the_matrices_may_stand_still():
    evidence = trained(MANY)
    for i, snapshot in enumerate(evidence.snapshots):
        evidence.snapshots[i] = Snapshot(snapshot.step, snapshot.parameters, {"update_ratio": np.array([0.01, 1e-9])})
    assert RULE(evidence) == ()


def test_numbers_that_have_nothing_to_do_with_the_input():
    call = LossCall("mse_loss", chance=4.0, target_mean=1.0, target_std=2.0, target_least=-5, target_greatest=7)
    assert RULE(trained(call, lambda t: 4.0 + 0.3 * NOISE[t]))
    assert RULE(trained(call, lambda t: 3.5 + 0.3 * NOISE[t])) == ()
