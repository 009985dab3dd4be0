"""The paper every figure is drawn on: its size, colours, letters and cells.

Positions are pixels from the top left corner, because TensorBoard shows a figure pixel by pixel and because fixed
rectangles keep a long name from squeezing the picture beside it. What a figure means stands in its own file.
"""

from __future__ import annotations

import io
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import takewhile
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

WIDTH, HEIGHT, DPI = 640, 310, 100  # TensorBoard's box is about 2 : 1; letters of a wider picture lose strokes there
MARGIN = 10  # pixels kept free at the left and the right edge
TEXT, TITLE = 12, 16  # points; smaller is not legible in TensorBoard's box
LINE = 17  # pixels from one line of TEXT to the next

INK = "#222222"
QUIET = "#767676"  # what is in order, and small print
PALE = "#EDEDED"  # the ground of what is in order
GOOD = "#1B6E3C"
BAD = "#A01414"
LOW, LOWEST = "#9CC4E4", "#08306B"  # from just below the band to far below it
HIGH, HIGHEST = "#F4A582", "#8E0B1F"
PURPLE, ORANGE = "#6A4C9C", "#C2640A"  # negative and positive; blue and red would read as an alarm
BLACK = "#000000"  # NaN and Inf, nothing else

_FONT = "DejaVu Sans"  # comes with matplotlib, so the letters are the same everywhere
_HOUSE: dict[str, Any] = {
    "font.family": _FONT,
    "font.size": TEXT,
    "text.parse_math": False,  # names with dollar signs are names
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.unicode_minus": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.pad": 3,
    "ytick.major.pad": 3,
    "hatch.color": "#A8A8A8",
    "hatch.linewidth": 1.0,
}
_LOCK = threading.RLock()  # two threads inside rc_context would restore each other's settings


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style whatever style the user has chosen, and leave the user's style as it was."""
    settings: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    settings |= _HOUSE
    with _LOCK, matplotlib.rc_context(settings):
        yield


def canvas(title: str, *, note: str = "", colour: str = INK, width: int = WIDTH, height: int = HEIGHT) -> Figure:
    """Return a blank figure with its title, to be drawn on inside ``house_style``.

    Args:
        title: 16 pt if it fits one line, else two lines of 12 pt.
        note: Bad news about the numbers themselves, shown in full at the right of the title.
        colour: The title's colour.
        width: Pixels.
        height: Pixels.

    Returns:
        A figure that no pyplot knows; it is freed with its last reference.
    """
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    room = width - 2 * MARGIN - (text_width(note) + MARGIN if note else 0)
    if text_width(clean(title), TITLE) <= room:
        write(figure, MARGIN, 26, title, size=TITLE, colour=colour)
    else:
        lines = _two_lines(title, room)
        for i, line in enumerate(lines):
            write(figure, MARGIN, (17 if len(lines) > 1 else 25) + LINE * i, line, colour=colour)
    if note:
        write(figure, width - MARGIN, 26, note, colour=BAD, align="right")
    return figure


def encode(figure: Figure) -> bytes:
    """Return a figure as the bytes of an RGBA PNG; the same figure always gives the same bytes.

    Example:
        >>> from lightning_weightwatch.figures import bias_bars
        >>> encode(bias_bars([0.1, -0.2], title="head.bias"))[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # no version, so bytes stay the same
    return buffer.getvalue()


def axes(figure: Figure, left: float, top: float, width: float, height: float, *, frame: bool = True) -> Axes:
    """Return axes without ticks in the given rectangle of pixels."""
    wide, high = _size(figure)
    made = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))
    made.set_xticks([])
    made.set_yticks([])
    if not frame:
        made.set_axis_off()
    return made


def write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: int = TEXT,
    colour: str = INK,
    align: Literal["left", "center", "right"] = "left",
    upright: bool = True,
) -> None:
    """Write ``text`` literally with its baseline at pixel ``y``; turned by 90 degrees unless ``upright``."""
    wide, high = _size(figure)
    turn: dict[str, Any] = {} if upright else {"rotation": 90, "va": "center"}
    figure.text(x / wide, 1 - y / high, clean(text), fontsize=size, color=colour, ha=align, **turn)


def nothing(figure: Figure, text: str = "no elements") -> Figure:
    """Say in the middle of a figure that there is nothing to draw."""
    wide, high = _size(figure)
    write(figure, wide / 2, high / 2, text, size=TITLE, colour=QUIET, align="center")
    return figure


def _size(figure: Figure) -> tuple[float, float]:
    return figure.get_figwidth() * DPI, figure.get_figheight() * DPI


# Letters


@lru_cache(maxsize=1)
def _font() -> FT2Font:
    font = FT2Font(findfont(_FONT))  # our own copy: matplotlib's cached one is shared with whoever else draws
    font.set_size(100, 72)
    return font


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    return frozenset(_font().get_charmap())


@lru_cache(maxsize=4096)
def _advance(character: str) -> float:
    return _font().load_char(ord(character)).linearHoriAdvance / 65536 / 100 * DPI / 72


def clean(text: str) -> str:
    """Replace what the font has no glyph for; matplotlib would warn about it at every drawing."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() and ord(c) in _characters() else "?" for c in text)


def text_width(text: str, size: int = TEXT) -> float:
    """Return the width of ``text`` in pixels, kerning left out."""
    return sum(map(_advance, clean(text))) * size


def fit(text: str, room: float, *, keep: Literal["start", "end"] = "end", size: int = TEXT) -> str:
    """Shorten ``text`` to ``room`` pixels; the part not kept becomes an ellipsis."""
    text = clean(text)
    if text_width(text, size) <= room:
        return text
    left = room - _advance("…") * size
    kept = ""
    for character in reversed(text) if keep == "end" else text:
        left -= _advance(character) * size
        if left < 0:
            break
        kept += character
    return "…" + _whole_words(kept[::-1]) if keep == "end" else kept + "…"


def _whole_words(tail: str) -> str:
    """Drop the broken word at the start of a dotted name's tail, unless little would be left."""
    whole = tail.partition(".")[2]
    return whole if 2 * len(whole) >= len(tail) > 0 else tail


def short_names(names: Sequence[str], room: float) -> list[str]:
    """Shorten dotted names to ``room`` pixels so that different names stay different.

    The end says most, so it is kept. Where ends are the same, the first part that differs goes in front
    (``layers.11.attention.q_proj`` becomes ``11…q_proj``), and where that is not enough, the position in ``names``.
    """
    short = [fit(name, room) for name in names]
    alike: dict[str, list[int]] = {}
    for i, label in enumerate(short):
        alike.setdefault(label, []).append(i)
    for members in alike.values():
        parts = [names[i].split(".") for i in members]
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
        for i, words in zip(members, parts, strict=True):
            if len(set(map(tuple, parts))) > 1 and shared < len(words):
                head = fit(words[shared], room / 2)
                short[i] = head + fit("…" + ".".join(words[shared + 1 :]), room - text_width(head))
    counts = Counter(short)
    return [_numbered(i, names[i], room) if counts[s] > 1 else s for i, s in enumerate(short)]


def _numbered(position: int, name: str, room: float) -> str:
    place = f"#{position}"
    return place + fit(f"…{name}", room - text_width(place))


def number(value: float) -> str:
    """Return two digits of a number in few characters: ``0.31``, ``3e-7``, ``1e30``."""
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _two_lines(text: str, room: float) -> list[str]:
    """Break ``text`` at spaces; a word without any is shortened from the left, an overlong text from the right."""
    words = [fit(word, room) for word in text.split()]
    count = 1
    while count < len(words) and text_width(" ".join(words[: count + 1])) <= room:
        count += 1
    first, rest = " ".join(words[:count]), " ".join(words[count:])
    return [first, fit(rest, room, keep="start")] if rest else [first]


# Cells


def group_size(count: int, most: int) -> int:
    """Return how many neighbours share a cell so that ``count`` of them need at most ``most`` cells."""
    return max(1, math.ceil(count / most))


def pool(values: ArrayLike, urgency: ArrayLike, rows: int, columns: int) -> Floats:
    """Return, for each block of cells, the value whose urgency is highest; the first of equals.

    Nothing is averaged: an average would hide the one layer or the one step a reader looks for.

    Args:
        values: Shape ``[R, C]``, at least one element; may hold NaN.
        urgency: Shape ``[R, C]``, neither NaN nor -Inf.
        rows: Neighbouring rows in a block. The last block takes what is left.
        columns: Neighbouring columns in a block.

    Returns:
        Shape ``[ceil(R / rows), ceil(C / columns)]``.

    Example:
        >>> pool([[1.0, -5.0, 2.0]], [[1.0, 5.0, 2.0]], rows=1, columns=2)
        array([[-5.,  2.]])
    """
    values = _blocks(np.asarray(values, float), rows, columns, np.nan)
    urgency = _blocks(np.asarray(urgency, float), rows, columns, -np.inf)
    best = urgency.argmax(axis=-1)
    picked: Floats = np.take_along_axis(values, best[..., None], axis=-1)[..., 0]
    return picked


def pool_largest(values: ArrayLike, rows: int, columns: int) -> Floats:
    """Pool by the value of largest magnitude, NaN and Inf above all; see ``pool``."""
    values = np.asarray(values, float)
    return pool(values, np.where(np.isfinite(values), np.abs(values), np.inf), rows, columns)


def ends(values: Floats, group: int) -> tuple[Floats, Floats]:
    """Return the least and the greatest finite value of every ``group`` neighbours; NaN where none is finite.

    Example:
        >>> ends(np.array([1.0, 3.0, 2.0]), 2)
        (array([1., 2.]), array([3., 2.]))
    """
    blocks = _blocks(values[None], 1, group, np.nan)[0]
    finite = np.isfinite(blocks)
    nothing_there = ~finite.any(axis=1)
    low = np.where(finite, blocks, np.inf).min(axis=1)
    high = np.where(finite, blocks, -np.inf).max(axis=1)
    return np.where(nothing_there, np.nan, low), np.where(nothing_there, np.nan, high)


def _blocks(grid: Floats, rows: int, columns: int, filler: float) -> Floats:
    down, across = math.ceil(grid.shape[0] / rows), math.ceil(grid.shape[1] / columns)
    padding = ((0, down * rows - grid.shape[0]), (0, across * columns - grid.shape[1]))
    padded = np.pad(grid, padding, constant_values=filler)
    blocks: Floats = padded.reshape(down, rows, across, columns).swapaxes(1, 2).reshape(down, across, -1)
    return blocks


# Signed values


def count_non_finite(values: NDArray[Any]) -> str:
    """Return the note for a title: how many elements are NaN or Inf, or nothing if none is."""
    bad = values.size - int(np.isfinite(values).sum())
    return f"{bad:,} of {values.size:,} NaN/Inf" if bad else ""


def colour_limit(values: Floats) -> tuple[float, bool]:
    """Return the magnitude with the darkest colour, and whether some value lies beyond it.

    It is the largest finite magnitude, unless a few outliers would leave everything else blank.
    """
    finite = np.abs(values[np.isfinite(values)])
    if not finite.size or not finite.max():
        return 1.0, False
    most, usual = float(finite.max()), 1.5 * float(np.quantile(finite, 0.99))
    return (usual, True) if 0 < usual < most else (most, False)


def signed_colours(values: ArrayLike, limit: float) -> Floats:
    """Return RGBA in 0..1, shape ``[..., 4]``: purple below zero, orange above, near white at it, black non-finite."""
    values = np.asarray(values, float)
    colours: Floats = matplotlib.colormaps["PuOr_r"](0.5 + 0.4 * _share(values, limit))  # its ends are all but black
    colours[~np.isfinite(values)] = (0, 0, 0, 1)
    return colours


def grey_colours(values: ArrayLike, limit: float) -> Floats:
    """Return RGBA in 0..1 for values whose last axis is red, green, blue; zero is grey, only non-finite is black."""
    values = np.asarray(values, float)
    colours = np.ones((*values.shape[:-1], 4))
    colours[..., :3] = 0.58 + 0.42 * _share(values, limit)  # the least is 0.16: dark, yet not black
    colours[~np.isfinite(values).all(axis=-1)] = (0, 0, 0, 1)
    return colours


def _share(values: Floats, limit: float) -> Floats:
    with np.errstate(over="ignore"):
        share: Floats = np.clip(np.where(np.isfinite(values), values, 0) / limit, -1, 1)
    return share


def colour_bar(figure: Figure, colours: Floats, top: float, height: float, *, limit: float, beyond: bool) -> None:
    """Draw ``colours``, shape ``[n, 4]`` from least to greatest, at the right edge; arrows say that some lie beyond."""
    left, top, height = WIDTH - MARGIN - 86, top + 12, height - 24  # room for the arrows
    bar = axes(figure, left, top, 12, height)
    bar.imshow(colours[::-1, None, :], aspect="auto", interpolation="nearest")
    for label, y in zip((number(limit), "0", number(-limit)), (12, height / 2 + 6, height), strict=True):
        write(figure, left + 18, top + y, label)
    if beyond:
        for arrow, y in (("▲", -2), ("▼", height + 13)):
            write(figure, left + 6, top + y, arrow, colour=QUIET, align="center")


def spaced_ticks(candidates: Sequence[tuple[float, str]], pixels_per_unit: float) -> list[tuple[float, str]]:
    """Keep, from the left, the ticks whose labels do not run into the one before."""
    kept: list[tuple[float, str]] = []
    free = -math.inf
    for position, label in candidates:
        half = text_width(label) / 2
        if position * pixels_per_unit - half >= free:
            kept.append((position, label))
            free = position * pixels_per_unit + half + MARGIN
    return kept


def index_ticks(count: int, most: int) -> dict[float, str]:
    """Return where and how to mark round indices from 0, at most ``most``; index ``i`` is drawn at ``i + 0.5``.

    Example:
        >>> index_ticks(256, 5)
        {0.5: '0', 100.5: '100', 200.5: '200'}
    """
    step = next(s for power in range(20) for s in (10**power, 2 * 10**power, 5 * 10**power) if (count - 1) // s < most)
    return {i + 0.5: f"{i // 1000}k" if i >= 10_000 and step >= 1000 else f"{i:,}" for i in range(0, count, step)}
