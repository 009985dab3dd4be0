"""What the gradient monitor shows, and how often.

It turns evidence into scalars, a picture and a table of findings and hands them to sinks; it judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_weightwatch import figures
from lightning_weightwatch.callbacks._cadence import Cadence
from lightning_weightwatch.callbacks._guard import attempt
from lightning_weightwatch.callbacks._names import numbered
from lightning_weightwatch.evidence import Evidence, Floats, History, Snapshot
from lightning_weightwatch.rules import Finding, depth_profile, first_cause
from lightning_weightwatch.sinks import Sinks
from lightning_weightwatch.sinks.tables import escape, markdown_table

_URGENT = 3  # pictures that are drawn for news: of ten in all TensorBoard keeps every one
_TABLED = 300  # parameters; a longer table takes a browser seconds
BAND = 2.0  # decades around the median layer; healthy depth profiles stayed within 1.8
_FLOOR = -12.0  # log10 of a norm of zero is drawn here; a deeper floor would squeeze the axis


class GradientPage:
    """The gradient monitor's part of a TensorBoard page.

    Args:
        sinks: Where to show.
        prefix: The first part of every tag.
        names: The parameters, in forward order.
        planned: Steps of the run, if known.
        every_n_steps: The shortest distance between two points.
    """

    def __init__(
        self, sinks: Sinks, prefix: str, evidence: Evidence, *, planned: int | None, every_n_steps: int
    ) -> None:
        self._sinks, self._prefix = sinks, prefix
        self._evidence = evidence
        self._columns = evidence.matrices or list(range(len(evidence.parameters)))
        self._history = History(rows=len(self._columns))
        self._scalars = Cadence(points=1000, least=every_n_steps, planned=planned)
        self._details = Cadence(points=100, least=every_n_steps, planned=planned)
        self._tables = Cadence(points=9, least=every_n_steps, planned=planned)
        self._pictures = Cadence(points=7, least=5 * every_n_steps, planned=planned)
        self._peaks: Floats = np.full(len(evidence.parameters), np.nan)
        self._peak = np.nan
        self._broken = np.zeros(len(evidence.parameters), dtype=bool)
        self._clipped_peak = np.nan
        self._clipped: list[bool] = []
        self._tabled: Snapshot | None = None
        self.overhead = np.nan  # the share of the time, told by whoever measures it
        self._told: set[str] = set()
        self._urgent = _URGENT

    def remember(self, steps: int) -> None:
        """Take the last ``steps`` steps of the evidence into the history and the running maxima."""
        norms = self._evidence.norms[-steps:]
        self._broken |= np.isinf(norms).any(axis=0)
        self._peaks = np.fmax(self._peaks, _quiet_max(norms))
        self._peak = float(np.fmax(self._peak, _quiet_max(self._evidence.global_norm[-steps:, None])[0]))
        self._remember_clipping(self._evidence.clipped_norm[-steps:], self._evidence.global_norm[-steps:])
        with np.errstate(divide="ignore"):
            logs = np.log10(self._evidence.rms[-steps:, self._columns])
        recent = zip(self._evidence.steps[-steps:], logs, self._evidence.losses[-steps:], strict=True)
        for step, row, loss in recent:
            self._history.add(step, row, loss=loss)

    def _remember_clipping(self, after: Floats, before: Floats) -> None:
        known = ~np.isnan(after)
        self._clipped_peak = float(np.fmax(self._clipped_peak, _quiet_max(after[:, None])[0]))
        self._clipped += list(after[known] < before[known] * (1 - 1e-5))  # norms are good to five digits

    def show(self, findings: Sequence[Finding], *, last: bool = False, news: bool = False) -> None:
        """Show what is due; everything if it is the ``last`` time, the picture and the table if there are ``news``."""
        if not self._sinks or not len(self._evidence):
            return
        step = self._evidence.steps[-1]
        if self._scalars.due(step) or last:
            attempt("Logging gradient scalars", lambda: self._show_scalars(step), self._told)
        if self._details.due(step) or last:
            attempt("Logging gradient norms", lambda: self._show_details(step), self._told)
        taken = self._evidence.snapshots[-1] if self._evidence.snapshots else None
        if taken is not None and taken is not self._tabled and (self._tables.due(step) or last):
            attempt("Logging statistics", lambda: self._show_statistics(step), self._told)
        if news:
            attempt("Logging findings", lambda: self._show_findings(findings, step), self._told)
        news = news and self._urgent > 0
        self._urgent -= news
        if self._pictures.due(step) or last or news:
            attempt("Drawing the health report", lambda: self._draw(findings, step), self._told)
        if last or news:
            self._sinks.flush()

    def _show_scalars(self, step: int) -> None:
        profile = depth_profile(self._evidence, steps=min(20, len(self._evidence)))
        values = {
            "grad_norm_log10": _log10(self._peak),
            "grad_depth_slope": profile.per_layer if profile else np.nan,
            "layers_out_of_band": float(_out_of_band(self._last_logs())),
            "non_finite_parameters": float(self._broken.sum()),
            "clipped_norm_log10": _log10(self._clipped_peak),
            "clipped_share": float(np.mean(self._clipped)) if self._clipped else np.nan,
            "update_ratio_log10": self._update_ratio(),
            "overhead_share": self.overhead,
        }
        known = {f"{self._prefix}/{name}": value for name, value in values.items() if np.isfinite(value)}
        self._sinks.scalars(known, step)
        self._peak = self._clipped_peak = np.nan
        self._broken[:] = False
        self._clipped = []

    def _last_logs(self) -> Floats:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log10(self._evidence.rms[-1, self._columns]))

    def _update_ratio(self) -> float:
        """Return log10 of the median update ratio of the weight matrices at the last snapshot."""
        if not self._evidence.snapshots:
            return np.nan
        taken, matrices = self._evidence.snapshots[-1], {self._evidence.parameters[i].name for i in self._columns}
        ratios = taken.values["update_ratio"][[name in matrices for name in taken.parameters]]
        known = ratios[np.isfinite(ratios)]
        return _log10(float(np.median(known))) if known.size else np.nan

    def _show_statistics(self, step: int) -> None:
        snapshot = self._evidence.snapshots[-1]
        self._sinks.text(f"{self._prefix}/statistics", statistics_page(snapshot), step)
        self._tabled = snapshot

    def _show_details(self, step: int) -> None:
        tags = numbered([p.name for p in self._evidence.parameters])
        values = {f"{self._prefix}.grad_log10/{tag}": _log10(peak) for tag, peak in zip(tags, self._peaks, strict=True)}
        self._sinks.scalars({tag: v for tag, v in values.items() if np.isfinite(v)}, step, detail=True)
        self._peaks = np.full_like(self._peaks, np.nan)

    def _show_findings(self, findings: Sequence[Finding], step: int) -> None:
        self._sinks.text(f"{self._prefix}/findings", findings_page(findings), step)

    def _draw(self, findings: Sequence[Finding], step: int) -> None:
        cause = first_cause(findings)
        figure = figures.health_report(
            verdict=headline(cause, step),
            healthy=cause is None,
            layers=[self._evidence.parameters[i].name for i in self._columns],
            steps=self._history.steps,
            log_rms=self._history.values,
            losses=self._history.losses,
            band=BAND,
        )
        self._sinks.image(f"{self._prefix}/0 report", figures.encode(figure), step)


def headline(cause: Finding | None, step: int) -> str:
    """Say in a few words how the run does."""
    if cause is None:
        return f"No illness found up to step {step}"
    return f"{cause.rule.replace('_', ' ').capitalize()} since step {cause.since_step}"


def findings_page(findings: Sequence[Finding]) -> str:
    """Return the findings as markdown, the first cause on top; a table would squeeze its words into columns."""
    cause = first_cause(findings)
    head = [f"**First cause: {escape(cause.rule)}, since step {cause.since_step}.**"] if cause else []
    return "\n\n".join([*head, *map(_section, findings)])


def statistics_page(snapshot: Snapshot) -> str:
    """Return full statistics as a markdown table, a row for each parameter in forward order."""
    columns = ["grad_norm", "grad_mean", "grad_std", "grad_abs_max", "grad_zero_share", "grad_nonfinite"]
    columns += ["weight_norm", "update_norm", "update_ratio"]
    rows = [
        [name, *(_short(snapshot.values[column][i]) for column in columns)]
        for i, name in enumerate(snapshot.parameters[:_TABLED])
    ]
    table = markdown_table(["parameter", *(c.replace("_", " ") for c in columns)], rows)
    more = len(snapshot.parameters) - len(rows)
    rest = f"\n\nand {more} more, in `GradientHealthMonitor.snapshot`" if more else ""
    return f"Step {snapshot.step}\n\n{table}{rest}"


def _short(value: float) -> str:
    return "not measured" if np.isnan(value) else f"{value:.3g}"


def _section(finding: Finding) -> str:
    lines = [
        f"#### {escape(finding.rule)} ({finding.severity}), since step {finding.since_step}, told at {finding.step}",
        escape(finding.saw),
        f"*Try first:* {escape(finding.try_first)}",
    ]
    if finding.because_of:
        lines.append(f"*Taken for a symptom of* {escape(finding.because_of)}")
    if finding.parameters:
        lines.append(f"*Parameters:* {escape(', '.join(finding.parameters))}")
    return "\n\n".join(lines)


def _log10(value: float) -> float:
    return float(np.log10(value)) if value > 10**_FLOOR else (_FLOOR if value == value else np.nan)


def _out_of_band(log_rms: Floats) -> int:
    """Count the layers that lie farther than the band from the median layer, or are not finite."""
    measured = log_rms[~np.isnan(log_rms)]
    finite = measured[np.isfinite(measured)]
    middle = np.median(finite) if finite.size else 0.0
    return int((np.abs(measured - middle) > BAND).sum())


def _quiet_max(values: Floats) -> Floats:
    """Return the largest finite value of each column, NaN where there is none."""
    finite = np.where(np.isfinite(values), values, -np.inf)
    largest = finite.max(axis=0, initial=-np.inf)
    return np.where(np.isneginf(largest), np.nan, largest)
