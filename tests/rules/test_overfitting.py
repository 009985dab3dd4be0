"""A validation loss that rises while the training loss falls: silent cases first."""

import numpy as np
import pytest

from lightning_weightwatch.evidence import Evidence, Validation, Watched
from lightning_weightwatch.rules.overfitting import RULE

RNG = np.random.default_rng(0)


def falling(step):
    return 2.3 * 0.97**step


def trained(*validations, loss=falling, every=20, name="val_loss"):
    evidence = Evidence([Watched("fc", 1, True)])
    for step in range(every * len(validations)):
        evidence.add(step, [1.0], loss=loss(step))
        if (step + 1) % every == 0:
            evidence.add_reading(Validation(step, validations[step // every], name))
    return evidence


SICK = (1.8, 1.4, 1.2, 1.1, 1.2, 1.35, 1.5, 1.65)

SILENT = [
    pytest.param(trained(1.8, 1.4, 1.2, 1.1, 1.05, 1.0, 0.95, 0.9), id="both fall"),
    pytest.param(trained(1.8, 1.4, 1.2, 1.1, 1.1, 1.1, 1.1, 1.1), id="it rests"),
    pytest.param(trained(1.8, 1.4, 1.2, 1.1, 1.15, 1.18, 1.2, 1.2), id="it barely rises"),
    pytest.param(trained(1.8, 1.4, 1.2, 1.1, 1.2, 1.25, 1.3, 1.05), id="it comes back"),
    pytest.param(trained(1.8, 1.4, 1.2, 1.1, 1.05, 1.0, 1.2, 1.2), id="two validations"),
    pytest.param(trained(1.8, 1.4, 1.2, 0.6, 1.2, 1.15, 1.2, 1.2), id="one lucky validation"),
    pytest.param(trained(*np.exp(0.6 * RNG.normal(size=30))), id="noise, of few samples"),
    pytest.param(trained(*SICK, loss=lambda t: 2.3), id="the training loss does not fall"),
    pytest.param(trained(*SICK, loss=lambda t: 0.5 if t < 80 else 1.5), id="both rise: another illness"),
    pytest.param(trained(*SICK, loss=lambda t: None), id="the training loss is not known"),
    pytest.param(trained(*(v - 1.5 for v in SICK)), id="below zero"),
    pytest.param(trained(*(np.inf for _ in SICK)), id="not finite"),
    pytest.param(trained(1.0, 1.3, 1.5), id="three validations"),
    pytest.param(trained(), id="none"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_a_loss_that_rises_from_its_best():
    (finding,) = RULE(trained(*SICK))
    assert (finding.severity, finding.since_step, finding.step, finding.parameters) == ("warning", 79, 159, ())
    assert finding.value == pytest.approx(1.35 / 1.1)
    assert finding.limit == 1.1
    assert "val_loss rose from its best of 1.1 at step 79 to 1.35" in finding.saw


@pytest.mark.parametrize(("above", "told"), [(1.09, False), (1.11, True)])
def test_a_tenth_above_the_best_and_its_neighbours(above, told):
    evidence = trained(2.0, 1.0, 1.0, 1.0, 1.0, above, above, above)
    assert bool(RULE(evidence)) is told


def test_from_the_first_validation_on():
    (finding,) = RULE(trained(1.0, 1.2, 1.4, 1.6, 1.8))
    assert (finding.severity, finding.since_step) == ("warning", 19)


@pytest.mark.parametrize(("best", "severity"), [(0.3, "info"), (0.9, "warning")])
def test_a_tenth_of_what_was_gained_is_worth_acting_on(best, severity):
    """From 2.3 to 0.3 it had gained 2.0, and lost 0.15 of that; from 2.3 to 0.9 it had gained 1.4, and lost 0.45."""
    steady = trained(2.3, best, best, best, best, 1.5 * best, 1.5 * best, 1.5 * best)
    assert [f.severity for f in RULE(steady)] == [severity]


def test_noise_raises_what_it_takes():
    """Neighbours differ by 0.2 now: half of their usual change counts as noise of one."""
    quiet = (2.0, 1.0, 1.02, 1.0, 1.02, 1.25, 1.25, 1.25)
    noisy = (2.0, 1.0, 1.2, 1.0, 1.2, 1.0, 1.25, 1.45, 1.25)
    assert RULE(trained(*quiet))
    assert RULE(trained(*noisy)) == ()


def test_another_name_is_another_loss():
    evidence = trained(*SICK)
    evidence.add_reading(Validation(160, 3.0, "test_loss"))
    assert RULE(evidence) == ()


def test_a_validation_that_broke_is_left_out():
    evidence = trained(*SICK, np.nan)
    assert RULE(evidence)[0].since_step == 79
