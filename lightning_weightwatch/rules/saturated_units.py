"""Activations at the flat ends of tanh or sigmoid, where a layer neither changes nor passes gradients on.

What it sees:
    The share of a layer's activations at the flat ends (beyond 0.97 of tanh's range, 0.03 from the ends of sigmoid's),
    in the forward passes that were listened to: more than ``saturated`` in each of the last two or more that used it.
    Only activations between the layers count, not those of the last layer or those that a loss takes.

Why it matters:
    The slope of tanh is below 0.06 there, and that of sigmoid below 0.03, so each such layer takes most of the gradient
    away from all layers before it. Large weights, or inputs that are not normalised, put a layer there at the start;
    too large a learning rate does it later.

When it is not a problem:
    While the loss falls, or cannot tell, it is ``info``. Outputs of classifiers that are right are saturated. Gates
    are meant to saturate as they learn: where other activations are used too, sigmoids count only if they were
    saturated from the first pass on. A first layer saturated by its inputs is told by ``input_scale``, here as ``info``
    only. A softmax is not judged.

Limits:
    saturated: 0.6. Healthy layers are seldom beyond it, but for first layers on inputs that are not normalised.
    nearly_all: 0.85, told as critical where the gradient of the layer, or of one before it, is also below ``faded``.
    faded: 0.01 of its first value, or of the largest of the matrices behind. Our choice.
    passes: 2 passes in a row at least. Our choice.
    falling: 0.9. The loss counts as falling once it is below nine tenths of its start. Our choice.

What to try:
    Normalised inputs, smaller initial weights (a gain of 5/3 for tanh, 1 for sigmoid), normalisation before the
    activation, or ReLU in its place.

References:
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    Rakitianskaia and Engelbrecht, Measuring Saturation in Neural Networks, 2015.

Example:
    >>> from lightning_weightwatch.evidence import Activation, Evidence, Listened, LossCall, Watched
    >>> layers = [Watched(f"fc{i}.weight", 64, True) for i in (1, 2, 3)]
    >>> sick, well = Evidence(layers), Evidence(layers)
    >>> for evidence, share, std in ((sick, 0.9, 20.0), (well, 0.1, 1.0)):
    ...     for step in range(20):
    ...         evidence.add(step, [0.1, 0.2, 0.1], loss=2.3)
    ...     for step in (0, 10):
    ...         after = Activation("tanh", "fc2.weight", 8, saturated=share, std=std)
    ...         evidence.add_reading(Listened(step, (after,), (LossCall("cross_entropy", "fc3.weight"),)))
    >>> RULE(sick)[0].parameters, RULE(sick)[0].severity
    (('fc2.weight',), 'warning')
    >>> RULE(well)
    ()
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_weightwatch.evidence import Activation, Evidence, Floats
from lightning_weightwatch.rules._base import SEVERITIES, Finding, Rule, Severity
from lightning_weightwatch.rules._inputs import off_scale
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._runs import start_of_last_run
from lightning_weightwatch.rules._units import outputs
from lightning_weightwatch.rules._words import listed

NAME = "saturated_units"
_GATES = {"sigmoid", "hardsigmoid"}
_NORMALISERS = {"softmax", "log_softmax"}
_NORMALISE = "Normalise the inputs, which put the first layer there."
_LESS = "Draw these weights with a smaller gain, or normalise before the activation."
_RECENT = 4  # passes, one of which uses every layer that is still in use
_NOW = 10  # steps whose median is the present


@dataclass(frozen=True)
class _Layer:
    """A layer in all passes that used it.

    Attributes:
        after: The parameter whose output it takes.
        function: Its activation function.
        steps: The passes.
        shares: The share of saturated elements in each.
        stds: The spread of what goes in.
    """

    after: str
    function: str
    steps: list[int]
    shares: Floats
    stds: Floats


def check(
    evidence: Evidence,
    *,
    saturated: float = 0.6,
    nearly_all: float = 0.85,
    faded: float = 0.01,
    passes: int = 2,
    falling: float = 0.9,
) -> Iterator[Finding]:
    """Look at the last passes of each layer; a first layer on inputs that are off scale is a note."""
    ill = [layer for layer in _hidden(evidence, saturated) if len(layer.steps) - _begin(layer, saturated) >= passes]
    if not ill or not len(evidence):
        return
    first = {evidence.parameters[i].name for i in evidence.matrices[:1]}
    by_inputs = first if any(one.matters for one in off_scale(evidence)) else set()
    own = [layer for layer in ill if layer.after not in by_inputs]
    fallen = _faded(evidence, faded) if own else set()
    worst = [layer for layer in own if layer.shares[-1] > nearly_all and layer.after in fallen]
    limit, severity = (nearly_all, SEVERITIES[2]) if worst else (saturated, SEVERITIES[1])
    if not own or learns(evidence, falling=falling) is not False:
        limit, severity = saturated, SEVERITIES[0]
    yield _finding(evidence, own or ill, severity, (limit, saturated), _LESS if own else _NORMALISE)


def _begin(layer: _Layer, saturated: float) -> int:
    return start_of_last_run(layer.shares > saturated)


def _hidden(evidence: Evidence, saturated: float) -> list[_Layer]:
    """Return the hidden layers that were saturated in the last pass; gates, only if they always were."""
    recent = [a for heard in evidence.listened[-_RECENT:] for a in heard.activations]
    others = {a.function for a in recent if not a.feeds_loss} - _GATES - _NORMALISERS
    last = {"", *outputs(evidence)}
    suspects = {(a.after, a.function) for a in recent if a.saturated > saturated}
    layers = _layers(evidence, {key for key in suspects if key[0].rpartition(".")[0] not in last})
    return [
        layer
        for layer in layers
        if layer.shares[-1] > saturated
        and not (layer.function in _GATES and others and (layer.shares <= saturated).any())
    ]


def _layers(evidence: Evidence, keys: set[tuple[str, str]]) -> list[_Layer]:
    """Return layers, by parameter and function, in all passes; in each, the median of a layer's calls counts."""
    calls: dict[tuple[str, str], dict[int, list[Activation]]] = {}
    for heard in evidence.listened if keys else ():
        for a in heard.activations:
            if (a.after, a.function) in keys and not a.feeds_loss:
                calls.setdefault((a.after, a.function), {}).setdefault(heard.step, []).append(a)
    return [
        _Layer(
            after,
            function,
            list(passes),
            np.array([_middle([a.saturated for a in same]) for same in passes.values()]),
            np.array([_middle([a.std for a in same]) for same in passes.values()]),
        )
        for (after, function), passes in calls.items()
    ]


def _middle(values: list[float]) -> float:
    return values[0] if len(values) == 1 else float(np.median(values))


def _faded(evidence: Evidence, faded: float) -> set[str]:
    """Return the matrices up to which some gradient is small beside its first, or beside those behind."""
    matrices = [evidence.parameters[i] for i in evidence.matrices]
    norms = np.array([_median(evidence.norms[-_NOW:, i]) for i in evidence.matrices])
    first = evidence.first_snapshot.column("grad_norm") if evidence.first_snapshot else {}
    shrunk = norms < faded * np.array([first.get(p.name, 0.0) for p in matrices])
    rms = np.nan_to_num(norms) / np.array([p.numel**0.5 for p in matrices])
    largest = np.append(np.maximum.accumulate(rms[::-1])[::-1][1:], 0.0)  # of those behind each
    least = np.fmin.accumulate(np.where(np.isnan(norms), np.inf, rms))  # of those up to each
    fallen = np.logical_or.accumulate(shrunk) | (least < faded * largest)
    return {p.name for p, has_fallen in zip(matrices, fallen, strict=True) if has_fallen}


def _median(norms: Floats) -> float:
    finite = norms[np.isfinite(norms)]
    return float(np.median(finite)) if finite.size else float("nan")


def _finding(
    evidence: Evidence, told: list[_Layer], severity: Severity, limits: tuple[float, float], try_first: str
) -> Finding:
    limit, saturated = limits
    names = [evidence.parameters[i].name for i in evidence.matrices]
    told = sorted(told, key=lambda layer: names.index(layer.after) if layer.after in names else len(names))
    worst = max(told, key=lambda layer: layer.shares[-1])
    since = min(layer.steps[_begin(layer, saturated)] for layer in told)
    return Finding(
        rule=NAME,
        severity=severity,
        step=max(evidence.steps[-1], since),
        since_step=since,
        parameters=tuple(dict.fromkeys(layer.after for layer in told)),
        value=float(worst.shares[-1]),
        limit=limit,
        unit="share of activations at the flat ends",
        saw=(
            f"{worst.shares[-1]:.0%} of the {worst.function} outputs after {worst.after} are at its flat ends (limit "
            f"{limit:.0%}), since step {since}: what goes in has a standard deviation of {worst.stds[-1]:.2g}. So it "
            f"is after {listed([layer.after for layer in told])}."
        ),
        try_first=try_first,
    )


RULE = Rule(name=NAME, check=check)
