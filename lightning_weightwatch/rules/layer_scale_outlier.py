"""One weight matrix far larger or smaller than those that do the same work.

What it sees:
    The root mean square of each weight matrix at the first snapshot, times the square root of its inputs (its gain).
    Peers are matrices whose names differ in numbers only, such as ``blocks.*.mlp.up.weight``, three at least; where the
    number stands right before the parameter's own name, as in a plain ``nn.Sequential``, they have the same shape too.
    A matrix is told if it lies more than ``decades`` from the median of peers that agree; without peers, if it lies
    more than ``alone`` decades from the median of all matrices.

Why it matters:
    A signal that passes a layer a hundred times too large saturates or explodes behind it, and its gradient does on the
    way back. One that is a hundred times too small drowns in what comes with it, and hardly anything behind it learns.

When it is not a problem:
    It is a ``warning`` where the first loss is far above that of a guess, or where the loss does not fall; ``info``
    while it does, or where nobody can tell. Matrices that are zero, embeddings, norms, biases and free parameters are
    left out, and peers that differ among each other have no usual size. Without peers, a small matrix that makes the
    output is no fault: many heads begin so on purpose.

Limits:
    decades: 1. Healthy peers were within a factor of 1.1, planted faults at 70 to 1000.
    alone: 1.7 decades, fifty times. Initialisations in use differ by up to ten in gain. Our choice.
    ordinary: 3.0 times the loss of a guess is too high a first loss. Our choice.
    steps: 20 losses before it counts that the loss does not fall, where there are no peers. Our choice.

What to try:
    Initialise that layer as its peers are; look for a factor applied twice, and for a copied or half-loaded weight.

References:
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    Mishkin and Matas, All you need is a good init, 2016, arXiv:1511.06422.

Example:
    >>> import numpy as np
    >>> from lightning_weightwatch.evidence import Evidence, Snapshot, Watched
    >>> layers = [Watched(f"blocks.{i}.mlp.weight", 64, True, i, shape=(8, 8)) for i in range(4)]
    >>> sick, well = Evidence(layers), Evidence(layers)
    >>> for evidence, third in ((sick, 300.0), (well, 3.1)):
    ...     norms = {"weight_norm": np.array([3.0, 2.9, third, 3.0])}
    ...     evidence.add_snapshot(Snapshot(0, tuple(p.name for p in layers), norms))
    ...     for step in range(20):
    ...         evidence.add(step, [1.0] * 4, loss=2.3)
    >>> RULE(sick)[0].parameters
    ('blocks.2.mlp.weight',)
    >>> RULE(well)
    ()
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch.evidence import Evidence, Floats, Watched
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._pace import table
from lightning_weightwatch.rules._start import began_high
from lightning_weightwatch.rules._units import outputs
from lightning_weightwatch.rules._words import listed

NAME = "layer_scale_outlier"
_KINDS = ("linear", "convolution", "recurrent", "attention")
_PEERS = 3
_AGREE = 0.3  # decades between the median peer and the median: they have a usual size


def check(
    evidence: Evidence, *, decades: float = 1.0, alone: float = 1.7, ordinary: float = 3.0, steps: int = 20
) -> Iterator[Finding]:
    """Look at the first snapshot, and at the loss for how much it matters."""
    first = evidence.first_snapshot
    if first is None or not len(evidence):
        return
    columns = [i for i in evidence.matrices if evidence.parameters[i].kind in _KINDS and evidence.parameters[i].shape]
    matrices = [evidence.parameters[i] for i in columns]
    gains = _log_gains(table(evidence, [first], "weight_norm")[0, columns], matrices)
    away, has_peers = _away(gains, matrices)
    last = outputs(evidence)
    small_head = np.array([matrix.layer in last for matrix in matrices], dtype=bool) & (away < 0)
    for beyond, limit, others, wait in (
        (has_peers & (np.abs(away) > decades), decades, "its peers", 0),
        (~has_peers & ~small_head & (np.abs(away) > alone), alone, "the matrices of the network", steps),
    ):
        if beyond.any():
            ill = [matrix.name for matrix, is_ill in zip(matrices, beyond, strict=True) if is_ill]
            worst = float(away[beyond][np.argmax(np.abs(away[beyond]))])
            yield Finding(
                rule=NAME,
                severity=_severity(evidence, ordinary, wait),
                step=evidence.steps[-1],
                since_step=min(first.step, evidence.steps[-1]),
                parameters=tuple(ill),
                value=abs(worst),
                limit=limit,
                unit=f"decades from the median of {others}",
                saw=(
                    f"At step {first.step} the weights of {listed(ill)} are up to {10 ** abs(worst):.3g} times too "
                    f"{'large' if worst > 0 else 'small'} for {others}: {abs(worst):.1f} decades from their median "
                    f"(limit {limit:g})."
                ),
                try_first="Initialise these layers as the others are.",
            )


def _severity(evidence: Evidence, ordinary: float, wait: int) -> Severity:
    known = int(np.count_nonzero(~np.isnan(evidence.losses)))
    suffers = learns(evidence) is False and known >= wait
    return "warning" if suffers or began_high(evidence, ordinary) else "info"


def _log_gains(norms: Floats, matrices: list[Watched]) -> Floats:
    """Return log10 of each matrix's root mean square times the root of its inputs; NaN for zeros and the unknown."""
    inputs = np.array([math.prod(matrix.shape[1:]) / max(matrix.numel, 1) for matrix in matrices])
    usable = np.isfinite(norms) & (norms > 0)
    return np.asarray(np.log10(np.where(usable, norms, 1.0)) + np.log10(inputs) / 2 + np.where(usable, 0.0, np.nan))


def _away(gains: Floats, matrices: list[Watched]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return how far each matrix is from its peers' median, or where it has none from that of all; and if it has."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for i, matrix in enumerate(matrices):
        if not np.isnan(gains[i]):
            groups.setdefault(_role(matrix.name, matrix.shape), []).append(i)
    away, has_peers = np.full(len(gains), np.nan), np.zeros(len(gains), dtype=bool)
    known = gains[~np.isnan(gains)]
    if len(known) >= _PEERS:
        away = gains - np.median(known)
    for members in groups.values():
        if len(members) >= _PEERS:
            apart = gains[members] - median(gains[members])
            has_peers[members] = True
            away[members] = apart if median(np.abs(apart)) < _AGREE else np.nan
    return away, has_peers


@lru_cache(maxsize=4096)  # asked at every judgement, of the same names
def _role(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return what peers share: the name with its numbers wildcarded; the shape, where a number is all that differs."""
    layer = name.split(".")[-2:-1]
    is_index = bool(layer and re.search(r"\d", layer[0]))
    return re.sub(r"\d+", "*", name), shape if is_index else ()


RULE = Rule(name=NAME, check=check)
