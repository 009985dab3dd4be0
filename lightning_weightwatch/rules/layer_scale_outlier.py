"""One weight matrix far larger or smaller than those that do the same work.

What it sees:
    The root mean square of each weight matrix at the first snapshot, times the square root of its inputs (its gain).
    Peers are matrices whose names differ in numbers only, such as ``blocks.*.mlp.up.weight``, three at least; where the
    number stands right before the parameter's own name, as in a plain ``nn.Sequential``, they have the same shape too.
    A matrix is told if it lies more than ``decades`` from the median of peers that agree; without peers, if it lies
    more than ``alone`` decades from the median of all matrices. An audit looks at what was drawn in the same way.

Why it matters:
    A signal that passes a layer a hundred times too large saturates or explodes behind it, and its gradient does on the
    way back. One that is a hundred times too small drowns in what comes with it, and hardly anything behind it learns.

When it is not a problem:
    It is a ``warning`` where the first loss is far above that of a guess, or where the loss does not fall; ``info``
    while it does, or where nobody can tell. In an audit it is ``info`` too where weights were trained before. Matrices
    that are zero, embeddings, norms, biases and free parameters are left out, and peers that differ among each other
    have no usual size. Without peers, a small matrix that makes the output is no fault: many heads begin so on purpose.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch.evidence import Evidence, Floats, Initial, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._initials import as_code, as_initial, forward_matrices
from lightning_weightwatch.rules._learning import learns
from lightning_weightwatch.rules._pace import table
from lightning_weightwatch.rules._start import began_high, begins_high
from lightning_weightwatch.rules._units import outputs
from lightning_weightwatch.rules._words import listed

NAME = "layer_scale_outlier"
_KINDS = ("linear", "convolution", "recurrent", "attention")
_PEERS = 3
_AGREE = 0.3  # decades between the median peer and the median: they have a usual size


class Matrix(Protocol):
    """What is asked of a matrix."""

    @property
    def name(self) -> str:
        """The parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its whole shape."""


@dataclass(frozen=True)
class _Outliers:
    """Matrices far from the others: from their peers, or without peers from all.

    Attributes:
        names: The matrices.
        worst: The name of the one that is farthest.
        away: By how many decades that is, with its sign.
        usual: The root mean square that the others would have in its place.
        limit: What that was held against.
        others: Whom they were held against, in words.
        have_peers: Whether these are peers.
    """

    names: tuple[str, ...]
    worst: str
    away: float
    usual: float
    limit: float
    others: str
    have_peers: bool

    def finding(self, severity: Severity, steps: tuple[int, int], when: str, try_first: str) -> Finding:
        """Tell them."""
        return Finding(
            rule=NAME,
            severity=severity,
            step=steps[0],
            since_step=steps[1],
            parameters=self.names,
            value=abs(self.away),
            limit=self.limit,
            unit=f"decades from the median of {self.others}",
            saw=(
                f"{when} the weights of {listed(self.names)} are up to {10 ** abs(self.away):.3g} times too "
                f"{'large' if self.away > 0 else 'small'} for {self.others}: {abs(self.away):.1f} decades from their "
                f"median (limit {self.limit:g})."
            ),
            try_first=try_first,
        )


def check(
    subject: Evidence | Initial | Sequence[Verdict],
    *,
    decades: float = 1.0,
    alone: float = 1.7,
    ordinary: float = 3.0,
    steps: int = 20,
) -> Iterator[Finding]:
    """Look at the first snapshot or at what was drawn, and at the loss for how much it matters."""
    if isinstance(subject, Evidence):
        yield from _in_training(subject, (decades, alone), ordinary, steps)
    else:
        yield from _at_the_start(as_initial(subject), (decades, alone), ordinary)


def _at_the_start(initial: Initial, limits: tuple[float, float], ordinary: float) -> Iterator[Finding]:
    if not initial.is_drawn:
        return
    drawn = [v for v in forward_matrices(initial) if v.kind in _KINDS and v.std is not None and _is_scaled(v)]
    sizes = np.array([math.hypot(v.std or 0.0, v.mean or 0.0) for v in drawn])
    feeding = {layer.name for layer in (initial.signal.layers if initial.signal else ()) if layer.feeds_loss}
    heads = np.array([v.name in feeding or v is drawn[-1] for v in drawn], dtype=bool)
    severity: Severity = "warning" if begins_high(initial, ordinary) and not initial.pretrained else "info"
    for found in _outliers(drawn, sizes, heads, limits):
        line = f"nn.init.normal_({as_code(found.worst)}, std={found.usual:.2g})"
        yield found.finding(severity, (0, 0), "At the start", f"Initialise these layers as the others are: {line}.")


def _is_scaled(verdict: Verdict) -> bool:
    """Whether its size tells how it was scaled: that of a constant does not, nor that of what is broken."""
    return verdict.constant is None and not verdict.nonfinite


def _in_training(evidence: Evidence, limits: tuple[float, float], ordinary: float, steps: int) -> Iterator[Finding]:
    first = evidence.first_snapshot
    if first is None or not len(evidence):
        return
    columns = [i for i in evidence.matrices if evidence.parameters[i].kind in _KINDS and evidence.parameters[i].shape]
    watched = [evidence.parameters[i] for i in columns]
    roots = np.sqrt([max(matrix.numel, 1) for matrix in watched])
    last = outputs(evidence)
    heads = np.array([matrix.layer in last for matrix in watched], dtype=bool)
    for found in _outliers(watched, table(evidence, [first], "weight_norm")[0, columns] / roots, heads, limits):
        severity = _severity(evidence, ordinary, 0 if found.have_peers else steps)
        told = evidence.steps[-1], min(first.step, evidence.steps[-1])
        yield found.finding(severity, told, f"At step {first.step}", "Initialise these layers as the others are.")


def _outliers(
    matrices: Sequence[Matrix], sizes: Floats, heads: NDArray[np.bool_], limits: tuple[float, float]
) -> Iterator[_Outliers]:
    """Find those that are far from their peers, then those that are far from all; a small head is none.

    Args:
        matrices: The matrices.
        sizes: The root mean square of each.
        heads: Which of them make an output.
        limits: How far is too far, in decades: from peers, and without peers.
    """
    gains = _log_gains(sizes, matrices)
    away, has_peers = _away(gains, matrices)
    small_head = heads & (away < 0)
    for beyond, limit, others, have_peers in (
        (has_peers & (np.abs(away) > limits[0]), limits[0], "its peers", True),
        (~has_peers & ~small_head & (np.abs(away) > limits[1]), limits[1], "the matrices of the network", False),
    ):
        if beyond.any():
            worst = int(np.argmax(np.where(beyond, np.abs(away), 0.0)))
            names = tuple(matrix.name for matrix, is_ill in zip(matrices, beyond, strict=True) if is_ill)
            usual = float(sizes[worst] / 10 ** away[worst])
            yield _Outliers(names, matrices[worst].name, float(away[worst]), usual, limit, others, have_peers)


def _severity(evidence: Evidence, ordinary: float, wait: int) -> Severity:
    known = int(np.count_nonzero(~np.isnan(evidence.losses)))
    suffers = learns(evidence) is False and known >= wait
    return "warning" if suffers or began_high(evidence, ordinary) else "info"


def _log_gains(sizes: Floats, matrices: Sequence[Matrix]) -> Floats:
    """Return log10 of each matrix's root mean square times the root of its inputs; NaN for zeros and the unknown."""
    inputs = np.array([math.prod(matrix.shape[1:]) for matrix in matrices])
    usable = np.isfinite(sizes) & (sizes > 0)
    return np.asarray(np.log10(np.where(usable, sizes, 1.0)) + np.log10(inputs) / 2 + np.where(usable, 0.0, np.nan))


def _away(gains: Floats, matrices: Sequence[Matrix]) -> tuple[Floats, NDArray[np.bool_]]:
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


RULE = Rule(name=NAME, check=check, subject="both")
