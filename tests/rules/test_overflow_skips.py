"""A GradScaler that never finds its scale: silent cases first."""

import pytest

from lightning_weightwatch.rules.non_finite_gradients import RULE as GRADIENTS
from lightning_weightwatch.rules.overflow_skips import RULE, check
from tests.helpers.runs import INF, MISSING, layers, run


def struck(*steps, row=(1.0, INF, INF, 1.0)):
    return lambda t: row if t in steps else (1.0, 1.0, 1.0, 1.0)


def amp(norms, **options):
    return run(norms, scaled_loss=True, **options)


SILENT = [
    pytest.param(amp(struck()), id="all finite"),
    pytest.param(amp(struck(*range(7))), id="it looks for its scale"),
    pytest.param(amp(struck(*range(20))), id="20 skips in a row"),
    pytest.param(amp(struck(*range(0, 60, 2))), id="every other step, none in a row"),
    pytest.param(amp(struck(*range(20), *range(21, 41))), id="20 skips twice"),
    pytest.param(amp(lambda t: [MISSING] * 3), id="frozen"),
    pytest.param(run(struck(*range(60))), id="without a GradScaler the steps are taken: another illness"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


def test_21_skips_in_a_row_are_told_from_their_first_though_others_came_before():
    (finding,) = RULE(amp(struck(0, 1, 2, *range(30, 51))))
    assert (finding.severity, finding.parameters) == ("critical", layers(1, 2))
    assert (finding.since_step, finding.step, finding.value, finding.limit) == (30, 59, 21.0, 20.0)


def test_names_what_was_struck_in_every_one_of_the_steps():
    (finding,) = RULE(amp(lambda t: [INF if t % 3 else 1.0, INF, 1.0]))
    assert finding.parameters == layers(1)


def test_names_what_was_struck_first_where_none_was_struck_always():
    (finding,) = RULE(amp(lambda t: [INF, 1.0] if t % 2 == 0 else [1.0, INF]))
    assert finding.parameters == layers(0)


def test_the_gradients_rule_leaves_it_alone():
    assert GRADIENTS(amp(struck(*range(60)))) == ()


def test_the_limit_can_be_moved():
    assert list(check(amp(struck(3, 4, 5)), skips=2))
    assert not list(check(amp(struck(3, 4, 5)), skips=3))
