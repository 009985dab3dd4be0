"""The table of the accuracy benchmark counts what it says that it counts; the verdicts here are made by hand."""

import importlib
import json
from pathlib import Path

import pytest
from torch import nn

from lightning_weightwatch.rules import PRECEDENCE

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    verdicts, peer_verdicts = importlib.import_module("verdicts"), importlib.import_module("peer_verdicts")

Label, Rates, Told, Verdict = verdicts.Label, verdicts.Rates, verdicts.Told, verdicts.Verdict

FADES = Label("fades", "vanishing_gradients", also=("no_learning",), layers=("net.0.*", "net.2.weight"), onset=10)
LEAPS = Label("leaps", "gradient_spike", onset=60)
WELL = Label("well")


def told(*rules: str, severity: str = "warning", step: int = 19, where: str = "") -> Told:
    return Told(rules, severity, step, step - 9, tuple(where.split()))


def judged(label: Label, *findings: Told, first: str = "", seed: int = 0) -> Verdict:
    return Verdict(label, seed, findings, tuple(first.split()))


def test_a_warning_of_the_right_rule_is_a_hit_and_a_note_is_none() -> None:
    runs = [
        judged(FADES, told("vanishing_gradients")),
        judged(FADES, told("vanishing_gradients", severity="critical")),
        judged(FADES, told("vanishing_gradients", severity="info")),
        judged(FADES, told("no_learning")),
        judged(FADES),
    ]
    assert Rates.of(runs).hit == 2 / 5


def test_what_was_told_before_the_onset_is_no_hit() -> None:
    early = judged(LEAPS, told("gradient_spike", step=59), first="gradient_spike")
    assert Rates.of([early]).hit == 0
    assert early.delay is None


def test_the_delay_is_that_of_the_first_hit_and_the_median_is_of_runs_with_one() -> None:
    runs = [
        judged(FADES, told("dead_units", step=11), told("vanishing_gradients", step=39), seed=0),
        judged(FADES, told("vanishing_gradients", step=59), told("vanishing_gradients", step=19), seed=1),
        judged(FADES, told("vanishing_gradients", step=10), seed=2),
        judged(FADES, told("vanishing_gradients", severity="info", step=10), seed=3),
    ]
    assert [run.delay for run in runs] == [29, 9, 0, None]
    assert Rates.of(runs).delay == 9


@pytest.mark.parametrize(
    ("where", "right"),
    [
        (["net.0.weight"], True),
        (["net.0.weight net.4.weight"], True),
        (["net.0.weight net.4.weight net.6.weight"], False),
        (["net.0.weight net.4.weight", "net.6.weight net.2.weight"], True),
        (["net.2.bias"], False),
        ([""], False),
    ],
)
def test_at_most_as_many_wrong_parameters_as_right_ones(where: list[str], right: bool) -> None:
    assert judged(FADES, *[told("vanishing_gradients", where=names) for names in where]).names_the_place is right


def test_the_place_is_what_the_first_alarm_named() -> None:
    first = told("vanishing_gradients", where="net.0.weight net.4.weight")
    spread = told("vanishing_gradients", step=29, where="net.0.weight net.4.weight net.6.weight net.8.weight")
    assert judged(FADES, spread, first).names_the_place
    assert not judged(FADES, spread).names_the_place


def test_places_count_for_cases_that_have_one_and_misses_are_not_right() -> None:
    here = told("vanishing_gradients", where="net.0.weight")
    elsewhere = told("no_learning", where="net.0.weight")
    runs = [judged(FADES, here), judged(FADES, elsewhere), judged(LEAPS, told("gradient_spike", step=60))]
    assert Rates.of(runs).place == 1 / 2
    assert Rates.of(runs, "gradient_spike").place is None


def test_the_first_cause_is_counted_apart_from_the_hits() -> None:
    runs = [
        judged(FADES, told("vanishing_gradients"), first="vanishing_gradients"),
        judged(FADES, told("vanishing_gradients"), told("dead_units"), first="dead_units"),
        judged(FADES, told("dead_units"), first="dead_units vanishing_gradients"),
        judged(FADES),
    ]
    assert Rates.of(runs).first == 2 / 4


def test_other_alarms_are_neither_the_illness_nor_a_fair_reading() -> None:
    runs = [
        judged(FADES, told("vanishing_gradients"), told("no_learning")),
        judged(FADES, told("vanishing_gradients"), told("dead_units")),
        judged(FADES, told("dead_units", severity="info")),
        judged(FADES, told("dead_units", "vanishing_gradients")),
    ]
    assert Rates.of(runs).other == 1 / 4


def test_false_alarms_are_shares_of_healthy_runs_by_rule_and_in_all() -> None:
    runs = [
        judged(WELL, told("dead_units"), told("dead_units"), seed=0),
        judged(WELL, told("dead_units", severity="critical"), seed=1),
        judged(WELL, told("input_scale"), told("no_learning", severity="info"), seed=2),
        judged(WELL, seed=3),
        judged(FADES, told("dead_units", severity="critical")),
    ]
    table = verdicts.table(runs)
    assert list(table) == ["dead_units", "input_scale", "vanishing_gradients", "overall"]
    assert [(rates.warned, rates.critical) for rates in table.values()] == [
        (0.5, 0.25),
        (0.25, 0),
        (0, 0),
        (0.75, 0.25),
    ]
    assert table["dead_units"].hit is None


def test_alarms_without_a_name_are_false_alarms_of_all_and_of_no_rule() -> None:
    table = verdicts.table([judged(WELL, told())])
    assert list(table) == ["overall"]
    assert table["overall"].warned == 1


def test_cases_are_counted_once_and_runs_by_seed() -> None:
    runs = [judged(label, seed=seed) for label in (FADES, LEAPS, WELL) for seed in range(3)]
    table = verdicts.table(runs)
    assert [(rates.cases, rates.runs) for rates in table.values()] == [(1, 3), (1, 3), (2, 6)]


def test_a_run_without_a_verdict_is_missed() -> None:
    runs = [judged(FADES, told("vanishing_gradients")), Verdict(FADES, 1, failed="OSError: full")]
    assert Rates.of(runs).hit == 1 / 2


def test_what_could_not_be_counted_is_left_empty() -> None:
    found = judged(FADES, told("vanishing_gradients", where="net.0.bias"), first="vanishing_gradients")
    sick, healthy = Rates.of([found]), Rates.of([judged(WELL)])
    assert sick.cells() == ["1", "1", "100 %", "100 %", "100 %", "9", "0 %", "", ""]
    assert healthy.cells() == ["0", "0", "", "", "", "", "", "0 %", "0 %"]
    assert len(sick.cells()) == len(verdicts.COLUMNS)


def test_each_failure_has_a_line_that_says_what_was_expected_and_found() -> None:
    runs = [
        judged(FADES, told("no_learning")),
        judged(FADES, told("vanishing_gradients", where="net.4.weight"), first="no_learning", seed=1),
        judged(FADES, told("vanishing_gradients", where="net.0.weight"), first="vanishing_gradients", seed=2),
        judged(WELL, told("dead_units", severity="critical")),
        judged(WELL, told("dead_units", severity="info"), seed=1),
        Verdict(LEAPS, 0, failed="OSError: full"),
    ]
    when = "(warning, step 19, since 10)"
    expected = "vanishing_gradients from step 10, found vanishing_gradients"
    fades = f"fades, seed 1: first cause no_learning; expected {expected} {when}"
    assert verdicts.failures(runs) == [
        f"missed        fades, seed 0: expected vanishing_gradients from step 10, found no_learning {when}",
        f"not the cause {fades}",
        "wrong layers  fades, seed 1: expected net.0.* net.2.weight, found net.4.weight",
        "false alarm   well, seed 0: found dead_units (critical, step 19, since 10)",
        "no verdict    leaps, seed 0: OSError: full",
    ]
    assert verdicts.failures(runs[3:4], "input_scale") == []


def test_verdicts_are_written_with_what_was_counted() -> None:
    run = judged(FADES, told("vanishing_gradients", where="net.0.weight"), first="vanishing_gradients")
    assert json.loads(json.dumps(run.to_dict())) == {
        "case": "fades",
        "seed": 0,
        "illness": "vanishing_gradients",
        "hit": True,
        "delay": 9,
        "right_layers": True,
        "first_cause": ["vanishing_gradients"],
        "found": [
            {
                "rules": ["vanishing_gradients"],
                "severity": "warning",
                "step": 19,
                "since_step": 10,
                "parameters": ["net.0.weight"],
            }
        ],
    }


def test_others_are_credited_with_illnesses_that_exist() -> None:
    named = {
        rule for reading in (peer_verdicts.MORTEM, peer_verdicts.AUDIT) for rules in reading.values() for rule in rules
    }
    assert named <= set(PRECEDENCE)


def test_what_others_repeat_is_one_finding_before_the_onset_and_one_after_it() -> None:
    spikes = [told("gradient_spike", step=step, where=f"net.{step}.weight") for step in (0, 5, 60, 70)]
    layers = [told("gradient_spike", step=60, where=name) for name in ("net.1.weight", "net.2.weight")]
    before, after = peer_verdicts.merged([*spikes, *layers], 60)
    assert (before.step, before.parameters) == (0, ("net.0.weight",))
    assert (after.step, after.parameters) == (60, ("net.60.weight", "net.1.weight", "net.2.weight"))


def test_others_get_credit_for_all_that_began_first_and_for_all_that_they_rated_highest() -> None:
    findings = [
        told("overfitting", severity="info", step=9),
        told("dead_units", step=19),
        told("weight_collapse", step=29),
        told("input_scale", severity="critical", step=39),
        told("no_learning", severity="critical", step=29),
    ]
    assert peer_verdicts.foremost(findings) == ("dead_units", "input_scale", "no_learning")
    assert peer_verdicts.foremost([]) == ()


def test_a_layer_stands_for_a_right_parameter_of_its_own_or_of_the_layer_before_it() -> None:
    model = nn.Module()
    model.net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert peer_verdicts.stand_in(model, "net.1", ["net.0.bias"]) == ["net.0.bias"]
    assert peer_verdicts.stand_in(model, "net.2", ["net.0.*"]) == ["net.2.weight"]
    assert peer_verdicts.stand_in(model, "net", ["net.2.bias"]) == ["net.2.bias"]
