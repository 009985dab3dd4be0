"""How the cost of each path grows with the number of tensors."""

from __future__ import annotations

from pathlib import Path

import ours
import peers
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from shapes import with_gradients
from tables import Settings, Table, say
from timing import typical

_COUNTS = (10, 100, 1_000, 10_000)
_ELEMENTS = 1_000
_ACTS = {
    "ours, every step: norms": ours.always_on,
    "ours, when due: full statistics": ours.full_statistics,
    "ours, when due: histograms": ours.histograms,
    "clip_grad_norm_": peers.clip,
}
_STYLES = (("#1B6E3C", 3.5, "-"), ("#C2640A", 3.5, "-"), ("#6A4C9C", 3.5, "-"), ("#767676", 2.5, "--"))


def measure(settings: Settings) -> Table:
    """Measure microseconds per tensor."""
    rows: dict[str, list[float]] = {what: [] for what in _ACTS}
    for count in _COUNTS:
        say(f"scaling, {count:,} tensors")
        module = with_gradients([(_ELEMENTS,)] * count, settings.device)
        for what, prepare in _ACTS.items():
            with prepare(module) as act:
                rows[what].append(1e6 * typical(act, rounds=settings.rounds) / count)
    title = f"Microseconds per tensor of {_ELEMENTS:,} elements, by the number of tensors"
    return Table(title, [f"{count:,}" for count in _COUNTS], rows)


def draw(table: Table, device: str, path: Path) -> None:
    """Draw the table, to be read from the back of a room; the legend stands in the order of the lines' ends."""
    figure = Figure(figsize=(10.8, 5.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for (what, row), (colour, width, line) in zip(table.rows.items(), _STYLES, strict=True):
        axes.plot(_COUNTS, row, line, color=colour, linewidth=width, marker="o", markersize=8, label=what)
    axes.set(xscale="log", yscale="log")
    axes.set_title(f"Cost per tensor of {_ELEMENTS:,} elements", loc="left", fontsize=20, pad=14)
    axes.set_xlabel("tensors", fontsize=16)
    axes.set_ylabel("microseconds per tensor", fontsize=16)
    axes.set_xticks(_COUNTS, [f"{count:,}" for count in _COUNTS])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.tick_params(labelsize=15)
    axes.grid(color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    lines = sorted(axes.get_lines(), key=lambda line: line.get_ydata()[-1], reverse=True)
    axes.legend(handles=lines, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=15)
    figure.supxlabel(device, x=0.99, ha="right", fontsize=12, color="#767676")
    FigureCanvasAgg(figure).print_png(path)
