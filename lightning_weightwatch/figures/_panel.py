"""A rectangle of the paper with a scale of its own, which takes the place of matplotlib's axes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_weightwatch.figures import _letters
from lightning_weightwatch.figures._cells import Floats
from lightning_weightwatch.figures._paper import MARGIN, QUIET, WIDTH, Paper, hatched, ink, to_pixels

_TICK = 4  # pixels


@dataclass(frozen=True)
class Panel:
    """A rectangle of the paper, in pixels, and what its edges stand for.

    Attributes:
        paper: Where it lies.
        left: Its left edge.
        top: Its top edge.
        width: How wide it is.
        height: How high it is.
        x: The numbers at its left and right edge.
        y: The numbers at its top and bottom edge.
    """

    paper: Paper
    left: int
    top: int
    width: int
    height: int
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)

    def across(self, x: ArrayLike) -> Floats:
        """Return the pixels at which numbers lie."""
        return self.left + self._share(x, self.x) * self.width

    def down(self, y: ArrayLike) -> Floats:
        """Return the pixels at which numbers lie."""
        return self.top + self._share(y, self.y) * self.height

    @staticmethod
    def _share(values: ArrayLike, ends: tuple[float, float]) -> Floats:
        return (np.asarray(values, float) - ends[0]) / (ends[1] - ends[0])

    def frame(self, sides: str = "left right top bottom") -> None:
        """Draw lines just outside its sides."""
        right, bottom = self.left + self.width, self.top + self.height
        lines = {
            "left": (self.left - 1, self.top - 1, 1, self.height + 2),
            "right": (right, self.top - 1, 1, self.height + 2),
            "top": (self.left - 1, self.top - 1, self.width + 2, 1),
            "bottom": (self.left - 1, bottom, self.width + 2, 1),
        }
        for side in sides.split():
            self.paper.fill(*lines[side], QUIET)

    def cells(self, colours: Floats) -> None:
        """Fill it with cells, RGBA in 0..1, shape ``[rows, columns, 4]``."""
        rows, columns = (
            np.arange(pixels) * cells // pixels
            for pixels, cells in zip((self.height, self.width), colours.shape[:2], strict=True)
        )
        self.paper.lay(self.left, self.top, to_pixels(colours)[rows[:, None], columns])

    def hatch(self) -> None:
        """Hatch it, as the ground of what was not measured."""
        self.paper.lay(self.left, self.top, hatched(self.height, self.width))

    def boxes(self, left: ArrayLike, right: ArrayLike, top: ArrayLike, bottom: ArrayLike, colour: str) -> None:
        """Fill boxes of whole pixels; one with an edge that is not finite is left out."""
        edges = np.stack(np.broadcast_arrays(self.across(left), self.across(right), self.down(top), self.down(bottom)))
        edges = edges[:, np.isfinite(edges).all(axis=0)]
        edges[:2] = edges[:2].clip(self.left, self.left + self.width)
        edges[2:] = edges[2:].clip(self.top, self.top + self.height)
        for a, b, c, d in np.floor(edges + 0.5).astype(int).T.tolist():
            self.paper.pixels[c:d, a:b] = ink(colour)

    def curve(self, x: ArrayLike, y: ArrayLike, colour: str) -> None:
        """Draw a line through points; NaN is a gap."""
        self.paper.curve(self.across(x), self.down(y), colour)

    def dots(self, x: ArrayLike, y: ArrayLike, colours: ArrayLike, *, size: float, marker: str = "o") -> None:
        """Draw a dot at every point; its colours are RGBA in 0..1."""
        self.paper.dots(self.across(x), self.down(y), colours, size=size, marker=marker)

    def ticks_below(self, ticks: Iterable[tuple[float, str]], *, until: float = WIDTH) -> None:
        """Mark numbers below it, but those whose label would run into the one at its left or over pixel ``until``."""
        free, bottom = -math.inf, self.top + self.height
        for x, label in ticks:
            place, half = float(self.across(x)), _letters.text_width(label) / 2
            if place - half >= free and place + half <= until:
                self.paper.fill(place - 0.5, bottom, 1, _TICK, QUIET)
                self.paper.write(place, bottom + 20, label, align="center")
                free = place + half + MARGIN

    def ticks_beside(self, ticks: Iterable[tuple[float, str]], *, marks: bool = True) -> None:
        """Mark numbers at its left."""
        for y, label in ticks:
            place = float(self.down(y))
            if marks:
                self.paper.fill(self.left - _TICK, place - 0.5, _TICK, 1, QUIET)
            self.paper.write(self.left - 8, place + 6, label, align="right")


def round_numbers(least: float, greatest: float, most: int) -> list[int]:
    """Return the multiples of 1, 2 or 5 times a power of ten within two numbers, as many as possible up to ``most``.

    Example:
        >>> round_numbers(0, 255, 5)
        [0, 100, 200]
    """
    for step in (digit * 10**power for power in range(400) for digit in (1, 2, 5)):
        first, last = math.ceil(least / step), math.floor(greatest / step)
        if last - first < most:
            return [i * step for i in range(first, last + 1)]
    return []


def index_ticks(count: int, most: int) -> list[tuple[float, str]]:
    """Return where and how to mark round indices from 0, at most ``most``; index ``i`` is drawn at ``i + 0.5``.

    Example:
        >>> index_ticks(256, 5)
        [(0.5, '0'), (100.5, '100'), (200.5, '200')]
    """
    marked = round_numbers(0, count - 1, most)
    thousands = len(marked) > 1 and marked[1] % 1000 == 0
    return [(i + 0.5, f"{i // 1000}k" if i >= 10_000 and thousands else f"{i:,}") for i in marked]


def colour_bar(paper: Paper, colours: Floats, top: int, height: int, *, limit: float, beyond: bool) -> None:
    """Draw ``colours``, shape ``[n, 4]`` from least to greatest, at the right edge; arrows say that some lie beyond."""
    bar = Panel(paper, WIDTH - MARGIN - 86, top + 12, 12, height - 24)  # room for the arrows
    bar.cells(colours[::-1, None])
    bar.frame()
    labels = _letters.number(limit), "0", _letters.number(-limit)
    for label, y in zip(labels, (12, bar.height / 2 + 6, bar.height), strict=True):
        paper.write(bar.left + 18, bar.top + y, label)
    if beyond:
        for arrow, y in (("▲", -3), ("▼", bar.height + 14)):
            paper.write(bar.left + 6, bar.top + y, arrow, colour=QUIET, align="center")
