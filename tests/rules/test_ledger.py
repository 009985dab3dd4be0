"""What is news, and what came first."""

import json

import pytest

from lightning_weightwatch.rules import Finding, Ledger, first_cause


def finding(severity="warning", n=1, rule="cold_feet", unit="°C", since=0, step=9, start=0):
    return Finding(
        rule=rule,
        severity=severity,
        step=step,
        since_step=since,
        parameters=tuple(f"fc{i}" for i in range(start, start + n)),
        value=1.0,
        limit=2.0,
        unit=unit,
        saw="Cold.",
        try_first="Socks.",
    )


def told(*judgements, ledger=None):
    """Return how many findings of each judgement are told."""
    ledger = ledger or Ledger()
    return [len(ledger.news(findings)) for findings in judgements]


ILL, WELL = [finding()], []


@pytest.mark.parametrize(
    ("judgements", "news"),
    [
        pytest.param([ILL] * 4, [1, 0, 0, 0], id="once"),
        pytest.param([[finding("info")], ILL, [finding("critical")]], [1, 1, 1], id="again when worse"),
        pytest.param(
            [[finding("critical")], ILL, [finding("critical")]], [1, 0, 0], id="not when better, nor as before"
        ),
        pytest.param([[finding(n=n)] for n in (2, 3, 4, 7, 8)], [1, 0, 1, 0, 1], id="again when twice as wide"),
        pytest.param([[finding(n=n)] for n in (0, 1, 2)], [1, 0, 1], id="from nowhere in particular to two places"),
        pytest.param([ILL, *[WELL] * 5, [finding(step=59)]], [1, *[0] * 5, 1], id="again when it returns"),
        pytest.param(
            [ILL, *[WELL] * 5, [finding(step=58)]], [1, *[0] * 6], id="not after a few steps, however often judged"
        ),
        pytest.param([ILL, *[WELL] * 4, ILL], [1, *[0] * 4, 0], id="not after a short pause"),
        pytest.param([ILL, *[WELL] * 4, ILL, *[WELL] * 4, ILL], [1, *[0] * 10], id="pauses do not add up"),
        pytest.param([ILL, [finding(rule="hot_head")], ILL], [1, 1, 0], id="each rule for itself"),
        pytest.param([ILL, [finding(unit="K")], ILL], [1, 1, 0], id="each form of a rule for itself"),
        pytest.param([WELL, WELL], [0, 0], id="nothing to tell"),
    ],
)
def test_a_finding_is_told(judgements, news):
    assert told(*judgements) == news


def test_two_places_found_in_one_judgement_are_both_told():
    """Two findings of one rule and unit: the second was swallowed as told already."""
    both = [finding("critical"), finding("info", n=2)]
    assert told(both, both) == [2, 0]


def test_a_resumed_run_does_not_tell_again_what_the_first_told():
    ledger = Ledger()
    told([finding("critical")], *[WELL] * 3, ledger=ledger)
    state = json.loads(json.dumps(ledger.state_dict()))
    resumed = Ledger()
    resumed.load_state_dict(state)
    assert told([finding("critical")], ledger=resumed) == [0]
    resumed.load_state_dict(state)
    assert told(WELL, WELL, [finding("critical", step=59)], ledger=resumed) == [0, 0, 1]


def test_a_state_that_was_handed_out_does_not_change_any_more():
    ledger = Ledger()
    told(ILL, ledger=ledger)
    state = ledger.state_dict()
    before = json.dumps(state)
    told(WELL, ledger=ledger)
    assert json.dumps(state) == before


@pytest.mark.parametrize(
    ("findings", "first"),
    [
        ([], None),
        ([finding("info")], None),
        ([finding(since=5), finding("critical", since=3)], 1),
        ([finding("info", since=0), finding(since=3)], 1),
        ([finding(rule="vanishing_gradients", since=3), finding(rule="exploding_gradients", since=3)], 1),
        ([finding(rule="non_finite_gradients"), finding(rule="constant_weights"), finding(rule="mine")], 1),
        ([finding(rule="constant_weights"), finding(rule="non_finite_weights")], 1),
        ([finding(rule="mine"), finding(rule="non_finite_gradients")], 1),
        ([finding(step=9), finding(step=4)], 1),
    ],
    ids=["none", "a note is no cause", "earliest onset", "first serious", "explodes, then vanishes", "weights first",
         "NaN before constant", "known before unknown", "told earlier"],
)  # fmt: skip
def test_the_first_cause_began_first_and_is_a_cause_rather_than_a_symptom(findings, first):
    assert first_cause(findings) is (None if first is None else findings[first])


def test_an_illness_that_moves_to_other_layers_is_told_again():
    """It was not: only the number of layers counted."""
    ledger = Ledger()
    assert told([finding()], [finding(start=2)], ledger=ledger) == [1, 1]
    assert told([finding()], [finding(start=2)], ledger=ledger) == [0, 0]
