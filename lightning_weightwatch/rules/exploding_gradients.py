"""Gradients that grow until a step destroys what was learnt.

What it sees:
    Four forms, each only while the loss is not below nine tenths of its start. Growth: the global gradient norm of
    the last five steps (median) is ``growth`` decades above the calmest ``steps`` steps before them and ten times the
    run's first, and the loss is back at or above its start. Level: in each of the last ``steps`` steps the global norm
    is above ``level``, and above a tenth of that times the square root of the loss, or broke after it was. Depth: the
    depth profile falls by more than ``decades``, so the first layers get the largest gradients. And the same of the
    biases of linear layers, where the loss is known not to fall.

Why it matters:
    A step of SGD moves a weight in proportion to its gradient: steps become larger than the weights, the loss jumps,
    and the next gradients are larger still, up to Inf.

When it is not a problem:
    While the loss falls, large gradients are only a matter of scale (a summed loss, targets in large units). A run
    that converged far may see its tiny gradients grow a hundredfold in one bad batch. Gradients are judged before
    clipping, so a clipped run may be told although each step is bounded.

Limits:
    growth: 2 decades, or 4 where the loss is unknown or need not fall. Healthy runs grow as much only in a bad batch
        after they have converged. Our choice.
    level: 1e4. Healthy runs began at 390 at most (targets in large units); exploding ones reached up to 1e12.
    decades: 3. Healthy depth profiles stayed within 1.8.
    r_squared: 0.55, of at least ``matrices`` (5) matrices, and more than a single step between two levels explains:
        neither an odd layer nor two networks side by side are a trend. Our choice.
    steps: 10, so that a single batch decides nothing. Our choice.
    falling: 0.9. The loss counts as falling once it is below nine tenths of its start. Our choice.

What to try:
    A smaller learning rate or a warm-up where gradients grew during training; an initialisation made for the
    activation, or normalised inputs, where they were large from the first step; clipping for recurrent networks.

References:
    Pascanu et al., On the difficulty of training recurrent neural networks, 2013, arXiv:1211.5063.
    Philipp et al., The exploding gradient problem demystified, 2017, arXiv:1712.05577.

Example:
    >>> from lightning_weightwatch.evidence import Evidence, Watched
    >>> sick, well = Evidence([Watched("fc.weight", 1, True)]), Evidence([Watched("fc.weight", 1, True)])
    >>> for step in range(30):
    ...     sick.add(step, [10.0 ** (step / 5)], loss=2.3 + step)
    ...     well.add(step, [1.0], loss=2.3 - step / 20)
    >>> RULE(sick)[0].severity
    'critical'
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._profile import Profile, bias_columns, depth_profile, steep_since
from lightning_weightwatch.rules._robust import last_of, medians, must_fall
from lightning_weightwatch.rules._runs import start_of_last_run
from lightning_weightwatch.rules._words import listed

NAME = "exploding_gradients"
_NOW = 5  # steps whose median is the present
_LARGER = 10.0  # times the run's first norm: one that converged and comes back to where it began does not explode


def check(
    evidence: Evidence,
    *,
    growth: float = 2.0,
    level: float = 1e4,
    decades: float = 3.0,
    r_squared: float = 0.55,
    matrices: int = 5,
    steps: int = 10,
    falling: float = 0.9,
) -> Iterator[Finding]:
    """Look for growth, then for level, then at the depth profile; tell the first that holds."""
    learning = learns(evidence, falling=falling)
    if len(evidence) < steps or evidence.loss_ratio() < falling or learning:
        return
    found = _grown(evidence, growth, steps) or _high(evidence, level, steps)
    if found is None:
        profile = depth_profile(evidence, steps=2 * steps, matrices=matrices)
        found = _steep(evidence, profile, decades, r_squared)
    if found is None and learning is False:
        profile = depth_profile(evidence, steps=2 * steps, matrices=matrices, columns=_linear_biases(evidence))
        found = _steep(evidence, profile, decades, r_squared, " of the biases")
    yield from [found] if found is not None else []


def _grown(evidence: Evidence, growth: float, steps: int) -> Finding | None:
    norms = np.where(np.isfinite(evidence.global_norm), evidence.global_norm, np.nan)
    ratio = evidence.loss_ratio(_NOW)
    if len(norms) < steps + _NOW or ratio < 1.0:
        return None
    if np.isnan(ratio) or not must_fall(evidence):  # such a loss cannot speak against it: gradients must speak louder
        growth *= 2
    before, last = np.lib.stride_tricks.sliding_window_view(norms[:-_NOW], steps), last_of(norms[-_NOW:], _NOW)
    counts = np.isfinite(before).sum(axis=1)
    calm = float(medians(before, counts).min()) if counts.all() else 0.0
    now = float(np.median(last)) if last.size else 0.0
    if calm <= 0 or now <= _LARGER * _start(evidence) or np.log10(now / calm) < growth:
        return None
    above = norms > calm * 10**growth
    since = evidence.steps[start_of_last_run(above)]
    return Finding(
        rule=NAME,
        severity="critical",
        step=evidence.steps[-1],
        since_step=since,
        parameters=_largest(evidence),
        value=float(np.log10(now / calm)),
        limit=growth,
        unit="decades above the calmest steps",
        saw=(
            f"The global gradient norm grew from {calm:.1e} to {now:.1e}, {np.log10(now / calm):.1f} decades (limit "
            f"{growth:.1f}), since step {since}{_and_the_loss(evidence)}. "
            f"Largest: {listed(_largest(evidence))}."
        ),
        try_first="Divide the learning rate by 10, or add a warm-up.",
    )


def _start(evidence: Evidence) -> float:
    """Return the global norm of the run's first full statistics; 0 if there are none."""
    norms = np.array(list(evidence.first_snapshot.column("grad_norm").values()) if evidence.first_snapshot else [])
    return float(np.sqrt(np.sum(norms[np.isfinite(norms)] ** 2)))


def _high(evidence: Evidence, level: float, steps: int) -> Finding | None:
    norms, losses = evidence.global_norm, evidence.losses
    # A regression on targets in large units has a large loss and, with it, large gradients: of the size of its root.
    known = np.where(np.isfinite(losses), np.maximum(losses, 1.0), 1.0)
    high = np.isfinite(norms) & (norms > np.maximum(level, level / 10 * np.sqrt(known)))
    high |= np.isinf(norms) & (np.cumsum(high) > 0)  # once they were, what broke of it
    if not high[-steps:].all():
        return None
    begin = start_of_last_run(high)
    since, in_a_row = evidence.steps[begin], len(high) - begin
    typical = float(np.median(norms[begin:][np.isfinite(norms[begin:])]))
    return Finding(
        rule=NAME,
        severity="critical",
        step=evidence.steps[-1],
        since_step=since,
        parameters=_largest(evidence),
        value=typical,
        limit=level,
        unit="global gradient norm",
        saw=(
            f"The global gradient norm was above {level:.0e} in each of the last {in_a_row} steps (median "
            f"{typical:.1e}), since step {since}{_and_the_loss(evidence)}. "
            f"Largest: {listed(_largest(evidence))}."
        ),
        try_first="Check the initialisation of these layers, and that inputs and targets are normalised.",
    )


def _steep(
    evidence: Evidence, profile: Profile | None, decades: float, r_squared: float, of: str = ""
) -> Finding | None:
    if profile is None or not profile.is_trend or profile.r_squared <= r_squared or -profile.decades <= decades:
        return None
    high = profile.log_rms > profile.log_rms.min() + decades
    steep = [name for name, is_high in zip(profile.names, high, strict=True) if is_high]
    layers = {name.rpartition(".")[0] for name in steep}
    matrices = [evidence.parameters[i] for i in evidence.matrices]
    ill = tuple(p.name for p in matrices if p.layer in layers) if of else tuple(steep)
    if not ill:  # the line through a single step is steeper than the step
        return None
    since = steep_since(evidence, profile, decades)
    return Finding(
        rule=NAME,
        severity="warning",
        step=profile.last_step,
        since_step=since,
        parameters=ill,
        value=-profile.decades,
        limit=decades,
        unit=f"decades{of} from the last layer to the first",
        saw=(
            f"Gradient RMS{of} grows by {-profile.decades:.1f} decades from the last layer to the first (limit "
            f"{decades:.1f}), over steps {since} to {profile.last_step}. Largest: {listed(ill)}."
        ),
        try_first="Lower the initial weights' gain, or normalise between the layers.",
    )


def _linear_biases(evidence: Evidence) -> list[int]:
    """Return the biases of linear layers, in forward order."""
    linear = {p.layer for p in evidence.parameters if p.kind == "linear" and p.is_matrix}
    return [i for i in bias_columns(evidence) if evidence.parameters[i].layer in linear]


def _and_the_loss(evidence: Evidence) -> str:
    return "" if np.isnan(evidence.loss_ratio()) else ", and the loss does not fall"


def _largest(evidence: Evidence) -> tuple[str, ...]:
    """Name the parameters that together make nine tenths of the present squared global norm, in forward order."""
    squares = np.median(np.where(np.isfinite(evidence.norms[-_NOW:]), evidence.norms[-_NOW:], 0.0), axis=0) ** 2
    order = np.argsort(-squares)
    enough = int(np.searchsorted(np.cumsum(squares[order]), 0.9 * squares.sum())) + 1
    return tuple(evidence.parameters[i].name for i in sorted(order[:enough]))


RULE = Rule(name=NAME, check=check)
