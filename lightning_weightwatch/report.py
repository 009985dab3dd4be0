"""What an audit of an initialisation says: a verdict for every parameter, the illnesses, how a batch passed.

How it is come by lies in ``audit``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_weightwatch.evidence import Signal
from lightning_weightwatch.rules import Finding
from lightning_weightwatch.sinks.tables import console_table, escape, markdown_table

Verdict = Literal["ok", "note", "warning", "critical", "skipped"]

WORST_FIRST: tuple[Verdict, ...] = ("critical", "warning", "skipped", "note", "ok")
_COLUMNS = ("parameter", "shape", "kind", "scheme", "mean", "std", "expected", "verdict")
_LAYER_COLUMNS = ("layer", "activation", "mean", "rms", "spread", "gradient rms", "dead", "saturated", "copies")


@dataclass(frozen=True)
class ParameterVerdict:
    """What is said of one parameter.

    Attributes:
        name: Its dotted name.
        shape: Its whole shape; ``()`` while it is uninitialised.
        kind: What it is for, such as ``"convolution"`` or ``"bias"``.
        scheme: How it was initialised, by name; ``"unrecognised"`` is no illness.
        std: Its measured standard deviation, or ``None`` where it has none.
        expected_std: That of its scheme; of PyTorch's default for its layer where the scheme is unrecognised.
        verdict: The judgement.
        reason: The judgement in words.
        mean: Its measured mean, or ``None`` where it has none.
        nonfinite: How many elements are NaN or Inf.
        constant: The value of all its elements, if they are the same.
        trainable: Whether it asks for a gradient.
        tied: Further names of the same tensor.
        abs_max: Its largest magnitude, or ``None`` where it was not measured.
        content: The same for two tensors of one shape that hold the same elements; ``""`` where it was not taken.
        unmeasurable: Why its values cannot be read; ``""`` where they can.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    scheme: str
    std: float | None
    expected_std: float | None
    verdict: Verdict
    reason: str
    mean: float | None = None
    nonfinite: int = 0
    constant: float | None = None
    trainable: bool = True
    tied: tuple[str, ...] = ()
    abs_max: float | None = None
    content: str = ""
    unmeasurable: str = ""


@dataclass(frozen=True)
class InitReport:
    """The verdict on a whole model.

    Attributes:
        parameters: One verdict for every parameter, in order of registration.
        findings: The illnesses.
        resumed: Whether a checkpoint was loaded, so that nothing is said of schemes.
        probe: What one batch showed: ``output_rms``, ``output_nonfinite``, ``loss``; or why it could not be sent.
        signal: How one batch passed, layer by layer; ``None`` where none did.
        fresh: Where most matrices are of no known scheme, as after training: those that were freshly drawn.
    """

    parameters: tuple[ParameterVerdict, ...]
    findings: tuple[Finding, ...] = ()
    resumed: bool = False
    probe: dict[str, Any] | None = None
    signal: Signal | None = None
    fresh: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The verdicts, counted, in one line."""
        counts = {v: sum(p.verdict == v for p in self.parameters) for v in WORST_FIRST}
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        when = "Restored" if self.resumed else "Initial"
        return f"{when} weights of {len(self.parameters)} parameters: {told or 'none'}"

    @property
    def brief(self) -> str:
        """The headline, the names of the notes, and what was not measured: no silence passes for health."""
        notes = ", ".join(dict.fromkeys(finding.rule for finding in self.findings))
        unseen = "; ".join(self.signal.not_measured) if self.signal is not None else ""
        return self.headline + (f" ({notes})" if notes else "") + (f"; not measured: {unseen}" if unseen else "")

    @property
    def is_well(self) -> bool:
        """Whether there is nothing to act on: no finding but notes, and a batch that passed without NaN and Inf."""
        return not self.broken_at and all(finding.severity == "info" for finding in self.findings)

    @property
    def broken_at(self) -> str:
        """The first layer whose output held NaN or Inf, whether weights or batch brought them; ``""`` for none."""
        layers = self.signal.layers if self.signal is not None else ()
        return next((layer.name for layer in layers if layer.nonfinite > 0), "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values that ``json`` takes."""
        return {
            "resumed": self.resumed,
            "fresh": list(self.fresh),
            "parameters": [_plain_verdict(p) for p in self.parameters],
            "findings": [finding.to_dict() for finding in self.findings],
            "probe": self.probe and _all_plain(self.probe),
            "signal": None if self.signal is None else _plain_signal(self.signal),
        }

    def to_markdown(self) -> str:
        """Return a page of markdown: findings, then the tables of parameters, worst first, and of layers."""
        remarks = [f"* {escape(line)}" for line in [*map(str, self.findings), *self._remarks()]]
        layers = _layer_rows(self.signal)
        tables = [markdown_table(_COLUMNS, self._rows()), *([markdown_table(_LAYER_COLUMNS, layers)] if layers else [])]
        # a list begins after an empty line, or it is taken for the end of the paragraph
        return "\n\n".join([f"**{self.headline}**", *(["\n".join(remarks)] if remarks else []), *tables])

    def __str__(self) -> str:
        """Draw the tables for the console, worst first, and say what is not well."""
        return self.drawn()

    def drawn(self, most: int | None = None) -> str:
        """Draw the tables for the console and say what is not well.

        Args:
            most: Rows of a table, the worst parameters and the first layers; ``None`` for all.
        """
        rows, layers = self._rows(), _layer_rows(self.signal)
        tables = [_table(self.headline, _COLUMNS, rows, most)]
        tables += [_table("One batch, layer by layer", _LAYER_COLUMNS, layers, most)] if layers else []
        return "\n".join([*tables, *map(str, self.findings), *self._remarks()])

    def _worst_first(self) -> list[ParameterVerdict]:
        return sorted(self.parameters, key=lambda p: WORST_FIRST.index(p.verdict))

    def _rows(self) -> list[list[str]]:
        return [_row(p) for p in self._worst_first()]

    def _remarks(self) -> list[str]:
        told = {name for finding in self.findings for name in finding.parameters}
        others = [p for p in self._worst_first() if p.verdict != "ok" and p.name not in told]
        remarks = [f"{p.verdict} {p.name}: {p.reason}" for p in others]
        if self.broken_at:
            remarks.append(f"NaN or Inf came out of {self.broken_at} first: look at the batch and at its weights")
        if self.fresh:
            most = "most matrices match no known scheme, as after a training; freshly drawn among them: "
            remarks.append(most + ", ".join(self.fresh))
        if self.probe is not None:
            remarks.append("one batch: " + ", ".join(f"{key} {_number(value)}" for key, value in self.probe.items()))
        if self.signal is not None:
            remarks += [in_words(self.signal), *(f"not measured: {why}" for why in self.signal.not_measured)]
        return [remark for remark in remarks if remark]


def in_words(signal: Signal) -> str:
    """Say in one line how the signal passed: by what activations and gradients are multiplied from end to end.

    Example:
        >>> in_words(Signal(loss=2.3))
        'first loss 2.3'
    """
    both = (("activations", signal.forward_decades), ("gradients", signal.backward_decades))
    told = [f"{what} x {10**by:.2g}" for what, by in both if math.isfinite(by)]
    expected = f" (expected {signal.expected_loss:.4g})" if math.isfinite(signal.expected_loss) else ""
    told += [f"first loss {signal.loss:.4g}{expected}"] if math.isfinite(signal.loss) else []
    head = f"{len(signal.layers)} layers: " if signal.layers else ""
    return head + ", ".join(told) if told else ""


def _table(title: str, columns: Sequence[str], rows: list[list[str]], most: int | None) -> str:
    left = len(rows) - most if most is not None else 0
    table = console_table(title, columns, rows[:most])
    return f"{table}\nand {left} more" if left > 0 else table


def _layer_rows(signal: Signal | None) -> list[list[str]]:
    """Return a row for each layer, in the order of execution."""
    numbers = ("mean", "rms", "spread", "gradient", "dead", "saturated", "copies")
    layers = () if signal is None else signal.layers
    return [[x.name, x.activation or "-", *(_known(getattr(x, name)) for name in numbers)] for x in layers]


def _plain_verdict(verdict: ParameterVerdict) -> dict[str, Any]:
    """Return what ``json`` takes of a verdict; its content is for comparison within one audit."""
    plain = asdict(verdict) | {"shape": list(verdict.shape), "tied": list(verdict.tied)}
    del plain["content"]
    return plain


def _plain_signal(signal: Signal) -> dict[str, Any]:
    """Return what ``json`` takes of a signal."""
    return {
        "layers": [_all_plain(asdict(layer)) for layer in signal.layers],
        "gradients": {name: [_plain(value) for value in passes] for name, passes in signal.gradients.items()},
        "forward_decades": _plain(signal.forward_decades),
        "backward_decades": _plain(signal.backward_decades),
        "loss": _plain(signal.loss),
        "expected_loss": _plain(signal.expected_loss),
        "optimizers": list(signal.optimizers),
        "not_measured": list(signal.not_measured),
    }


def _row(p: ParameterVerdict) -> list[str]:
    shape = " x ".join(map(str, p.shape))
    return [p.name, shape, p.kind, p.scheme, _number(p.mean), _number(p.std), _number(p.expected_std), p.verdict]


def _plain(value: Any) -> Any:
    """JSON has no NaN: it is spelled out."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _all_plain(known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in known.items()}


def _known(value: float) -> str:
    return "-" if math.isnan(value) else _number(value)
