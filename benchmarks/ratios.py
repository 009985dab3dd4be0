"""How long we and others take, over one ``clip_grad_norm_`` on the same gradients."""

from __future__ import annotations

import ours
import peers
from shapes import NETWORKS, with_gradients
from tables import SPREAD, Settings, Table, say
from timing import Ratio, paired
from torch import nn


def measure(settings: Settings) -> Table:
    """Compare everything on the shapes of every network."""
    rows: dict[str, Ratio | None] = {}
    for network, shapes in NETWORKS.items():
        module = with_gradients(shapes(), settings.device)
        for what in (*ours.EVERY, *peers.EVERY):
            say(f"{network}: {what}")
            rows[f"{what}, {network}"] = _ratio(what, module, settings.rounds)
    return Table("Time, over one clip_grad_norm_ on the same gradients", SPREAD, rows)


def _ratio(what: str, module: nn.Module, rounds: int) -> Ratio | None:
    try:
        with (ours.EVERY | peers.EVERY)[what](module) as act, peers.clip(module) as clip:
            return paired(act, clip, rounds=rounds)
    except ModuleNotFoundError:  # a peer is optional
        return None
