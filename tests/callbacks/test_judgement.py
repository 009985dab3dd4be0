"""What a monitor makes of findings: which are heeded, told, and taken for symptoms; and how it is told to."""

import logging

import pytest

from lightning_weightwatch import GradientHealthMonitor
from lightning_weightwatch.callbacks._judgement import Judgement, checked, ignored, with_limits
from lightning_weightwatch.evidence import Evidence, Watched
from lightning_weightwatch.rules import Finding, Rule, all_rules

ME = "GradientHealthMonitor"
EVIDENCE = Evidence([Watched("fc.weight", 4, True)])


def finding(rule, *parameters, since=0, severity="warning", unit="u"):
    return Finding(
        rule=rule,
        severity=severity,
        step=since + 9,
        since_step=since,
        parameters=parameters,
        value=1.0,
        limit=0.5,
        unit=unit,
        saw="Saw.",
        try_first="Try.",
    )


def says(*found, name=None):
    """Return a rule that finds just this, as often as it is asked."""
    return Rule(name or found[0].rule, lambda evidence: iter(found))


def first_news(rules, ignore=None):
    return Judgement(rules, ignore).news(EVIDENCE)


# --- what is heeded ---------------------------------------------------------------------------------------------------

SPIKE = finding("spike", "decoder.weight", "encoder.weight", "decoder.bias")


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ([], ("decoder.weight", "encoder.weight", "decoder.bias")),
        (["decoder.*"], ("encoder.weight",)),
        (["*.bias", "enc*"], ("decoder.weight",)),
        (["other.*"], ("decoder.weight", "encoder.weight", "decoder.bias")),
        (["decoder.*", "encoder.*"], None),
        (["*"], None),
        (["*.weight", "*.bias"], None),
    ],
    ids=str,
)
def test_places_that_are_ignored_are_left_out_and_a_finding_without_places_left_is_none(patterns, left):
    news = first_news([says(SPIKE)], {"spike": patterns})
    assert [f.parameters for f in news] == ([] if left is None else [left])


@pytest.mark.parametrize(("patterns", "is_told"), [(["fc.*"], True), (["*"], False), (["*", "fc"], False), ([], True)])
def test_a_finding_without_a_place_is_silenced_as_a_whole_only(patterns, is_told):
    assert bool(first_news([says(finding("loss"))], {"loss": patterns})) is is_told


def test_other_rules_are_not_ignored_with_it():
    news = first_news([says(finding("one", "fc.weight")), says(finding("other", "fc.weight"))], {"one": ["*"]})
    assert [f.rule for f in news] == ["other"]


def test_what_is_ignored_is_not_remembered_as_told_nor_as_a_cause():
    rules = [says(finding("learning_rate_too_high")), says(finding("dead_units", "fc.bias", since=30))]
    (symptom,) = first_news(rules, {"learning_rate_too_high": ["*"]})
    assert (symptom.rule, symptom.because_of) == ("dead_units", None)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_finding_is_told_once_and_kept():
    judgement = Judgement([says(SPIKE)])
    assert [len(judgement.news(EVIDENCE)) for _ in range(3)] == [1, 0, 0]
    assert judgement.findings == [SPIKE]


def test_a_symptom_is_told_with_its_cause_whichever_rule_was_asked_first():
    cause, symptom = finding("learning_rate_too_high", since=10), finding("dead_units", "fc.bias", since=20)
    for rules in ([says(cause), says(symptom)], [says(symptom), says(cause)]):
        told = {f.rule: f.because_of for f in first_news(rules)}
        assert told == {"learning_rate_too_high": None, "dead_units": "learning_rate_too_high"}


def test_a_cause_that_was_told_before_explains_what_comes_later():
    said = [[finding("learning_rate_too_high", since=10)], []]
    judgement = Judgement([Rule("a", lambda evidence: iter(said[0])), Rule("b", lambda evidence: iter(said[1]))])
    judgement.news(EVIDENCE)
    said[0], said[1] = [], [finding("dead_units", "fc.bias", since=300)]
    (symptom,) = judgement.news(EVIDENCE)
    assert symptom.because_of == "learning_rate_too_high"
    assert judgement.findings[-1] is symptom


def test_a_note_explains_nothing():
    rules = [says(finding("learning_rate_too_high", severity="info")), says(finding("dead_units", "b", since=30))]
    assert [f.because_of for f in first_news(rules)] == [None, None]


def test_a_rule_that_fails_is_told_once_and_left_out(caplog):
    def fails(evidence):
        raise KeyError("theirs")
        yield

    judgement = Judgement([Rule("mine", fails), says(SPIKE)])
    with caplog.at_level(logging.WARNING, "lightning_weightwatch"):
        assert [len(judgement.news(EVIDENCE)) for _ in range(3)] == [1, 0, 0]
    assert [r.getMessage() for r in caplog.records] == ["The rule mine failed (KeyError: 'theirs'). It is left out."]


def test_what_was_told_survives_a_checkpoint():
    first, second = Judgement([says(SPIKE)]), Judgement([says(SPIKE)])
    first.news(EVIDENCE)
    second.load_state_dict(first.state_dict())
    assert second.findings == first.findings
    assert second.news(EVIDENCE) == ()


# --- arguments --------------------------------------------------------------------------------------------------------

LIMITED = Rule("faint", lambda evidence, *, ratio=0.1, steps=20: iter(()), limits={"ratio": 0.2})


def test_limits_replace_those_of_the_rule_and_leave_other_rules_alone():
    other = says(SPIKE)
    given, same = with_limits(ME, [LIMITED, other], {"faint": {"steps": 50}})
    assert (given.limits, same) == ({"ratio": 0.2, "steps": 50}, other)
    (given,) = with_limits(ME, [LIMITED], {"faint": {"ratio": 1e-4}})
    assert given.limits == {"ratio": 1e-4}
    assert LIMITED.limits == {"ratio": 0.2}
    assert with_limits(ME, [LIMITED], None) == with_limits(ME, [LIMITED], {}) == (LIMITED,)


def test_a_limit_reaches_the_rule():
    monitor = GradientHealthMonitor(limits={"vanishing_gradients": {"steps": 77}})
    by_name = {rule.name: rule.limits for rule in monitor.rules}
    assert by_name.pop("vanishing_gradients") == {"steps": 77}
    assert set(map(len, by_name.values())) == {0}


def test_what_is_ignored_reaches_the_judgement():
    rules = [says(SPIKE)]
    monitor = GradientHealthMonitor(rules=rules, ignore={"spike": ("decoder.*",)})
    assert [f.parameters for f in monitor._judgement.news(EVIDENCE)] == [("encoder.weight",)]
    monitor.setup(None, __import__("torch").nn.Linear(1, 1), "fit")
    assert [f.parameters for f in monitor._judgement.news(EVIDENCE)] == [("encoder.weight",)]


def test_rules_are_all_there_are_unless_some_are_given():
    assert checked(ME, None) == tuple(all_rules("training").values())
    assert checked(ME, [LIMITED]) == (LIMITED,)
    assert checked(ME, []) == ()


SOME = 'Use {"vanishing_gradients": {"ratio": 1e-4}}.'
DICT = f"a dict of limits for each rule, or None. {SOME}"
REFUSED_LIMITS = [
    ("tight", TypeError, DICT),
    ([("faint", {})], TypeError, DICT),
    ({"faint": 0.1}, TypeError, DICT),
    ({"faint": None}, TypeError, DICT),
    ({"fain": {"ratio": 1.0}}, ValueError, "names of rules (faint, spike). There is no rule 'fain' among them."),
    ({1: {"ratio": 1.0}}, ValueError, "names of rules (faint, spike). There is no rule 1 among them."),
    ({"faint": {"ratios": 1.0}}, ValueError, "limits of faint (ratio, steps). It has no 'ratios'."),
    ({"faint": {"evidence": 1.0}}, ValueError, "limits of faint (ratio, steps). It has no 'evidence'."),
    ({"spike": {"ratio": 1.0}}, ValueError, "limits of spike (). It has no 'ratio'."),
    ({"faint": {"ratio": "small"}}, TypeError, f"a number for ratio of faint. {SOME}"),
    ({"faint": {"ratio": None}}, TypeError, f"a number for ratio of faint. {SOME}"),
    ({"faint": {"steps": True}}, TypeError, f"a number for steps of faint. {SOME}"),
]


@pytest.mark.parametrize(("limits", "error", "rest"), REFUSED_LIMITS, ids=str)
def test_limits_that_no_rule_has_are_refused(limits, error, rest):
    """A limit that is no number made its rule fail in the middle of the run, and be left out."""
    with pytest.raises(error) as raised:
        GradientHealthMonitor(rules=[LIMITED, says(SPIKE)], limits=limits)
    assert str(raised.value) == f"{ME}(limits={limits!r}): expected {rest}"


EXAMPLE = 'Use {"gradient_spike": ["decoder.*"]}, or ["*"] to silence a rule.'
REFUSED_IGNORE = [
    (["spike"], TypeError, f"a dict of patterns for each rule, or None. {EXAMPLE}"),
    ("spike", TypeError, f"a dict of patterns for each rule, or None. {EXAMPLE}"),
    ({"spike": "decoder.*"}, TypeError, f"a list of patterns for spike. {EXAMPLE}"),
    ({"spike": 3}, TypeError, f"a list of patterns for spike. {EXAMPLE}"),
    ({"spike": None}, TypeError, f"a list of patterns for spike. {EXAMPLE}"),
    ({"spike": [3]}, TypeError, f"a list of patterns for spike. {EXAMPLE}"),
    ({"spikes": ["*"]}, ValueError, "names of rules (faint, spike). There is no rule 'spikes' among them."),
]


@pytest.mark.parametrize(("ignore", "error", "rest"), REFUSED_IGNORE, ids=str)
def test_what_names_no_rule_or_gives_no_patterns_is_refused(ignore, error, rest):
    """A number in place of the patterns raised in Python's words."""
    with pytest.raises(error) as raised:
        GradientHealthMonitor(rules=[LIMITED, says(SPIKE)], ignore=ignore)
    assert str(raised.value) == f"{ME}(ignore={ignore!r}): expected {rest}"


def test_what_is_ignored_does_not_change_with_what_was_given():
    patterns = ["a.*"]
    kept = ignored(ME, [LIMITED], {"faint": patterns})
    patterns.append("b.*")
    assert kept == {"faint": ("a.*",)}
    assert ignored(ME, [LIMITED], None) == {}
