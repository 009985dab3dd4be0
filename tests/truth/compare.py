"""What the callbacks measured of a run, held against the reference, column by column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_weightwatch import GradientHealthMonitor, WeightHistogramLogger
from lightning_weightwatch.callbacks import weight_histogram_logger
from lightning_weightwatch.evidence import Evidence
from lightning_weightwatch.rules import Finding, Rule
from tests.truth import reference
from tests.truth.reference import Step

TOLERANCE = 1e-5
COLUMNS = {
    "gradient norm": ["grad_norm"],
    "mean, std": ["grad_mean", "grad_std"],
    "min, max, abs-max": ["grad_min", "grad_max", "grad_abs_max"],
    "zero share, non-finite": ["grad_zero_share", "grad_nonfinite"],
    "weight norm": ["weight_norm"],
    "update norm, ratio": ["update_norm", "update_ratio", "update_zero_share"],
}
ALL_COLUMNS = [*COLUMNS, "global norm", "clipped norm", "loss", "histograms"]


@dataclass
class Seen:
    """What was seen of a run; counts of elements by step and name."""

    evidence: Evidence | None = None
    weight_counts: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    gradient_counts: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    broken: bool = False


class Witness:
    """A monitor and a histogram logger that look at every step, and keep what they saw."""

    def __init__(self, monkeypatch: Any = None, folder: Any = None) -> None:
        self._seen = Seen()
        rule = Rule(name="witness", check=self._look)
        self.monitor = GradientHealthMonitor(
            every_n_steps=1, statistics_every_n_steps=1, rules=[rule], max_overhead=None
        )
        self.logger = WeightHistogramLogger(every_n_steps=1, figures=0, max_overhead=None)
        self.options: dict[str, Any] = {}
        if monkeypatch is not None:
            self.options["logger"] = TensorBoardLogger(folder)
            monkeypatch.setattr(weight_histogram_logger, "WeightPages", self._pages)

    @property
    def callbacks(self) -> list[pl.Callback]:
        return [self.monitor, self.logger]

    @property
    def seen(self) -> Seen:
        self._seen.broken = self.monitor.broken or self.logger.broken
        return self._seen

    def _look(self, evidence: Evidence) -> Iterator[Finding]:
        self._seen.evidence = evidence
        return iter(())

    def _pages(self, *_: Any) -> Any:
        seen = self._seen

        class Pages:
            """Keeps counts instead of showing them."""

            def weights(self, counts: dict[str, np.ndarray], step: int) -> None:
                seen.weight_counts.setdefault(step, {}).update(counts)

            def gradients(self, counts: dict[str, np.ndarray], step: int) -> None:
                seen.gradient_counts.setdefault(step, {}).update(counts)

            def figures(self, *_: Any) -> None:
                """Draw nothing."""

        return Pages()


def agree(seen: Seen, steps: Sequence[Step], *, measured: Callable[[str], bool] = lambda _: True) -> dict[str, float]:
    """Assert that what was seen is the truth; return the largest relative error of each column.

    Args:
        seen: What was seen.
        steps: What happened.
        measured: Which parameters are measured at all.
    """
    assert not seen.broken
    evidence = seen.evidence
    assert evidence is not None
    assert evidence.steps == list(range(len(steps)))
    names = [p.name for p in evidence.parameters]
    assert names == [name for name in steps[0].gradients if measured(name)]
    errors = dict.fromkeys(ALL_COLUMNS, 0.0)
    truth = [
        [reference.statistics(s.gradients[n], s.before[n] if owned(s, n) else None, s.after[n]) for n in names]
        for s in steps
    ]
    _norms(evidence, steps, truth, names, errors)
    assert [s.step for s in evidence.snapshots] == list(range(len(steps)))[-20:]
    for snapshot in evidence.snapshots:
        for i, name in enumerate(names):
            _statistics(snapshot.of(name), truth[snapshot.step][i], errors)
    _histograms(seen, steps, names, errors)
    return errors


def owned(step: Step, name: str) -> bool:
    """Whether an optimizer had the parameter in that step; its weight is measured then."""
    return step.owned is None or name in step.owned


def _norms(evidence: Evidence, steps: Sequence[Step], truth: Any, names: list[str], errors: dict[str, float]) -> None:
    norms = [[parameter["grad_norm"] for parameter in row] for row in truth]
    errors["gradient norm"] = _worst(evidence.norms, norms)
    every = [{name: step.gradients[name] for name in names} for step in steps]
    errors["global norm"] = _worst(evidence.global_norm, [reference.total(row) for row in every])
    losses = [step.loss for step in steps]
    errors["loss"] = _worst(evidence.losses, losses) if np.isfinite(losses).any() else np.nan
    clipped = [np.nan if s.clipped is None else reference.total({n: s.clipped[n] for n in names}) for s in steps]
    errors["clipped norm"] = _worst(evidence.clipped_norm, clipped) if np.isfinite(clipped).any() else np.nan


def _statistics(seen: dict[str, float], truth: dict[str, float], errors: dict[str, float]) -> None:
    for column, statistics in COLUMNS.items():
        for name in statistics:
            least = 1e-3 * truth["grad_std"] if name == "grad_mean" else 0.0  # a mean of nearly nothing
            errors[column] = max(errors[column], _worst([seen[name]], [truth[name]], least=least))


def _histograms(found: Seen, steps: Sequence[Step], names: list[str], errors: dict[str, float]) -> None:
    if not found.weight_counts:  # nowhere to show them
        errors["histograms"] = np.nan
        return
    for i, step in enumerate(steps):
        for name in names:
            for seen, arrays in ((found.weight_counts, step.before), (found.gradient_counts, step.gradients)):
                if arrays[name] is None or not arrays[name].size:
                    assert name not in seen.get(i, {})
                else:
                    _same_counts(seen[i][name], arrays[name])


def _same_counts(seen: np.ndarray, values: np.ndarray) -> None:
    """Counts are exact; a sparse tensor counts only what it stores, and zeros and NaN have several bit patterns."""
    truth = reference.bit_counts(values)
    zeros, finite = np.r_[0:8, 2048:2056], np.setdiff1d(np.arange(4096), np.r_[0:8, 2048:2056, 2040:2048, 4088:4096])
    np.testing.assert_array_equal(seen[finite], truth[finite])
    assert seen[zeros].sum() <= truth[zeros].sum()
    assert seen.sum() - seen[finite].sum() - seen[zeros].sum() == np.sum(~np.isfinite(values))


def _worst(seen: Any, truth: Any, least: float = 0.0) -> float:
    """Return the largest relative error; what is unknown or not finite must be so on both sides."""
    seen, truth = np.asarray(seen, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    np.testing.assert_array_equal(np.isnan(seen), np.isnan(truth))
    np.testing.assert_array_equal(np.isinf(seen), np.isinf(truth))
    known = np.isfinite(truth)
    scale = np.maximum(np.maximum(np.abs(truth[known]), least), np.finfo(np.float64).tiny)
    worst = float((np.abs(seen[known] - truth[known]) / scale).max(initial=0.0))
    assert worst <= TOLERANCE, f"{worst:.1e} off"
    return worst
