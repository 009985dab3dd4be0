"""Whether a training learns, as far as its loss can tell."""

import pytest

from lightning_weightwatch.evidence import LossCall, Setup
from lightning_weightwatch.rules._learning import eased, learns
from tests.helpers.chains import chain, hear
from tests.helpers.runs import INF, STUCK, falling, rising


def run(loss=STUCK, *, steps=60, chance=None, optimizers=("SGD",), **options):
    evidence = chain("fc", steps=steps, loss=loss, **options)
    evidence.setup = Setup(optimizers=optimizers)
    if chance is not None:
        hear(evidence, 0, loss=LossCall("cross_entropy", "fc.weight", classes=10, chance=chance))
    return evidence


def then(later, *, after=9, first=2.3):
    return lambda step: first if step < after else later


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(run(falling), id="it falls"),
        pytest.param(run(then(2.0)), id="below nine tenths"),
        pytest.param(run(then(-1.0)), id="below zero by now"),
        pytest.param(run(then(1.0), chance=2.3), id="below chance"),
        pytest.param(run(then(0.4, first=0.4), chance=2.3), id="far below chance from the start: it goes on"),
        pytest.param(run(then(20.0, first=300.0), chance=2.3), id="on its way from a large start"),
        pytest.param(run(lambda t: 300.0 * 0.95**t, steps=88, chance=4.0), id="passing chance"),
        pytest.param(run(lambda t: 1e6 * 0.95**t, steps=120, chance=2.3), id="after long, still falling fast"),
    ],
)
def test_it_does(evidence):
    assert learns(evidence) is True


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(run(), id="flat"),
        pytest.param(run(rising), id="rising"),
        pytest.param(run(then(INF)), id="not a number any more"),
        pytest.param(run(then(INF), chance=99.0), id="not a number any more, whatever chance is"),
        pytest.param(run(then(2.1)), id="above nine tenths"),
        pytest.param(run(then(2.35, first=50.0), chance=2.3), id="at rest at chance, from a large start"),
        pytest.param(run(then(9.0, first=50.0), steps=120, chance=2.3), id="at rest above chance, after long"),
        pytest.param(run(STUCK, rates=lambda t: 0.1), id="the learning rate is constant"),
        pytest.param(run(rising, rates=lambda t: t / 10), id="rising while the learning rate rises"),
    ],
)
def test_it_does_not(evidence):
    assert learns(evidence) is False


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(run(lambda t: None), id="unknown"),
        pytest.param(run(lambda t: -1.0 + t / 100), id="it began below zero"),
        pytest.param(run(steps=4), id="four steps"),
        pytest.param(run(falling, optimizers=("Adam", "Adam")), id="opponents"),
        pytest.param(run(rates=lambda t: t / 1000), id="the learning rate still rises"),
        pytest.param(run(lambda t: 2.3 if t % 7 else -0.1), id="below zero now and then: rewards"),
    ],
)
def test_it_cannot_tell(evidence):
    assert learns(evidence) is None


def test_how_far_it_must_have_fallen_can_be_asked():
    assert learns(run(then(2.0)), falling=0.8) is False
    assert learns(run(then(1.8)), falling=0.8) is True


def test_a_severity_is_eased_by_what_is_learnt():
    assert [eased("critical", learning) for learning in (True, None, False)] == ["info", "warning", "critical"]
    assert [eased("warning", learning) for learning in (True, None, False)] == ["info", "warning", "warning"]
