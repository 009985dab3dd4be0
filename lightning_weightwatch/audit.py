"""How an initialisation is judged: every parameter gets a verdict, and every illness a finding.

``audit_init`` does it all for a module at hand. It is made of three parts, so that a callback can let ranks agree
between measuring and judging: ``measure`` gives partials, ``readouts`` turns them (merged or not) into numbers, and
``judge`` needs only those. What only whole tensors tell goes along with the partials until they are merged. The schemes
themselves lie in ``theory``, the illnesses in ``rules``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weightwatch import _arguments, stats, structure
from lightning_weightwatch.evidence import Initial, Signal
from lightning_weightwatch.parameters import Parameter, declared_ties, describe, named_tensors, values
from lightning_weightwatch.places import places, wiring
from lightning_weightwatch.probe import probe
from lightning_weightwatch.report import WORST_FIRST, InitReport, ParameterVerdict, Verdict
from lightning_weightwatch.rules import SEVERITIES, Finding, Severity, all_rules, cause_of
from lightning_weightwatch.theory import Place, Readout, Recognition, default_scheme, origin

Readouts = Mapping[str, Readout]

STATISTICS = ("moments", "extremes")
_VERDICT_OF: dict[Severity, Verdict] = {"critical": "critical", "warning": "warning", "info": "note"}
_ZEROS = "all zeros: right for the last layer of a residual branch, a head or LoRA's B; elsewhere gradients will tell"
_UNRECOGNISED = str(Recognition(None))
_UNKNOWN = "matches no known scheme: loaded, trained, or of the model's own making"


def audit_init(model: nn.Module, batch: Any = None, loss_fn: Callable[[Any, Any], Tensor] | None = None) -> InitReport:
    """Judge the initialisation of ``model``; it is left as it was, bit for bit.

    Args:
        model: Any module. Lazy and meta parameters are reported as skipped.
        batch: What ``model(...)`` takes: one argument, a tuple of positional ones or a mapping of named ones. With
            ``loss_fn`` a pair ``(input, target)``. It is sent forwards once, through copies of the weights and in the
            mode the model is in; ``signal`` tells every layer of it, ``probe`` what came out.
        loss_fn: ``loss_fn(output, target)`` gives the initial loss. With it there is a backward pass as well, and two
            more rounds where a matrix that is all zeros keeps gradients from others. All of that takes about four times
            the memory of the weights, besides the activations.

    Raises:
        TypeError: If ``model`` is no module, or if ``loss_fn`` is given and ``batch`` is not a pair.

    Example:
        >>> report = audit_init(nn.Linear(64, 8, bias=False))
        >>> [(p.name, p.verdict, p.scheme) for p in report.parameters]
        [('weight', 'ok', 'PyTorch default (uniform ±1/sqrt(fan_in))')]
    """
    if not isinstance(model, nn.Module):
        remedy = "Pass the network itself, not its name, its class or its weights."
        _arguments.refuse("audit_init", "model", model, "a torch.nn.Module", remedy, wrong_type=True)
    parameters = describe(model)
    measured = readouts(parameters, measure(parameters, named_tensors(model)))
    told, signal = (None, None) if batch is None else probe(model, batch, loss_fn)
    return replace(judge(parameters, measured, signal=signal, declared=declared_ties(model)), probe=told)


def measurable(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Return the parameters whose values can be read; partials have one row for each."""
    return [p for p in parameters if p.unmeasurable is None]


class Measured(dict[str, Tensor]):
    """Partials, which merge, and beside them what only whole tensors tell: whatever merges leaves that behind.

    Attributes:
        names: The parameters that are held as a whole; ``name[0]``, ``name[1]``... for matrices stacked in them.
        partials: The same partials of each of these matrices, shape ``[number of them]``.
        structure: What ``structure.measure`` gives of every one of ``names``.
    """

    names: Sequence[str] = ()
    partials: Mapping[str, Tensor] = {}
    structure: Tensor = torch.zeros(0, device="cpu")


def measure(parameters: Sequence[Parameter], tensors: Mapping[str, Tensor]) -> Measured:
    """Measure what this process holds of the measurable parameters; partials of shape ``[P]``."""
    held = {p.name: values(tensors[p.name]) for p in measurable(parameters)}
    found = Measured(stats.measure(STATISTICS, list(held.values())))
    whole = [p for p in measurable(parameters) if held[p.name].shape == p.shape]
    stacked = [(p, f"{p.name}[{i}]", block) for p in whole for i, block in enumerate(_blocks(p, held[p.name]))]
    members = [(p, p.name, held[p.name]) for p in whole] + stacked
    found.names = [name for _, name, _ in members]
    found.partials = stats.measure(STATISTICS, [block for _, _, block in stacked])
    found.structure = structure.measure([tensor for _, _, tensor in members], [p.wiring.groups for p, _, _ in members])
    return found


def readouts(parameters: Sequence[Parameter], partials: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Turn partials, merged or not, into numbers by parameter; this waits for the device.

    Those of matrices that are stacked in a parameter are named ``name[0]``, ``name[1]``...
    """
    found = _by_name([p.name for p in measurable(parameters)], partials)
    if isinstance(partials, Measured):
        found |= _by_name([name for name in partials.names if name not in found], partials.partials)
        for name, numbers in zip(partials.names, structure.read(partials.structure), strict=True):
            found[name] |= numbers
    return found


def _blocks(parameter: Parameter, tensor: Tensor) -> Sequence[Tensor]:
    """Cut a tensor into the matrices that are stacked in it, if there are several."""
    number = len(wiring(parameter).stacked)
    return tensor.chunk(number) if number and len(tensor) % number == 0 else ()


def _by_name(names: Sequence[str], partials: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    read = stats.read(STATISTICS, dict(partials))
    read |= {key: partials[f"moments/{key}"] for key in ("count", "zeros")}
    columns = {key: column.tolist() for key, column in read.items()}
    return {name: {key: column[i] for key, column in columns.items()} for i, name in enumerate(names)}


def judge(
    parameters: Sequence[Parameter],
    measured: Readouts,
    *,
    among: Sequence[Parameter] | None = None,
    resumed: bool = False,
    step: int = 0,
    signal: Signal | None = None,
    declared: Sequence[tuple[str, str]] = (),
) -> InitReport:
    """Judge parameters by their numbers.

    Args:
        parameters: What is reported.
        measured: The ``readouts`` of those that can be measured.
        among: All parameters of the model, where ``parameters`` is a selection: the expected spread of a bias follows
            from the weight beside it.
        resumed: A checkpoint was loaded: schemes are not judged, NaN and constant matrices still are.
        step: The step the findings are told at.
        signal: How one batch passed.
        declared: The ``declared_ties``.
    """
    where = places(parameters if among is None else among)
    verdicts = tuple(_first_verdict(p, where[p.name], measured, resumed) for p in parameters)
    fresh = _freshly_drawn(verdicts)
    heard = signal if signal is not None and (signal.layers or signal.gradients) else None  # nothing is no silence
    initial = Initial(verdicts, heard, resumed, fresh is not None and not resumed, tuple(declared))
    found = [finding for rule in all_rules("initialisation").values() for finding in rule(initial)]
    found = [replace(f, step=step, since_step=step, because_of=cause_of(f, found)) for f in found]
    findings = tuple(sorted(found, key=lambda f: (-SEVERITIES.index(f.severity), f.because_of is not None)))
    after = tuple(_after(findings, v) for v in verdicts)
    return InitReport(after, findings, resumed, signal=signal, fresh=() if resumed else fresh or ())


def _freshly_drawn(verdicts: Sequence[ParameterVerdict]) -> tuple[str, ...] | None:
    """Return the matrices of a known scheme, where most are of none, as after a training; else ``None``."""
    measured = [v for v in verdicts if v.std and not v.nonfinite]
    matrices = [v for v in measured if v.kind not in ("norm", "bias") and len(v.shape) > 1]
    drawn = [v.name for v in matrices if v.scheme != _UNRECOGNISED]
    return tuple(drawn) if len(drawn) < len(matrices) / 2 else None


def _after(findings: Sequence[Finding], verdict: ParameterVerdict) -> ParameterVerdict:
    """Give a parameter the verdict of the worst finding it has a part in; what could not be judged stays skipped."""
    if verdict.verdict == "skipped":
        return verdict
    at_it = [_VERDICT_OF[f.severity] for f in findings if verdict.name in f.parameters]
    return replace(verdict, verdict=min([verdict.verdict, *at_it], key=WORST_FIRST.index))


def _first_verdict(parameter: Parameter, place: Place, measured: Readouts, resumed: bool) -> ParameterVerdict:
    """Say what is known of a parameter before the rules look at it."""
    readout = measured.get(parameter.name)
    why = parameter.unmeasurable or _unseen(parameter, readout)
    if why or readout is None:
        return _verdict(parameter, scheme="not measured", verdict="skipped", reason=why or "not measured")
    constant = readout["min"] if readout["min"] == readout["max"] and readout["count"] > 1 else None
    recognition = Recognition(None) if resumed else _recognised(place, parameter.name, measured)
    expected = None if resumed else recognition.scheme or default_scheme(place)
    verdict, reason = _in_words(parameter, readout, constant, recognition, resumed)
    return replace(
        _verdict(parameter, scheme="restored" if resumed else str(recognition), verdict=verdict, reason=reason),
        std=_finite(readout["std"]),
        mean=_finite(readout["mean"]),
        expected_std=expected.std if expected else None,
        abs_max=_finite(max(abs(readout["min"]), abs(readout["max"]))),
        content=_content(readout),
        nonfinite=round(readout["nonfinite"]),
        constant=None if readout["nonfinite"] else constant,
    )


def _recognised(place: Place, name: str, measured: Readouts) -> Recognition:
    blocks = [measured[block] for i in range(len(place.blocks)) if (block := f"{name}[{i}]") in measured]
    return origin(place, measured[name], blocks)


def _unseen(parameter: Parameter, readout: Mapping[str, float] | None) -> str | None:
    """Say why a parameter cannot be judged although it could be read: no part passes for the whole."""
    seen = 0 if readout is None else round(readout["count"] + readout["nonfinite"])
    return f"only {seen} of its {parameter.numel} elements are held here" if seen < parameter.numel else None


def _in_words(
    parameter: Parameter,
    readout: Mapping[str, float],
    constant: float | None,
    recognition: Recognition,
    resumed: bool,
) -> tuple[Verdict, str]:
    if readout["nonfinite"]:
        return "ok", f"{readout['nonfinite']:.0f} of {parameter.numel} elements are NaN or Inf"
    if constant is not None:
        is_matrix = parameter.is_matrix and sum(size > 1 for size in parameter.shape) >= 2
        if constant == 0:
            return ("note", _ZEROS) if is_matrix else ("ok", "all zeros")
        same = f"all {parameter.numel} elements are {constant:.6g}"
        return ("note", f"{same}: every unit computes the same") if is_matrix else ("ok", same)
    if resumed:
        return "ok", "restored from a checkpoint: finite and not constant"
    told = _UNKNOWN if recognition.scheme is None else f"drawn from {recognition}"
    return "ok", f"{told}; {recognition.untold}" if recognition.untold else told + _uncertainty(recognition, readout)


def _uncertainty(recognition: Recognition, readout: Mapping[str, float]) -> str:
    """Say how exactly so few elements tell the spread that the candidates differ in."""
    if not recognition.alternatives or recognition.interval is None:
        return ""
    low, high = recognition.interval
    return f": {readout['count']:.0f} elements tell its std to lie within {low:.3g} and {high:.3g}"


def _verdict(parameter: Parameter, *, scheme: str, verdict: Verdict, reason: str) -> ParameterVerdict:
    return ParameterVerdict(
        name=parameter.name,
        shape=parameter.shape,
        kind=parameter.kind,
        scheme=scheme,
        std=None,
        expected_std=None,
        verdict=verdict,
        reason=reason,
        trainable=parameter.trainable,
        tied=parameter.tied,
        unmeasurable=parameter.unmeasurable or "",
    )


def _content(readout: Readout) -> str:
    """Return what two tensors with the same elements share, and hardly any two others: a dozen sums over them."""
    return hashlib.sha256(repr(sorted(readout.items())).encode()).hexdigest()[:16] if "cosine" in readout else ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
