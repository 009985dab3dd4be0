"""Weights that two layers share: not shared after all, or too large for one of them.

What it sees:
    Names that the model declares to be one tensor (``_tied_weights_keys``, as libraries of language models write) and
    that are two. And an embedding that is the output layer as well, drawn with a standard deviation that makes large
    logits out of an input of size 1, as it comes from a norm: the deviation times the root of the width. More than
    ``loud`` is a warning where the first loss is over ``ordinary`` times that of a guess, more than ``spread`` a note
    where no loss is known, and nothing is said where the loss is ordinary.

Why it matters:
    Two tensors that begin alike part in the first step: the model has more parameters than it is said to have, and half
    of them are lost when it is saved and tied again. Half-loaded ones leave an output layer that was never trained.
    PyTorch draws embeddings from N(0, 1). As an output layer of width 64 that gives logits of size 8, and one of 64
    where a token meets its own vector again, so that the network is sure of something it does not know: a small
    language model of 65 letters began at a loss of 60, and drawn with a deviation of 0.02 at 4.18, as a guess has it.

When it is not a problem:
    A model that scales its logits down by the root of the width (T5) may draw its embedding so large, and one that
    multiplies what it embeds by that root needs a small one. A tie that the configuration switches off is not declared.
    Two frozen tensors with the same numbers stay the same.

Limits:
    pairs: 0. One declared pair that is two tensors is enough.
    spread: 3.0, above what language models in use begin with (0.02 and width 12,288 make 2.2). Logits drawn from a
        normal distribution of that deviation cost 4.5 nats more than those of a guess.
    loud: 1.0, where the first loss is too high: of size 1 logits cost half a nat, and of a token's own vector more.
    ordinary: 3.0 times the loss of a guess is too high a first loss. Our choice.

What to try:
    Tie them again once the model is where it will be trained (``model.tie_weights()``, or an assignment). Draw a shared
    embedding with one over the root of its width, or 0.02.

References:
    Press and Wolf, Using the Output Embedding to Improve Language Models, 2017, arXiv:1608.05859.
    Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, section 3.4.

Example:
    >>> from types import SimpleNamespace
    >>> def embedding(std):
    ...     return SimpleNamespace(name="embed.weight", shape=(1000, 64), kind="embedding", tied=("head.weight",),
    ...                            std=std)
    >>> RULE([embedding(0.02)])
    ()
    >>> finding, = RULE([embedding(1.0)])
    >>> finding.severity, finding.value, finding.try_first
    ('info', 8.0, 'Draw it smaller: nn.init.normal_(model.embed.weight, std=0.12).')
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lightning_weightwatch.evidence import Initial, Verdict
from lightning_weightwatch.rules._base import Finding, Rule, Severity
from lightning_weightwatch.rules._initials import as_code, as_initial
from lightning_weightwatch.rules._start import begins_high
from lightning_weightwatch.rules._words import listed

NAME = "tied_mismatch"


def check(
    subject: Initial | Sequence[Verdict],
    *,
    pairs: int = 0,
    spread: float = 3.0,
    loud: float = 1.0,
    ordinary: float = 3.0,
) -> Iterator[Finding]:
    """Look at what is declared to be tied, then at what is."""
    initial = as_initial(subject)
    apart = [pair for pair in initial.declared_ties if _may_part(initial, pair)]
    if len(apart) > pairs:
        yield _untied(initial, apart, pairs)
    is_high = begins_high(initial, ordinary)
    if not initial.is_drawn or is_high is False:
        return
    limit = loud if is_high else spread
    for v in initial:
        if v.kind == "embedding" and v.std is not None and len(v.shape) == 2 and _gives_logits(initial, v):
            logits = v.std * math.sqrt(v.shape[1])
            if logits > limit:
                yield _too_large(initial, v, logits, limit, "warning" if is_high else "info")


def _may_part(initial: Initial, pair: tuple[str, str]) -> bool:
    """Whether they are not two frozen tensors with the same numbers, nor both left out of what is judged."""
    found = [v for v in (_named(initial, name) for name in pair) if v is not None]
    are_frozen = not any(v.trainable for v in found)
    are_alike = len(found) > 1 and found[0].content == found[1].content != ""
    return bool(found) and not (are_frozen and are_alike)


def _named(initial: Initial, name: str) -> Verdict | None:
    """Return the parameter of this name, be it a further one."""
    return next((v for v in initial if name == v.name or name in v.tied), None)


def _gives_logits(initial: Initial, verdict: Verdict) -> bool:
    """Whether it may be the output layer too: the loss says so, or else a further name that is no embedding's."""
    layers = () if initial.signal is None else initial.signal.layers
    layer = next((layer for layer in layers if layer.name == verdict.name), None)
    by_name = any("embed" not in name.lower() for name in verdict.tied)
    return by_name and (layer is None or layer.feeds_loss)


def _untied(initial: Initial, apart: Sequence[tuple[str, str]], limit: int) -> Finding:
    found = {name: _named(initial, name) for pair in apart for name in pair}
    alike = [len({v.content for name in pair if (v := found[name]) is not None}) == 1 for pair in apart]
    numbers = "the same numbers for now" if all(alike) else "different numbers"
    one, other = apart[0]
    return Finding(
        rule=NAME,
        severity="warning",
        step=0,
        since_step=0,
        parameters=tuple(dict.fromkeys(v.name for v in found.values() if v is not None)),
        value=float(len(apart)),
        limit=float(limit),
        unit="pairs that are declared to be tied and are not",
        saw=(
            f"The model declares {listed([f'{a} and {b}' for a, b in apart], 2)} to be one tensor each; {len(apart)} "
            f"such pair{'s are' if len(apart) > 1 else ' is'} two (limit {limit}) at the start, with {numbers}."
        ),
        try_first=f"Tie them again: {as_code(other)} = {as_code(one)}, or model.tie_weights().",
    )


def _too_large(initial: Initial, verdict: Verdict, logits: float, limit: float, severity: Severity) -> Finding:
    loss = initial.signal.loss if initial.signal is not None else math.nan
    first = f" The first loss is {loss:.3g}." if math.isfinite(loss) else ""
    return Finding(
        rule=NAME,
        severity=severity,
        step=0,
        since_step=0,
        parameters=(verdict.name,),
        value=logits,
        limit=limit,
        unit="standard deviation of logits for an input of size 1",
        saw=(
            f"{verdict.name} is {listed(verdict.tied)} as well, and has a standard deviation of {verdict.std:.3g} at "
            f"the start: of an input of size 1 it makes logits of {logits:.3g} (limit {limit:g}).{first}"
        ),
        try_first=(
            f"Draw it smaller: nn.init.normal_({as_code(verdict.name)}, std={1 / math.sqrt(verdict.shape[1]):.2g})."
        ),
    )


RULE = Rule(name=NAME, check=check, subject="initialisation")
