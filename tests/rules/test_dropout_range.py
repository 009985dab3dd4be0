"""Dropout that takes away too much: silent cases first."""

import pytest

from lightning_weightwatch.evidence import Listened, Setup
from lightning_weightwatch.rules.dropout_range import RULE
from tests.helpers.chains import chain


def run(modules, calls=()):
    evidence = chain("fc", steps=10)
    evidence.setup = Setup(dropout=modules)
    if calls:
        evidence.add_reading(Listened(0, dropout=tuple(calls)))
    return evidence


SILENT = [
    pytest.param(run({}), id="no dropout"),
    pytest.param(run({"a": 0.5, "b": 0.79}), id="half, and somewhat more"),
    pytest.param(run({}, [0.1, 0.5]), id="calls that take away half at most"),
]


@pytest.mark.parametrize("evidence", SILENT)
def test_silent(evidence):
    assert RULE(evidence) == ()


@pytest.mark.parametrize(
    ("p", "severity", "limit"),
    [(0.8, "warning", 0.8), (0.94, "warning", 0.8), (0.95, "critical", 0.95), (1.0, "critical", 0.95)],
)
def test_the_severity_follows_from_the_probability(p, severity, limit):
    (finding,) = RULE(run({"drop": p, "other": 0.1}))
    assert (finding.severity, finding.value, finding.limit, finding.since_step) == (severity, p, limit, 0)
    assert "drop" in finding.saw
    assert "other" not in finding.saw


def test_a_call_is_told_where_no_module_explains_it():
    (finding,) = RULE(run({"drop": 0.1}, [0.1, 0.9]))
    assert finding.saw.endswith("in a call of F.dropout.")
    (finding,) = RULE(run({"drop": 0.9}, [0.9]))  # a module's own call
    assert finding.saw.endswith("in drop.")


def test_it_needs_no_step():
    evidence = chain("fc", steps=0)
    evidence.setup = Setup(dropout={"": 1.0})
    (finding,) = RULE(evidence)
    assert (finding.step, finding.since_step) == (0, 0)
    assert "the module" in finding.saw
