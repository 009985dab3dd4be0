"""What the histogram logger shows: histograms on steady axes, heat maps and bar charts.

It takes counts and arrays that were brought to the host; it decides no cadence and reads no module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lightning_weightwatch import figures
from lightning_weightwatch.callbacks._guard import attempt
from lightning_weightwatch.callbacks._names import numbered
from lightning_weightwatch.parameters import Parameter
from lightning_weightwatch.sinks import Histogram, Sinks
from lightning_weightwatch.stats import histogram

_ROOM = 1.5  # the axis is this much wider than what is first seen
BINS = 48  # 32 of them on what is first seen; TensorBoard draws 30 there, however many it is given
_OVERFLOW = 0.05  # the share outside the axis at which it is set anew

Array = NDArray[np.float64]


class WeightPages:
    """The histogram logger's part of a TensorBoard page.

    Args:
        sinks: Where to show.
        prefix: The first part of every tag.
        parameters: All that may be shown, in forward order; this gives each its number.
        axes: Lower and upper end of each weight's axis so far; kept up to date here, so that a resumed run goes on
            with the same axes.
    """

    def __init__(
        self, sinks: Sinks, prefix: str, parameters: Sequence[Parameter], axes: dict[str, list[float]]
    ) -> None:
        self._sinks, self._prefix, self._axes = sinks, prefix, axes
        self._told: set[str] = set()
        self._marked: set[str] = set()
        self._sizes = {p.name: p.numel for p in parameters}
        self._tags = dict(zip([p.name for p in parameters], numbered([p.name for p in parameters]), strict=True))

    def weights(self, counts: Mapping[str, Array], step: int) -> None:
        """Show the distribution of weights and biases on linear axes that stay put."""
        shown = []
        for name, row in counts.items():
            edges = self._edges(name, row)
            if edges is not None:
                shown.append(Histogram(self._tag("weight_hist", name), edges, histogram.linear(row, edges)))
        self._sinks.histograms(shown, step)
        self._marks("weight", counts, step, zeros=False)

    def gradients(self, counts: Mapping[str, Array], step: int) -> None:
        """Show the distribution of log10 of the gradients' magnitude, and the shares of zeros beside it."""
        shown = []
        for name, row in counts.items():
            edges, filled = histogram.log10(row)
            if filled.size:
                shown.append(Histogram(self._tag("grad_log10_hist", name), edges, filled))
        self._sinks.histograms(shown, step)
        self._marks("grad", counts, step, zeros=True)

    def figures(self, arrays: Mapping[str, Array], kinds: Mapping[str, str], step: int) -> None:
        """Draw convolution filters, weight matrices and bias bars."""
        for name, array in arrays.items():
            attempt("Drawing weights", partial(self._draw, name, array, kinds[name], step), self._told)

    def _draw(self, name: str, array: Array, kind: str, step: int) -> None:
        title = f"{name} at step {step}"
        if array.ndim < 2:
            figure, tag = figures.bias_bars(array, title=title), self._tag("fig_bias", name)
        elif kind == "convolution":
            figure, tag = figures.convolution_filters(array, title=title), self._tag("fig_weight", name)
        else:
            matrix = array.reshape(array.shape[0], -1)
            figure, tag = figures.weight_matrix(matrix, title=title), self._tag("fig_weight", name)
        self._sinks.image(tag, figures.encode(figure), step)

    def _tag(self, what: str, name: str) -> str:
        return f"{self._prefix}.{what}/{self._tags[name]}"

    def _edges(self, name: str, row: Array) -> Array | None:
        """Return the axis of a weight, which moves only when too much has left it; ``None`` without finite elements."""
        low, high = histogram.finite_range(row)
        if np.isnan(low):
            return None
        axis = self._axes.get(name)
        inside = axis is not None and axis[0] <= low and high <= axis[1]
        if axis is None or (not inside and _share_outside(row, axis) > _OVERFLOW):
            middle, half = (low + high) / 2, _ROOM * (high - low) / 2
            half = max(half, 1e-3 * abs(middle), 1e-12)
            axis = self._axes[name] = [float(middle - half), float(middle + half)]
        return np.linspace(axis[0], axis[1], BINS + 1)

    def _marks(self, what: str, counts: Mapping[str, Array], step: int, *, zeros: bool) -> None:
        """Log what a histogram cannot show: non-finite elements, where there are any, and zeros."""
        marks: dict[str, float] = {}
        for name, row in counts.items():
            nonfinite, total = histogram.nonfinite_count(row), row.sum()
            tag = self._tag(f"{what}_nonfinite", name)
            if nonfinite or tag in self._marked:  # a curve that has begun also shows the recovery
                marks[tag] = nonfinite
                self._marked.add(tag)
            if zeros and total:
                unstored = max(self._sizes[name] - total, 0)  # a sparse gradient stores no zeros
                zero = histogram.zero_count(row) + unstored
                marks[self._tag(f"{what}_zero_share", name)] = zero / (total + unstored)
        self._sinks.scalars(marks, step, detail=True)


def _share_outside(row: Array, axis: Sequence[float]) -> float:
    edges = np.array([-np.finfo(np.float64).max, axis[0], axis[1], np.finfo(np.float64).max])
    below, inside, above = histogram.linear(row, edges)
    total = below + inside + above
    return float((below + above) / total) if total else 0.0
