"""What every rule promises. They are found, not listed: nothing is added here for a new one."""

import copy
import doctest
import inspect
import json
import pickle
import re

import pytest

from lightning_weightwatch.evidence import Evidence, Initial, Layer, LossCall, Signal, Watched
from lightning_weightwatch.rules import SEVERITIES, Finding, Rule, all_rules, judge

RULES = all_rules()
SECTIONS = [
    "What it sees",
    "Why it matters",
    "When it is not a problem",
    "Limits",
    "What to try",
    "References",
    "Example",
]
every_rule = pytest.mark.parametrize("name", RULES)
every_training_rule = pytest.mark.parametrize("name", all_rules("training"))
ABOUT_THE_LOSS = {"non_finite_loss"}  # a loss that is NaN is theirs to tell
WITHOUT_PLACE = {  # illnesses of the whole training
    "non_finite_loss",
    "loss_spike",
    "diverging_loss",
    "oscillating_loss",
    "no_learning",
    "label_signal",
    "overfitting",
    "learning_rate_too_high",
    "learning_rate_too_low",
    "loss_output_mismatch",
    "input_scale",
    "dropout_range",
}
ABOUT_WHAT_IS_MISSING = {"untrained_parameters"}  # what has no gradient is theirs to tell
LAYERS = [Watched(f"fc{i}.weight", 4, True) for i in range(4)]


def page(name):
    return inspect.getdoc(inspect.getmodule(RULES[name].check))


def section(name, title):
    return re.search(rf"^{title}:\n(.*?)(?=^\S|\Z)", page(name), re.S | re.M)[1]


def judgements(name):
    """Run the page's own example and return what the rule said each time."""
    said = []

    def rule(evidence):
        said.append(RULES[name](evidence))
        return said[-1]

    example = doctest.DocTestParser().get_doctest(page(name), {"RULE": rule}, name, None, None)
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
    return said


def evidence(steps, norms, measured, loss=None):
    made = Evidence(LAYERS)
    for step in range(steps):
        made.add(step, norms, measured=measured, loss=None if loss is None else loss(step))
    return made


def test_the_folder_is_the_registry():
    assert {"vanishing_gradients", "exploding_gradients", "non_finite_gradients"} <= all_rules("training").keys()
    assert {rule.subject for rule in RULES.values()} <= {"training", "initialisation", "both"}
    assert all_rules("training") | all_rules("initialisation") == RULES


@every_rule
def test_its_page_has_the_sections_in_order(name):
    summary, *_ = page(name).splitlines()
    assert summary.endswith(".")
    assert re.findall(r"^([A-Z][\w ]+):$", page(name), re.M) == SECTIONS


@every_rule
def test_every_limit_is_on_its_page_with_its_default(name):
    limits = {n: p.default for n, p in list(inspect.signature(RULES[name].check).parameters.items())[1:]}
    assert limits
    for limit, default in limits.items():
        told = re.search(rf"(?:^\s*{limit}:|``{limit}``)\D*([\d.e+-]+)", section(name, "Limits"), re.M)
        assert told, f"{limit} is not on the page"
        assert float(told[1].rstrip(".")) == default


@every_rule
def test_its_limits_are_keywords_and_its_page_has_no_other(name):
    first, *rest = inspect.signature(RULES[name].check).parameters.values()
    assert first.default is first.empty
    assert all(p.kind is p.KEYWORD_ONLY for p in rest)
    assert set(re.findall(r"^    (\w+):", section(name, "Limits"), re.M)) <= {p.name for p in rest}


@every_rule
def test_it_is_named_after_the_illness_in_its_file(name):
    rule = RULES[name]
    assert rule.name == name == rule.check.__module__.rpartition(".")[2]
    assert "check" not in name


@every_rule
def test_its_example_shows_it_sick_and_well(name):
    said = judgements(name)
    assert () in said
    assert any(said)
    assert {finding.rule for findings in said for finding in findings} == {name}


@every_rule
def test_its_findings_survive_json_and_say_what_a_finding_must(name):
    for finding in (f for findings in judgements(name) for f in findings):
        assert Finding.from_dict(json.loads(json.dumps(finding.to_dict(), allow_nan=False))) == finding
        assert finding.severity in SEVERITIES
        assert finding.since_step <= finding.step
        assert finding.parameters or name in WITHOUT_PLACE
        assert all((finding.unit, finding.saw.endswith("."), finding.try_first.endswith(".")))
        assert all(type(number) in (int, float) for number in (finding.step, finding.since_step, finding.value))


@every_training_rule
@pytest.mark.parametrize("measured", [[False] * 4, [True, True, False, False]], ids=["nothing", "half the layers"])
@pytest.mark.parametrize("steps", [0, 1, 5, 60, 200])
@pytest.mark.parametrize("loss", [None, lambda step: 2.0, lambda step: float("nan")], ids=["unknown", "flat", "NaN"])
def test_silent_on_what_was_not_measured(name, steps, measured, loss):
    if (loss is None or loss(0) == 2.0 or name not in ABOUT_THE_LOSS) and name not in ABOUT_WHAT_IS_MISSING:
        assert RULES[name](evidence(steps, [1.0] * 4, measured, loss)) == ()


@every_training_rule
def test_silent_on_a_network_without_parameters(name):
    nothing = Evidence([])
    assert RULES[name](nothing) == ()
    for step in range(60):
        nothing.add(step, [], loss=1.0)
    assert RULES[name](nothing) == ()


@pytest.mark.parametrize("name", all_rules("initialisation"))
def test_silent_on_an_empty_sequence(name):
    assert RULES[name]([]) == RULES[name](()) == ()


@pytest.mark.parametrize("name", all_rules("initialisation"))
def test_silent_on_a_batch_of_which_nothing_was_measured(name):
    layers = tuple(Layer(f"fc{i}.weight", activation="tanh") for i in range(6))
    for signal in (None, Signal(), Signal(layers, losses=(LossCall("cross_entropy", "fc5.weight"),))):
        assert RULES[name](Initial([], signal)) == ()


@every_rule
def test_it_can_be_pickled_and_copied(name):
    assert pickle.loads(pickle.dumps(RULES[name])) == RULES[name] == copy.deepcopy(RULES[name])


@every_training_rule
def test_it_leaves_the_evidence_as_it_was(name):
    made = evidence(60, [1e-9, float("nan"), 1.0, 1e9], None, lambda step: 2.0)
    before = copy.deepcopy(made)
    assert RULES[name](made) == RULES[name](made)
    assert made.norms.tolist() == before.norms.tolist()
    assert (made.steps, made.losses.tolist()) == (before.steps, before.losses.tolist())


def finding_of(evidence, *, limit=2.0):
    yield Finding(
        rule="mine",
        severity="info",
        step=0,
        since_step=0,
        value=1.0,
        limit=limit,
        unit="u",
        saw="Saw.",
        try_first="Try.",
    )


def test_limits_given_to_a_rule_replace_defaults():
    assert Rule("mine", finding_of)(None)[0].limit == 2.0
    assert Rule("mine", finding_of, limits={"limit": 7.0})(None)[0].limit == 7.0


def test_a_rule_that_fails_is_named_and_does_not_silence_the_others():
    def breaks(evidence):
        raise ZeroDivisionError("the user's own")
        yield

    findings, failed = judge([Rule("bad", breaks), Rule("mine", finding_of)], None)
    assert [f.rule for f in findings] == ["mine"]
    assert str(failed["bad"]) == "the user's own"


def test_a_finding_of_a_later_version_can_still_be_read():
    (finding,) = finding_of(None)
    assert Finding.from_dict(finding.to_dict() | {"new in version 9": 1}) == finding


def test_a_finding_reads_as_one_line():
    (finding,) = finding_of(None)
    assert str(finding) == "INFO at step 0: mine. Saw. Try first: Try."
