"""The paper every figure is drawn on: its size, its colours, what can be put on it, and its way into a PNG.

Positions are pixels from the top left corner, because TensorBoard shows a figure pixel by pixel and because fixed
rectangles keep a long name from squeezing the picture beside it. Whatever is flat (letters, cells, boxes) is laid into
one array; only curves and dots are left to matplotlib. Axes, tick labels and layouts would take ten times as long.
The user's settings of matplotlib neither show nor are they changed, not even for a moment, so any thread may draw.
"""

from __future__ import annotations

import math
import struct
import zlib
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D
from numpy.typing import ArrayLike, NDArray

from lightning_weightwatch.figures import _letters
from lightning_weightwatch.figures._letters import LINE, TEXT, TITLE

Pixels = NDArray[np.uint8]

WIDTH, HEIGHT, DPI = 640, 310, 100  # TensorBoard's box is about 2 : 1; letters of a wider picture lose strokes there
MARGIN = 10  # pixels kept free at the left and the right edge

INK = "#222222"
QUIET = "#767676"  # what is in order, and small print
PALE = "#EDEDED"  # the ground of what is in order
GOOD = "#1B6E3C"
BAD = "#A01414"
LOW, LOWEST = "#9CC4E4", "#08306B"  # from just below the band to far below it
HIGH, HIGHEST = "#F4A582", "#8E0B1F"
PURPLE, ORANGE = "#6A4C9C", "#C2640A"  # negative and positive; blue and red would read as an alarm
BLACK = "#000000"  # NaN and Inf, nothing else


class Word(NamedTuple):
    """What was written, in which ink, and the box around it."""

    text: str
    size: int
    colour: str
    left: int
    top: int
    right: int
    bottom: int


class Paper(Figure):
    """A white figure of 640 x 310 pixels with its title.

    Attributes:
        pixels: What lies flat on it, shape ``[310, 640, 4]``.
        words: All that was written, in this order.

    Args:
        title: Large if it fits one line, else two lines of text.
        note: Bad news about the numbers themselves, shown in full at the right of the title.
        colour: The title's colour.
    """

    def __init__(self, title: str, *, note: str = "", colour: str = INK) -> None:
        super().__init__(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, frameon=False)
        self.set_layout_engine("none")
        self.pixels: Pixels = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
        self.words: list[Word] = []
        self.add_artist(_Ground(self.pixels))
        room = WIDTH - 2 * MARGIN - (_letters.text_width(note) + MARGIN if note else 0)
        if _letters.text_width(title, TITLE) <= room:
            self.write(MARGIN, 26, title, size=TITLE, colour=colour)
        else:
            lines = _letters.two_lines(title, room)
            for i, line in enumerate(lines):
                self.write(MARGIN, (17 if len(lines) > 1 else 25) + LINE * i, line, colour=colour)
        if note:
            self.write(WIDTH - MARGIN, 26, note, colour=BAD, align="right")

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = TEXT,
        colour: str = INK,
        align: Literal["left", "center", "right"] = "left",
        upright: bool = True,
    ) -> None:
        """Write ``text`` with its baseline at pixel ``y``; turned by 90 degrees about its middle unless ``upright``."""
        text = _letters.clean(text)
        cover, right_of, above = _letters.coverage(text, size)
        shift = {"left": 0.0, "center": 0.5, "right": 1.0}[align] * _letters.text_width(text, size)
        left, top = nearest(x - shift) + right_of, nearest(y) - above
        if not upright:
            cover = np.rot90(cover)
            left, top = nearest(x - cover.shape[1] / 2), nearest(y - cover.shape[0] / 2)
        self.words.append(Word(text, size, colour, left, top, left + cover.shape[1], top + cover.shape[0]))
        cover = cover[max(-top, 0) : HEIGHT - top, max(-left, 0) : WIDTH - left, None] / 255  # what lies on the paper
        left, top = max(left, 0), max(top, 0)
        ground = self.pixels[top : top + cover.shape[0], left : left + cover.shape[1], :3]
        ground[:] = ground * (1 - cover) + ink(colour)[:3] * cover

    def fill(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        """Fill a rectangle of whole pixels."""
        rows, columns = (slice(nearest(a), nearest(b)) for a, b in ((top, top + height), (left, left + width)))
        self.pixels[rows, columns] = ink(colour)

    def lay(self, left: int, top: int, pixels: Pixels) -> None:
        """Lay pixels down as they are; what is transparent leaves the ground in sight."""
        ground = self.pixels[top : top + pixels.shape[0], left : left + pixels.shape[1]]
        np.copyto(ground, pixels, where=pixels[..., 3:] > 0)

    def curve(self, x: ArrayLike, y: ArrayLike, colour: str) -> None:
        """Draw a line through points; NaN is a gap."""
        self.add_artist(_Curve(np.stack([x, y], axis=-1), colour))

    def dots(self, x: ArrayLike, y: ArrayLike, colours: ArrayLike, *, size: float, marker: str = "o") -> None:
        """Draw a dot at every point; its colours are RGBA in 0..1."""
        self.add_artist(_Dots(np.stack([x, y], axis=-1), np.asarray(colours, float), size, marker))

    def say(self, text: str = "no elements") -> Paper:
        """Say in the middle that there is nothing to draw."""
        self.write(WIDTH / 2, HEIGHT / 2, text, size=TITLE, colour=QUIET, align="center")
        return self


@lru_cache(maxsize=64)
def ink(colour: str) -> Pixels:
    """Return a colour as red, green, blue and alpha, 0 to 255."""
    return to_pixels(to_rgba(colour))


def to_pixels(colours: ArrayLike) -> Pixels:
    """Return colours in 0..1 as colours in 0..255."""
    return (np.asarray(colours, float) * 255 + 0.5).astype(np.uint8)


def nearest(place: float) -> int:
    """Return the nearest pixel; Python's ``round`` would make lines of text go up and down by one."""
    return math.floor(place + 0.5)


def hatched(height: int, width: int) -> Pixels:
    """Return the ground of what was not measured: grey lines from corner to corner, transparent between."""
    down, across = np.indices((height, width))
    pixels: Pixels = np.where(((down + across) % 7 == 0)[..., None], ink("#A8A8A8"), np.uint8(0))
    return pixels


# What matplotlib draws: positions count from the bottom left corner there


class _Ground(Artist):
    """All that lies flat."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self._pixels = pixels

    def draw(self, renderer: RendererBase) -> None:
        renderer.draw_image(renderer.new_gc(), 0, 0, self._pixels[::-1])


class _Curve(Artist):
    """A line with smooth edges."""

    def __init__(self, points: NDArray[Any], colour: str) -> None:
        super().__init__()
        self.points, self._colour = points, colour

    def draw(self, renderer: RendererBase) -> None:
        context = renderer.new_gc()
        context.set_foreground(self._colour)
        context.set_linewidth(1.3)  # points
        renderer.draw_path(context, _path(self.points), _FROM_THE_TOP)


class _Dots(Artist):
    """Dots with smooth edges."""

    def __init__(self, points: NDArray[Any], colours: NDArray[Any], size: float, marker: str) -> None:
        super().__init__()
        self.points, self.marker = points, marker
        self._colours, self._size = np.broadcast_to(colours, (len(points), 4)), size

    def draw(self, renderer: RendererBase) -> None:
        context = renderer.new_gc()
        context.set_linewidth(0)
        style = MarkerStyle(self.marker, fillstyle="full")
        shape = style.get_transform() + Affine2D().scale(self._size)
        for colour in np.unique(self._colours, axis=0):
            chosen = (self._colours == colour).all(axis=1)
            places = _path(self.points[chosen] - 0.5)  # it draws round a pixel's middle
            renderer.draw_markers(context, style.get_path(), shape, places, _FROM_THE_TOP, tuple(colour))


_FROM_THE_TOP = Affine2D().scale(1, -1).translate(0, HEIGHT)


def _path(points: NDArray[Any]) -> Path:
    path = Path(points)
    path.should_simplify = False  # else the user's settings say how much
    return path


def encode(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG in red, green and blue; the same figure always gives the same bytes.

    Rows are written as they are: on pictures as flat as these, the filters that Pillow would try on every row take
    five times as long and make the file a third larger.

    Example:
        >>> from lightning_weightwatch.figures import bias_bars
        >>> encode(bias_bars([0.1, -0.2], title="head.bias"))[1:4]
        b'PNG'
    """
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    colours = np.asarray(canvas.buffer_rgba())[..., :3]
    height, width, _ = colours.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a zero before each row says that it is not filtered
    rows[:, 1:] = colours.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits each of red, green and blue
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 3)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
