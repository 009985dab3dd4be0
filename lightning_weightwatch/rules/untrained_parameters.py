"""Parameters that ask to be trained and never are.

What it sees:
    Three forms. Outside: trainable parameters that no optimizer holds. Unused: parameters that an optimizer holds and
    that had no gradient in any of at least ``steps`` steps since the start, while others had one. Unmoved: parameters
    with a gradient whose weight at least ``snapshots`` measured steps, and those between them, left as it was.

Why it matters:
    Such a layer stays what its initialisation made it. The others learn to live with it, so the loss falls, only not
    as far as it could, and no error is ever raised.

When it is not a problem:
    What was frozen is meant to stay. A copy that is kept up by hand (a target network, a running average) is in no
    optimizer by design: a module that is called so and has the parameters of a trained one is told as ``info``.
    Experts may be asked now and then, or never while others are. Where optimizers take turns, only those that have
    stepped count. A rate of zero, a step that a GradScaler skipped, and one too small for the weight's precision
    (``lost_updates``, ``learning_rate_too_low``) say nothing here.

Limits:
    steps: 10, none of which had a gradient. Our choice.
    snapshots: 2 measured steps that must have left the weight as it was. Our choice.
    smallest: 1e-6. A step below so much of the weight may be lost in float32 rounding, and is no fault of the code.

What to try:
    Outside: give ``self.parameters()`` to the optimizer, and build it after the layers. Unused: look for a layer that
    ``forward`` does not call, or for ``detach``, ``no_grad`` and ``argmax`` behind it; freeze it, if that is meant.
    Unmoved: look for an optimizer that holds other tensors than the model, as after a move or a wrapping.

References:
    Jiang et al., Training with confidence: catching silent errors in deep learning training with automated proactive
    checks, 2025, arXiv:2506.14813.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Setup, Watched
    >>> layers = [Watched("body.weight", 4, True), Watched("head.weight", 4, True)]
    >>> sick, well = Evidence(layers), Evidence(layers)
    >>> sick.setup = Setup(outside=("body.weight",))
    >>> for step in range(20):
    ...     sick.add(step, [0.0, 1.0], measured=[False, True])
    ...     well.add(step, [1.0, 1.0])
    >>> RULE(sick)[0].parameters
    ('body.weight',)
    >>> RULE(well)
    ()
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch.evidence import Evidence, Snapshot
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._pace import named, rates, table, took_a_step
from lightning_weightwatch.rules._words import listed

NAME = "untrained_parameters"
_COPIES = re.compile(
    r"target|teacher|momentum|shadow|average|frozen|(^|[._])(ema|avg|swa|copy|old|slow|k|key)($|[._])", re.IGNORECASE
)
_EXPERTS = re.compile(r"expert|moe")
_TWINS = 2  # matrices that a copy of a module has at least


def check(evidence: Evidence, *, steps: int = 10, snapshots: int = 2, smallest: float = 1e-6) -> Iterator[Finding]:
    """Look for parameters outside any optimizer, then for unused ones, then for unmoved ones."""
    if not len(evidence):
        return
    outside = _outside(evidence, steps)
    copies = _copies(evidence, outside)
    yield from _told_outside(evidence, [name for name in outside if name not in copies], "warning")
    yield from _told_outside(evidence, [name for name in outside if name in copies], "info")
    yield from _unused(evidence, steps)
    yield from _unmoved(evidence, snapshots, smallest)


def _outside(evidence: Evidence, steps: int) -> list[str]:
    """Return the parameters that no optimizer holds.

    Under manual optimization an optimizer that Lightning does not know may step them after all: it is waited for.
    """
    if not evidence.setup.outside or (not evidence.setup.automatic and len(evidence) < steps):
        return []
    trained = set(named(evidence, (~np.isnan(evidence.norms)).any(axis=0)))
    return [name for name in evidence.setup.outside if name not in trained]


def _copies(evidence: Evidence, outside: Sequence[str]) -> set[str]:
    """Return those that make a whole module which is called a copy and has the same parameters as a trained one."""
    if not any(_COPIES.search(name) for name in outside):
        return set()
    modules: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for p in evidence.parameters:
        parts = p.name.split(".")
        for i in range(1, len(parts)):
            modules[".".join(parts[:i])][".".join(parts[i:])] = p.shape
    missing, copies = set(outside), set()
    for module, inside in modules.items():
        names = {f"{module}.{name}" for name in inside}
        is_copy = _COPIES.search(module.rpartition(".")[2]) and sum(len(s) > 1 for s in inside.values()) >= _TWINS
        if is_copy and names <= missing and _has_trained_twin(modules, module, missing):
            copies |= names
    return copies


def _has_trained_twin(modules: Mapping[str, Mapping[str, tuple[int, ...]]], module: str, missing: set[str]) -> bool:
    return any(
        other != module and inside == modules[module] and not any(f"{other}.{name}" in missing for name in inside)
        for other, inside in modules.items()
    )


def _told_outside(evidence: Evidence, names: Sequence[str], severity: Severity) -> Iterator[Finding]:
    if names:
        kind = "copies in no optimizer" if severity == "info" else "parameters in no optimizer"
        yield Finding(
            rule=NAME,
            severity=severity,
            step=evidence.steps[-1],
            since_step=evidence.steps[0],
            parameters=tuple(names),
            value=float(len(names)),
            limit=0.0,
            unit=kind,
            saw=f"{len(names)} trainable {kind} (limit 0), since step {evidence.steps[0]}: {listed(names)}.",
            try_first="Give them to the optimizer in configure_optimizers, or freeze them.",
        )


def _unused(evidence: Evidence, steps: int) -> Iterator[Finding]:
    """Look for what an optimizer holds and no backward pass reached, while all steps since the start are remembered."""
    measured = ~np.isnan(evidence.norms)
    busy = int(measured.any(axis=1).sum())
    if busy < steps or len(evidence) >= evidence.window:
        return
    held = (~np.isnan(table(evidence, evidence.snapshots, "weight_norm"))).any(axis=0)
    never = held & ~measured.any(axis=0)
    if not never.any():
        return
    left_out = _experts(evidence, measured) | {*evidence.setup.outside, *evidence.setup.frozen}
    names = [name for name in named(evidence, never) if name not in left_out]
    if names:
        yield Finding(
            rule=NAME,
            severity="warning",
            step=evidence.steps[-1],
            since_step=evidence.steps[0],
            parameters=tuple(names),
            value=float(busy),
            limit=float(steps),
            unit="steps without any gradient",
            saw=(
                f"{len(names)} parameters had no gradient in any of {busy} steps (limit {steps}), since step "
                f"{evidence.steps[0]}, while others had one: {listed(names)}."
            ),
            try_first="Look for a layer that forward does not use, or that detach or no_grad cuts off.",
        )


def _experts(evidence: Evidence, measured: NDArray[np.bool_]) -> set[str]:
    """Return the parameters of experts that may be asked yet.

    Their like, numbers aside, have a gradient: in some steps only, or at all where they are called experts.
    """
    roles = [re.sub(r"\d+", "*", p.name) for p in evidence.parameters]
    share = measured.sum(axis=0) / max(int(measured.any(axis=1).sum()), 1)
    asked = {r for r, part in zip(roles, share, strict=True) if 0 < part < (2 if _EXPERTS.search(r) else 1)}
    return {p.name for p, role in zip(evidence.parameters, roles, strict=True) if role in asked}


def _unmoved(evidence: Evidence, snapshots: int, smallest: float) -> Iterator[Finding]:
    """Look for weights that steps with a gradient have never changed."""
    taken = took_a_step(evidence)
    if len(taken) < snapshots or evidence.first_snapshot is None:
        return
    weights = table(evidence, [evidence.first_snapshot, *taken], "weight_norm")
    same = (weights == weights[-1]).all(axis=0) & (table(evidence, taken, "update_norm") == 0).all(axis=0)
    if not same.any():
        return
    had_gradient = _should_move(evidence, taken, smallest)
    half = np.array([p.name in evidence.setup.half for p in evidence.parameters], dtype=bool)
    ill = same & (had_gradient.sum(axis=0) >= snapshots) & ~half
    names = named(evidence, ill)
    if names:
        is_all = bool(ill[had_gradient.any(axis=0)].all())
        yield Finding(
            rule=NAME,
            severity="critical" if is_all else "warning",
            step=evidence.steps[-1],
            since_step=taken[0].step,
            parameters=names,
            value=float(len(taken)),
            limit=float(snapshots),
            unit="steps that changed nothing",
            saw=(
                f"{len(names)} parameters have a gradient, and each of {len(taken)} measured steps (limit {snapshots}) "
                f"since step {taken[0].step} left them as they were: {listed(names)}."
            ),
            try_first="Look whether the optimizer was built from these very tensors, after the model was made.",
        )


def _should_move(evidence: Evidence, taken: Sequence[Snapshot], smallest: float) -> NDArray[np.bool_]:
    """Return where a step ought to show, shape ``[snapshots, P]``: a step below what float32 can add does not."""
    gradients, weights = table(evidence, taken, "grad_norm"), table(evidence, taken, "weight_norm")
    known = rates(evidence)
    rate = np.array([known[snapshot.step] for snapshot in taken])[:, None]
    roots = np.sqrt([p.numel for p in evidence.parameters])
    with np.errstate(invalid="ignore"):
        too_small = rate * np.minimum(gradients, roots) <= smallest * weights
    return np.asarray(np.isfinite(gradients) & (gradients > 0) & ~too_small)


RULE = Rule(name=NAME, check=check)
