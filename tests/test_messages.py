"""Refused arguments, in full.

They read ``Who(argument=value): expected what. Remedy.``
"""

import inspect

import pytest

from lightning_weightwatch import GradientHealthMonitor, WeightHistogramLogger, audit_init, watch
from lightning_weightwatch.rules import Rule, all_rules, dead_units

MONITOR, HISTOGRAMS = GradientHealthMonitor, WeightHistogramLogger
STEPS = "a whole number of at least 1. Use 1 to judge after every step."
STEPS_OR_NONE = "a whole number of at least 1 or None. Use None to follow the run's length."
ACTION = (
    'one of "warn", "stop", "raise", or a dict of them by severity. '
    'Use "warn" to be told and train on, or a dict such as {"critical": "stop"}.'
)
IGNORE = 'Use {"gradient_spike": ["decoder.*"]}, or ["*"] to silence a rule.'
LIMITS = 'Use {"vanishing_gradients": {"ratio": 1e-4}}.'
NAMES = ", ".join(sorted(all_rules("training")))
OF_DEAD_UNITS = ", ".join(list(inspect.signature(dead_units.check).parameters)[1:])
WINDOW = "a whole number of at least 50. Use 200; rules need 50 to tell a trend from a batch."
PATTERNS = (
    'a list of non-empty parameter name patterns. Use a list of shell-style patterns such as ["encoder.*", "*.bias"].'
)
PREFIX = "letters, digits, '_', '.', '-' or spaces. Use a short word such as \"health\"."
RULES = "a list of Rule or None. Use [*all_rules('training').values(), MY_RULE] from lightning_weightwatch.rules."

SHARE = "a share above 0 and at most 1, or None. Use 0.01 for 1 % of the time, None for a fixed cadence."
FOLLOW = "a whole number of at least 1 or None. Use None to follow the Trainer."

REFUSED = [
    (MONITOR, "every_n_steps", 0, ValueError, STEPS),
    (MONITOR, "every_n_steps", 2.0, TypeError, STEPS),
    (MONITOR, "every_n_steps", True, TypeError, STEPS),
    (MONITOR, "action", "explode", ValueError, ACTION),
    (MONITOR, "action", None, TypeError, ACTION),
    (MONITOR, "action", {"critical": "explode"}, ValueError, ACTION),
    (MONITOR, "action", {"deadly": "stop"}, ValueError, ACTION),
    (MONITOR, "on_finding", "print", TypeError, "a function of one finding, or None. Use print to see each finding."),
    (MONITOR, "replay", "yes", TypeError, "True or False. Use True to trace NaN and Inf to a module."),
    (MONITOR, "replay", 1, TypeError, "True or False. Use True to trace NaN and Inf to a module."),
    (MONITOR, "ignore", ["dead_units"], TypeError, f"a dict of patterns for each rule, or None. {IGNORE}"),
    (MONITOR, "ignore", {"dead_units": "*"}, TypeError, f"a list of patterns for dead_units. {IGNORE}"),
    (MONITOR, "ignore", {"cold": ["*"]}, ValueError, f"names of rules ({NAMES}). There is no rule 'cold' among them."),
    (MONITOR, "limits", 0.5, TypeError, f"a dict of limits for each rule, or None. {LIMITS}"),
    (MONITOR, "limits", {"dead_units": 0.5}, TypeError, f"a dict of limits for each rule, or None. {LIMITS}"),
    (MONITOR, "limits", {"cold": {}}, ValueError, f"names of rules ({NAMES}). There is no rule 'cold' among them."),
    (MONITOR, "limits", {"dead_units": {"some": "few"}}, TypeError, f"a number for some of dead_units. {LIMITS}"),
    (
        MONITOR,
        "limits",
        {"dead_units": {"none": 0.5}},
        ValueError,
        f"limits of dead_units ({OF_DEAD_UNITS}). It has no 'none'.",
    ),
    (MONITOR, "window", 10, ValueError, WINDOW),
    (MONITOR, "include", "conv*", TypeError, PATTERNS),
    (MONITOR, "include", [""], ValueError, PATTERNS),
    (MONITOR, "exclude", [3], TypeError, PATTERNS),
    (MONITOR, "prefix", "a/b", ValueError, PREFIX),
    (MONITOR, "prefix", None, TypeError, 'text. Use a short word such as "health".'),
    (MONITOR, "rules", ["vanishing_gradients"], TypeError, RULES),
    (MONITOR, "max_overhead", 0, ValueError, SHARE),
    (MONITOR, "max_overhead", float("nan"), ValueError, SHARE),
    (MONITOR, "max_overhead", True, TypeError, SHARE),
    (MONITOR, "statistics_every_n_steps", 0, ValueError, FOLLOW),
    (MONITOR, "statistics_every_n_steps", "often", TypeError, FOLLOW),
    (HISTOGRAMS, "max_overhead", 1.5, ValueError, SHARE),
    (HISTOGRAMS, "max_overhead", "1 %", TypeError, SHARE),
    (HISTOGRAMS, "every_n_steps", -5, ValueError, STEPS_OR_NONE),
    (HISTOGRAMS, "every_n_steps", "10", TypeError, STEPS_OR_NONE),
    (HISTOGRAMS, "gradients", "yes", TypeError, "True or False. Use False to log weights only."),
    (HISTOGRAMS, "figures", -1, ValueError, "a whole number of at least 0. Use 0 to draw none."),
    (HISTOGRAMS, "include", None, TypeError, PATTERNS),
    (HISTOGRAMS, "prefix", "µ", ValueError, PREFIX),
]


@pytest.mark.parametrize(("who", "argument", "value", "error", "rest"), REFUSED)
def test_a_wrong_argument_is_refused_in_these_words(
    who: type, argument: str, value: object, error: type, rest: str
) -> None:
    with pytest.raises(error) as raised:
        who(**{argument: value})
    assert str(raised.value) == f"{who.__name__}({argument}={value!r}): expected {rest}"


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**32, ValueError), (True, TypeError), ("42", TypeError)]
)
def test_watch_refuses_a_seed_as_seed_everything_does(seed: object, error: type) -> None:
    with pytest.raises(error) as raised:
        watch(seed=seed)
    assert str(raised.value).startswith(f"SeedEverything(seed={seed!r}): expected a whole number from 0 to 4294967295")


def test_rules_of_ones_own_are_taken() -> None:
    rule = Rule(name="mine", check=lambda evidence: iter(()))
    assert GradientHealthMonitor(rules=[rule]).rules == (rule,)


@pytest.mark.parametrize("model", ["model", None, dict])
def test_audit_init_refuses_what_is_no_module(model: object) -> None:
    with pytest.raises(TypeError) as raised:
        audit_init(model)
    assert str(raised.value) == (
        f"audit_init(model={model!r}): expected a torch.nn.Module. "
        "Pass the network itself, not its name, its class or its weights."
    )
