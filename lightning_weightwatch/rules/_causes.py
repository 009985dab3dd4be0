"""Which finding is the cause of which: a small table, cause before symptom.

A run that diverged by its learning rate ends with dead units and vanished gradients, and the report must say learning
rate. So a finding that another one explains is taken for its symptom, if the cause began no later than ``SLACK`` steps
after it: onsets are read now and then, and a cause may show a reading later than what it does.

Of the findings that nothing explains, the earliest is the first cause; of those with the same onset the one that stands
higher in ``PRECEDENCE``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_weightwatch.rules._base import SEVERITIES, Finding

SLACK = 20  # steps

# From what is wrong before the first step, over what is wrong with the steps, to what is seen of either.
PRECEDENCE = (
    "never_initialised",
    "non_finite_weights",
    "constant_weights",
    "identical_layers",
    "tied_mismatch",
    "untrained_parameters",
    "stale_gradients",
    "loss_output_mismatch",
    "symmetric_units",
    "zero_blocked_signal",
    "init_too_small",
    "init_too_large",
    "input_scale",
    "dead_at_init",
    "saturated_at_init",
    "bad_initial_loss",
    "dropout_range",
    "rank_divergence",
    "layer_scale_outlier",
    "learning_rate_too_high",
    "lost_updates",
    "learning_rate_too_low",
    "weight_collapse",
    "exploding_gradients",
    "saturated_units",
    "dead_units",
    "vanishing_gradients",
    "label_signal",
    "gradient_spike",
    "non_finite_loss",
    "non_finite_gradients",
    "overflow_skips",
    "loss_spike",
    "diverging_loss",
    "oscillating_loss",
    "overfitting",
    "no_learning",
)

_STATES_OF_THE_LOSS = {"loss_spike", "diverging_loss", "oscillating_loss", "no_learning"}
_BROKEN = {"non_finite_loss", "non_finite_gradients", "non_finite_weights", "overflow_skips"}
_SHRUNK = {"vanishing_gradients", "dead_units", "saturated_units"}
_GROWN = {"exploding_gradients", "gradient_spike"}
_AT_THE_START = {"init_too_small", "init_too_large", "dead_at_init", "saturated_at_init", "bad_initial_loss"}

EXPLAINS: dict[str, set[str]] = {
    "never_initialised": _BROKEN
    | _STATES_OF_THE_LOSS
    | _GROWN
    | _SHRUNK
    | _AT_THE_START
    | {"layer_scale_outlier", "zero_blocked_signal"},
    "non_finite_weights": _BROKEN - {"non_finite_weights"} | _STATES_OF_THE_LOSS,
    "constant_weights": {"symmetric_units", "zero_blocked_signal", "vanishing_gradients", "dead_units"},
    "tied_mismatch": _STATES_OF_THE_LOSS | _GROWN | {"init_too_large", "bad_initial_loss"},
    "untrained_parameters": {"no_learning", "label_signal", "learning_rate_too_low"},
    "stale_gradients": _STATES_OF_THE_LOSS | _GROWN | _SHRUNK | _BROKEN | {"learning_rate_too_high"},
    "loss_output_mismatch": _STATES_OF_THE_LOSS
    | _SHRUNK
    | {"label_signal", "learning_rate_too_low", "learning_rate_too_high"},
    "symmetric_units": {"dead_units", "vanishing_gradients", "no_learning", "label_signal", "layer_scale_outlier"},
    "zero_blocked_signal": {"vanishing_gradients", "dead_units", "no_learning", "untrained_parameters", "label_signal"}
    | {"dead_at_init", "init_too_small"},
    "init_too_small": {"vanishing_gradients", "dead_units", "no_learning", "label_signal", "learning_rate_too_low"},
    "init_too_large": _STATES_OF_THE_LOSS
    | _GROWN
    | _BROKEN
    | {"saturated_at_init", "bad_initial_loss", "saturated_units", "dead_units", "learning_rate_too_high"},
    "dead_at_init": {"dead_units", "vanishing_gradients", "no_learning", "label_signal"},
    "saturated_at_init": {"saturated_units", "vanishing_gradients", "no_learning", "label_signal"},
    "input_scale": _STATES_OF_THE_LOSS | _GROWN | _SHRUNK | _BROKEN | {"learning_rate_too_high"},
    "dropout_range": {"no_learning", "dead_units", "vanishing_gradients", "label_signal"},
    "layer_scale_outlier": _STATES_OF_THE_LOSS | _GROWN | _SHRUNK | _AT_THE_START,
    "learning_rate_too_high": _STATES_OF_THE_LOSS | _GROWN | _SHRUNK | _BROKEN | {"weight_collapse", "label_signal"},
    "lost_updates": {"no_learning", "learning_rate_too_low", "label_signal", "untrained_parameters"},
    "learning_rate_too_low": {"no_learning"},
    "weight_collapse": _SHRUNK | {"no_learning", "label_signal"},
    "exploding_gradients": _STATES_OF_THE_LOSS | _BROKEN | {"dead_units", "saturated_units", "gradient_spike"},
    "vanishing_gradients": {"no_learning", "label_signal", "learning_rate_too_low", "dead_units"},
    "saturated_units": {"vanishing_gradients", "no_learning", "label_signal", "learning_rate_too_low"},
    "dead_units": {"vanishing_gradients", "no_learning", "label_signal"},
    "label_signal": {"no_learning", "dead_units", "vanishing_gradients"},
    "gradient_spike": {"loss_spike", "dead_units"},
    "non_finite_loss": {"non_finite_gradients", "overflow_skips", "non_finite_weights"},
    "non_finite_gradients": {"non_finite_weights", "non_finite_loss"},
    "overflow_skips": {"no_learning"},
    "loss_spike": {"gradient_spike"},
    "diverging_loss": {"no_learning", "gradient_spike", "loss_spike", "oscillating_loss"},
    "oscillating_loss": {"no_learning"},
}


def first_cause(findings: Iterable[Finding]) -> Finding | None:
    """Return the finding that explains the others and began first; notes of severity ``info`` are no cause.

    Example:
        >>> symptom = Finding(rule="dead_units", severity="warning", step=9, since_step=0, value=1.0, limit=0.5,
        ...                   unit="share", saw="Dead.", try_first="Look.")
        >>> cause = Finding(rule="learning_rate_too_high", severity="critical", step=19, since_step=10, value=1.0,
        ...                 limit=0.1, unit="ratio", saw="Large.", try_first="Lower it.")
        >>> first_cause([symptom, cause]).rule
        'learning_rate_too_high'
    """
    serious = [f for f in findings if f.severity != "info"]
    causes = [f for f in serious if _explained_by(f, serious) is None] or serious
    return min(causes, key=_rank, default=None)


def cause_of(finding: Finding, findings: Sequence[Finding]) -> str | None:
    """Return the rule of the finding that explains this one, if there is one."""
    cause = _explained_by(finding, [f for f in findings if f.severity != "info"])
    return cause.rule if cause is not None else None


def _explained_by(finding: Finding, findings: Sequence[Finding]) -> Finding | None:
    causes = [
        other
        for other in findings
        if finding.rule in EXPLAINS.get(other.rule, ())
        and other.since_step <= finding.since_step + SLACK
        and not (_is_mutual(finding, other) and _rank(finding) < _rank(other))
    ]
    return min(causes, key=_rank, default=None)


def _is_mutual(one: Finding, other: Finding) -> bool:
    """Whether each may explain the other; then the earlier one does."""
    return other.rule in EXPLAINS.get(one.rule, ())


def _rank(finding: Finding) -> tuple[int, int, int, int]:
    known = finding.rule in PRECEDENCE
    precedence = PRECEDENCE.index(finding.rule) if known else len(PRECEDENCE)
    return finding.since_step, precedence, finding.step, -SEVERITIES.index(finding.severity)
