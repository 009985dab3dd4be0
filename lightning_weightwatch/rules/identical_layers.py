"""Weight matrices that hold the same numbers: layers that were copied, not drawn.

What it sees:
    Trainable matrices of one shape with the same elements, drawn at random, which are not one tensor. It is a note
    where their gradients differ, or where no batch has told, and a warning where they have the same gradient as well,
    and where known the same output.

Why it matters:
    Layers in series that begin alike part in the first step, but begin with less variety than the model was meant to
    have. Layers side by side (experts, heads, two critics) whose outputs are added, averaged or compared with one
    target get the same gradient in every step: they stay one layer, paid for several times. Four experts that were
    averaged were the same bit by bit after 200 steps of SGD and of Adam, and so were two critics. Behind a router drawn
    at random, and in series, they had parted.

When it is not a problem:
    A target network or a teacher is a copy on purpose: what is frozen, or gets no gradient from the first batch, is
    left out. Constant matrices and identities are alike by design, tied ones are one tensor, and trained layers may
    have been stacked twice.

Limits:
    copies: 2. So many that hold the same numbers.
    alike: 1e-5. Gradients count as the same within this share of themselves, which rounding may make.

What to try:
    Draw the copies anew. ``copy.deepcopy`` makes them, and so does ``nn.TransformerEncoder`` of its one prototype:
    ``nn.Transformer`` therefore draws all its matrices by Xavier's formula once it is built.

References:
    Goodfellow et al., Deep Learning, 2016, section 8.4: Parameter Initialization Strategies.
    Fujimoto et al., Addressing Function Approximation Error in Actor-Critic Methods, 2018, arXiv:1802.09477: two
    critics that must differ.

Example:
    >>> from types import SimpleNamespace
    >>> def layer(name, content):
    ...     return SimpleNamespace(name=name, shape=(8, 8), kind="linear", scheme="Xavier uniform", trainable=True,
    ...                            constant=None, content=content)
    >>> RULE([layer("layers.0.weight", "a"), layer("layers.1.weight", "b")])
    ()
    >>> finding, = RULE([layer("layers.0.weight", "a"), layer("layers.1.weight", "a")])
    >>> finding.severity, finding.parameters
    ('info', ('layers.0.weight', 'layers.1.weight'))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lightning_weightwatch.evidence import Initial, Verdict
from lightning_weightwatch.rules._base import Finding, Rule
from lightning_weightwatch.rules._initials import as_code, as_initial
from lightning_weightwatch.rules._words import listed

NAME = "identical_layers"
_DRAWN = ("linear", "convolution", "recurrent", "attention")


def check(subject: Initial | Sequence[Verdict], *, copies: int = 2, alike: float = 1e-5) -> Iterator[Finding]:
    """Look for matrices with the same elements, then for those of them with the same gradient."""
    initial = as_initial(subject)
    if not initial.is_drawn:
        return
    sets = [names for names in _by_content(initial) if len(names) >= copies]
    lasting = [found for names in sets if (found := _with_a_twin(initial, names, alike))]
    parting = [found for names in sets if (found := [n for n in names if not any(n in twins for twins in lasting)])]
    if lasting:
        yield _finding(initial, lasting, stay=True)
    if parting:
        yield _finding(initial, parting, stay=False)


def _by_content(initial: Initial) -> list[list[str]]:
    """Return the names of matrices that hold the same elements."""
    learning = initial.signal.gradients if initial.signal is not None else {}
    sets: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for v in initial:
        learns = v.trainable and (v.name in learning or not learning)
        if learns and v.content and v.constant is None and len(v.shape) >= 2 and _is_drawn(initial, v):
            sets.setdefault((v.shape, v.content), []).append(v.name)
    return list(sets.values())


def _is_drawn(initial: Initial, verdict: Verdict) -> bool:
    """Whether its numbers came at random, as far as is known: a model may fill a free parameter by a formula."""
    is_known = verdict.scheme != "unrecognised"
    by_chance = is_known or (verdict.kind in _DRAWN and not initial.pretrained)
    return by_chance and not verdict.scheme.startswith("identity")


def _with_a_twin(initial: Initial, names: Sequence[str], alike: float) -> list[str]:
    """Return those whose gradient and output are the same as another one's."""
    known = {name: _traces(initial, name) for name in names}
    return [a for a in names if any(a != b and _same(known[a], known[b], alike) for b in names)]


def _traces(initial: Initial, name: str) -> tuple[float, ...]:
    """Return what the first batch showed of a matrix: its gradient, then its layer's numbers; NaN where unknown."""
    signal = initial.signal
    if signal is None:
        return ()
    layer = next((layer for layer in signal.layers if layer.name == name), None)
    seen = () if layer is None else (layer.rms, layer.spread, layer.gradient)
    return (*signal.gradients.get(name, ())[:1], *seen)


def _same(one: Sequence[float], other: Sequence[float], alike: float) -> bool:
    """Whether all that is known of both is the same, and there is a gradient."""
    if len(one) != len(other) or not one or not one[0] > 0:
        return False
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if not (math.isnan(a) and math.isnan(b))]
    return all(math.isclose(a, b, rel_tol=alike) for a, b in pairs)


def _finding(initial: Initial, sets: Sequence[Sequence[str]], *, stay: bool) -> Finding:
    order = {v.name: place for place, v in enumerate(initial)}
    names = tuple(sorted((name for names in sets for name in names), key=order.__getitem__))
    in_sets = f", in {len(sets)} sets" if len(sets) > 1 else ""
    is_known = initial.signal is not None and bool(initial.signal.gradients)
    parting = "and their gradients differ, so that they part" if is_known else "and no gradient tells if they part"
    return Finding(
        rule=NAME,
        severity="warning" if stay else "info",
        step=0,
        since_step=0,
        parameters=names,
        value=float(len(names)),
        limit=0.0,
        unit="matrices that hold another one's numbers",
        saw=(
            f"{len(names)} weight matrices hold the same numbers as another one at the start (limit 0){in_sets}, "
            f"{'and get the same gradient, so that they stay copies' if stay else parting}; such as {listed(sets[0])}."
        ),
        try_first=(
            "Draw them anew, as copy.deepcopy and nn.TransformerEncoder do not: "
            f"[nn.init.xavier_uniform_(p) for p in {as_code(_root(names))}.parameters() if p.dim() > 1]."
        ),
    )


def _root(names: Sequence[str]) -> str:
    """Return the module that holds all of them."""
    paths = [name.split(".")[:-1] for name in names]
    shared = 0
    while all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return ".".join(paths[0][:shared])


RULE = Rule(name=NAME, check=check, subject="initialisation")
