"""Which finding is taken for the cause, and which for its symptom."""

import itertools
import random

import pytest

from lightning_weightwatch.rules import EXPLAINS, PRECEDENCE, SEVERITIES, Finding, all_rules, cause_of, first_cause
from lightning_weightwatch.rules._causes import SLACK


def finding(rule, since=0, severity="warning", **options):
    defaults = {"step": since + 9, "value": 1.0, "limit": 0.5, "unit": "u", "saw": "Saw.", "try_first": "Try."}
    return Finding(rule=rule, severity=severity, since_step=since, **defaults | options)


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_name_in_it_is_that_of_a_rule():
    named = {*PRECEDENCE, *EXPLAINS, *itertools.chain.from_iterable(EXPLAINS.values())}
    assert named <= all_rules().keys()


def test_every_rule_has_its_place():
    assert all_rules("training").keys() <= set(PRECEDENCE)
    assert len(PRECEDENCE) == len(set(PRECEDENCE))
    assert set(PRECEDENCE) >= EXPLAINS.keys() | set(itertools.chain.from_iterable(EXPLAINS.values()))


def test_no_rule_explains_itself():
    """Weights that broke were told to be their own symptom, and so another illness was the first cause."""
    assert [rule for rule, symptoms in EXPLAINS.items() if rule in symptoms] == []


def reached(rule):
    """Return all that follows from a rule, over any number of steps."""
    found, waiting = set(), [rule]
    while waiting:
        new = EXPLAINS.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def test_rules_that_explain_one_another_do_so_in_pairs_and_in_no_larger_circle():
    circles = {(a, b) for a, b in itertools.permutations(EXPLAINS, 2) if b in reached(a) and a in reached(b)}
    assert {pair for pair in circles if pair[1] not in EXPLAINS[pair[0]]} == set()
    assert {frozenset(pair) for pair in circles} == {
        frozenset(pair)
        for pair in [
            *itertools.combinations(("dead_units", "label_signal", "vanishing_gradients"), 2),
            ("gradient_spike", "loss_spike"),
            *itertools.combinations(("non_finite_gradients", "non_finite_loss", "non_finite_weights"), 2),
        ]
    }


# --- one explains another ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "symptom", "later", "explains"),
    [
        ("learning_rate_too_high", "dead_units", 50, True),
        ("learning_rate_too_high", "dead_units", 0, True),
        ("learning_rate_too_high", "dead_units", -SLACK, True),
        ("learning_rate_too_high", "dead_units", -SLACK - 1, False),
        ("dead_units", "learning_rate_too_high", 50, False),
        ("dead_units", "overfitting", 0, False),
        ("mine", "dead_units", 50, False),
        ("learning_rate_too_high", "mine", 50, False),
    ],
)
def test_a_cause_explains_what_began_no_earlier_but_for_some_slack(cause, symptom, later, explains):
    one, other = finding(cause, 100), finding(symptom, 100 + later)
    assert (cause_of(other, [one, other]) == cause) is explains
    assert cause_of(one, [one, other]) is None


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_note_is_no_cause_but_may_have_one(severity):
    one, other = finding("learning_rate_too_high", 0, severity), finding("dead_units", 10, severity)
    assert cause_of(other, [one, other]) == (None if severity == "info" else "learning_rate_too_high")
    note = finding("dead_units", 10, "info")
    assert cause_of(note, [finding("learning_rate_too_high")]) == "learning_rate_too_high"


@pytest.mark.parametrize(("first", "second"), [("dead_units", "vanishing_gradients"), ("loss_spike", "gradient_spike")])
def test_of_two_that_may_explain_one_another_the_earlier_does(first, second):
    for a, b in ((first, second), (second, first)):
        early, late = finding(a, 5), finding(b, 10)
        for both in ([early, late], [late, early]):
            assert (cause_of(early, both), cause_of(late, both)) == (None, a)
            assert first_cause(both) is early


def test_at_the_same_step_the_one_that_stands_higher_explains():
    loss, weights = finding("non_finite_loss", 7, "critical"), finding("non_finite_weights", 7, "critical")
    assert (cause_of(loss, [loss, weights]), cause_of(weights, [loss, weights])) == ("non_finite_weights", None)
    assert first_cause([loss, weights]) is weights


def test_of_several_causes_the_first_is_named_and_then_the_one_that_stands_higher():
    symptom = finding("no_learning", 50)
    causes = [finding("vanishing_gradients", 20), finding("saturated_units", 10), finding("symmetric_units", 10)]
    assert cause_of(symptom, [symptom, *causes]) == "symmetric_units"


def test_a_finding_that_nothing_explains_has_no_cause():
    assert cause_of(finding("overfitting"), []) is None
    alone = finding("non_finite_weights", severity="critical")
    assert cause_of(alone, [alone]) is None


# --- the first cause --------------------------------------------------------------------------------------------------


def test_a_healthy_run_and_one_of_notes_alone_have_none():
    assert first_cause([]) is None
    assert first_cause([finding("dead_units", severity="info")]) is None


def test_a_run_that_diverged_by_its_learning_rate_says_so_and_not_what_is_left_of_it():
    rate = finding("learning_rate_too_high", 12, "critical")
    others = [finding("dead_units", 0), finding("vanishing_gradients", 30), finding("non_finite_loss", 40, "critical")]
    for order in itertools.permutations([rate, *others]):
        assert first_cause(order) is rate


def test_an_unexplained_finding_is_not_hidden_behind_weights_that_broke_before():
    """They were said to explain themselves, and were left out."""
    broken, other = finding("non_finite_weights", 3, "critical"), finding("overfitting", 50)
    assert first_cause([broken, other]) is broken


def test_of_unexplained_findings_the_earliest_counts_and_then_the_one_that_stands_higher():
    late, early = finding("stale_gradients", 9), finding("overfitting", 3)
    assert first_cause([late, early]) is early
    same = finding("overfitting", 9)
    assert first_cause([same, late]) is late


def test_of_one_rule_the_worse_finding_counts_at_the_same_step():
    mild, bad = finding("dead_units", 3), finding("dead_units", 3, "critical")
    assert first_cause([mild, bad]) is bad


def test_a_rule_of_the_users_counts_by_its_step_and_stands_below_all_others():
    mine, other = finding("mine", 3), finding("dead_units", 4)
    assert first_cause([other, mine]) is mine
    assert first_cause([finding("mine", 4), other]) is other


def test_some_finding_is_the_first_cause_whatever_was_found():
    """And never one that another explains, nor a note."""
    draw = random.Random(0)
    for _ in range(300):
        rules = draw.choices([*PRECEDENCE, "mine"], k=draw.randint(1, 6))
        found = [finding(rule, draw.randint(0, 60), draw.choice(SEVERITIES)) for rule in rules]
        serious, cause = [f for f in found if f.severity != "info"], first_cause(found)
        assert (cause is None) is (not serious)
        if cause is not None:
            assert cause in serious
            assert cause_of(cause, found) is None, found
