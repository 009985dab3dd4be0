"""Which activations were heard after which layer, and which layers have units that no gradient reaches."""

from __future__ import annotations

import numpy as np

from lightning_weightwatch.evidence import Activation, Evidence
from lightning_weightwatch.rules._runs import start_of_last_run
from lightning_weightwatch.rules._zeros import last_order, order, zero_matrices

_SATURATED = 0.6  # of the elements: then it is the flat ends that stop the gradient


def layers_of(evidence: Evidence) -> list[str]:
    """Return for each parameter the layer whose output its units are: its own, or for a norm the one before it."""
    own = {evidence.parameters[i].layer for i in evidence.matrices}
    order = sorted(range(len(evidence.parameters)), key=lambda i: evidence.parameters[i].place)
    layers, before = [""] * len(order), ""
    for i in order:
        layer = evidence.parameters[i].layer
        before = layer if layer in own else before
        layers[i] = before or layer
    return layers


def heard_after(evidence: Evidence) -> dict[str, list[tuple[int, Activation]]]:
    """Return, by layer, the activations that took its output, each with the step of its pass."""
    found: dict[str, list[tuple[int, Activation]]] = {}
    for heard in evidence.listened:
        for a in heard.activations:
            if a.after:
                found.setdefault(a.after.rpartition(".")[0], []).append((heard.step, a))
    return found


def outputs(evidence: Evidence) -> set[str]:
    """Return the layers whose output a loss takes, and the last one."""
    last = [evidence.parameters[i].layer for i in evidence.matrices[-1:]]
    return {*last, *(call.after.rpartition(".")[0] for heard in evidence.listened for call in heard.losses)}


def dead_parameters(evidence: Evidence, *, share: float, agree: float = 0.5) -> dict[int, int]:
    """Return the columns of which more than a share of the units had no gradient, by a fault of their own layer.

    What was heard after the layer since then must agree. Where nothing was heard, an output layer is let off, a matrix
    that may be a table of vectors, and a layer without any gradient while those before it have one: that is an expert
    or a branch that is not asked.

    Args:
        evidence: The evidence, with at least one reading of dead units.
        share: Of units, 0 to 1.
        agree: Of that share, how much must be silent in what was heard.

    Returns:
        For each column the reading with which that began.
    """
    reading = evidence.dead[-1]
    suspects = [int(i) for i in np.flatnonzero(reading.share > share)]
    if not suspects:
        return {}
    shares = np.array([r.share for r in evidence.dead])
    last_zero = last_order(evidence, zero_matrices(evidence))
    layers, last, after = layers_of(evidence), outputs(evidence), heard_after(evidence)
    found = {}
    for i in suspects:
        parameter, begin = evidence.parameters[i], start_of_last_run(shares[:, i] > share)
        frozen = np.isnan(evidence.norms[-reading.steps :, i]).all()
        if frozen or parameter.kind == "embedding" or order(evidence, i) < last_zero or _cancels(evidence, i):
            continue
        since = evidence.dead[begin].step - reading.steps + 1
        heard = [a for step, a in after.get(layers[i], []) if step >= since]
        dead = [a.dead for a in heard if np.isfinite(a.dead)]
        let_off = layers[i] in last or parameter.kind == "other" or is_bypassed(evidence, i)
        agrees = np.median(dead) >= agree * reading.share[i] if dead else not let_off
        if agrees and not any(a.saturated > _SATURATED for a in heard):
            found[i] = begin
    return found


def _cancels(evidence: Evidence, column: int) -> bool:
    """Whether a bias has no gradient though the weight beside it has one: what comes back adds up to nothing.

    So it is in a critic, whose output counts once with a plus and once with a minus.
    """
    reading, layer = evidence.dead[-1], evidence.parameters[column].layer
    beside = [i for i in evidence.matrices if i != column and evidence.parameters[i].layer == layer]
    return reading.share[column] == 1 and bool((evidence.norms[-reading.steps :, beside] > 0).any())


def silent_after(evidence: Evidence, column: int, since: int) -> list[float]:
    """Return the shares of silent units heard after a parameter's layer since a step, the largest first."""
    layer = layers_of(evidence)[column]
    heard = [a.dead for step, a in heard_after(evidence).get(layer, []) if step >= since]
    return sorted((share for share in heard if np.isfinite(share)), reverse=True)


def is_bypassed(evidence: Evidence, column: int) -> bool:
    """Whether a layer had no gradient at all at the last reading while a matrix before it had one."""
    reading, matrices = evidence.dead[-1], evidence.matrices
    alive = (evidence.norms[-reading.steps :, matrices] > 0).any(axis=0)
    if reading.share[column] < 1 or not alive.any():
        return False
    first = matrices[int(np.argmax(alive))]
    is_before = order(evidence, first) < order(evidence, column)
    return is_before and evidence.parameters[first].layer != evidence.parameters[column].layer
