"""What is done about findings: go on, stop in good order, raise; the same on all processes, in the same step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_weightwatch import _arguments, reduce
from lightning_weightwatch.errors import UnhealthyRunError
from lightning_weightwatch.rules import SEVERITIES, Finding, Severity

Action = Literal["warn", "stop", "raise"]
ACTIONS: tuple[Action, ...] = ("warn", "stop", "raise")  # from the mildest on


def checked_action(who: str, action: Any) -> dict[Severity, Action]:
    """Return the action for each severity; a single one is that for critical findings."""
    remedy = 'Use "warn" to be told and train on, or a dict such as {"critical": "stop"}.'
    expected = 'one of "warn", "stop", "raise", or a dict of them by severity'
    chosen = action if isinstance(action, Mapping) else {"critical": action}
    for severity, what in chosen.items():
        if not isinstance(what, str) or not isinstance(severity, str):
            _arguments.refuse(who, "action", action, expected, remedy, wrong_type=True)
        if what not in ACTIONS or severity not in SEVERITIES:
            _arguments.refuse(who, "action", action, expected, remedy)
    return {**dict.fromkeys(SEVERITIES, "warn"), **chosen}


def act(
    trainer: pl.Trainer, pl_module: pl.LightningModule, actions: Mapping[Severity, Action], news: Sequence[Finding]
) -> None:
    """Do what the user asked for on all processes, if one has a finding that asks for it.

    A collective, unless nothing is ever to be done.

    Raises:
        UnhealthyRunError: If that is the action.
    """
    if set(actions.values()) == {"warn"}:
        return
    worst = max(news, key=lambda f: (ACTIONS.index(actions[f.severity]), f.because_of is None), default=None)
    own = ACTIONS.index(actions[worst.severity]) if worst else 0
    agreed = ACTIONS[reduce.largest(own, pl_module.device)]
    if agreed == "raise":
        mine = worst is not None and own == ACTIONS.index("raise")
        raise UnhealthyRunError(str(worst) if mine else "A finding on another process.")
    trainer.should_stop = trainer.should_stop or agreed == "stop"
