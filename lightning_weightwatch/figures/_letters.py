"""Letters: how many fit, and their pixels.

Pillow sets them (matplotlib brings it): a word takes it a tenth of the time of matplotlib's layout, and a word that
was set before takes none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TEXT, TITLE = 17, 22  # pixels, 12 and 16 points; smaller is not legible in TensorBoard's box
LINE = 17  # pixels from one line of TEXT to the next

_FILE = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))  # the letters are the same everywhere


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FILE, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    return frozenset(FT2Font(_FILE).get_charmap())


@lru_cache(maxsize=4096)
def _advance(character: str, size: int) -> float:
    return _font(size).getlength(character)


@lru_cache(maxsize=512)
def coverage(text: str, size: int) -> tuple[NDArray[Any], int, int]:
    """Return how much of each pixel the ink covers, 0 to 255, and where its corner lies right of and above the start.

    Sixteen shades are told apart, which no eye sees and which makes a picture a quarter smaller.
    """
    above = 2 * size
    image = Image.new("L", (math.ceil(text_width(text, size)) + 2 * size, 3 * size))
    ImageDraw.Draw(image).text((size, above), text, fill=255, font=_font(size), anchor="ls")
    left, top, right, bottom = image.getbbox() or (size, above, size, above)
    return np.asarray(image)[top:bottom, left:right] // 17 * 17, left - size, above - top


def clean(text: str) -> str:
    """Replace what the font has no glyph for."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() and ord(c) in _characters() else "?" for c in text)


def text_width(text: str, size: int = TEXT) -> float:
    """Return the width of ``text`` in pixels, kerning left out."""
    return sum(_advance(character, size) for character in clean(text))


def fit(text: str, room: float, *, keep: Literal["start", "end"] = "end", size: int = TEXT) -> str:
    """Shorten ``text`` to ``room`` pixels; the part not kept becomes an ellipsis."""
    text = clean(text)
    if text_width(text, size) <= room:
        return text
    if keep == "end":
        return "…" + _whole_words(_fitting(text[::-1], room, size)[::-1])
    return _fitting(text, room, size) + "…"


def _fitting(text: str, room: float, size: int = TEXT) -> str:
    """Return the first characters of ``text`` that fit beside an ellipsis."""
    left = room - _advance("…", size)
    kept = 0
    for character in text:
        left -= _advance(character, size)
        if left < 0:
            break
        kept += 1
    return text[:kept]


def _whole_words(tail: str) -> str:
    """Drop the broken word at the start of a dotted name's tail, unless little would be left."""
    whole = tail.partition(".")[2]
    return whole if 2 * len(whole) >= len(tail) > 0 else tail


def short_names(names: Sequence[str], room: float) -> list[str]:
    """Shorten dotted names to ``room`` pixels so that different names stay different.

    The end says most, so it is kept. Where ends are the same, the longest end that fits is taken, even if it begins
    within a word; where these are the same too, the first part that differs goes in front
    (``layers.11.attention.q_proj`` becomes ``11…q_proj``); and where that is not enough, the position in ``names``.
    """
    return list(_short_names(tuple(names), room))


@lru_cache(maxsize=8)
def _short_names(names: tuple[str, ...], room: float) -> tuple[str, ...]:
    """Remember the answer: a run draws the same layers again and again."""
    short = [fit(name, room) for name in names]
    alike: dict[str, list[int]] = {}
    for i, label in enumerate(short):
        alike.setdefault(label, []).append(i)
    for members in alike.values():
        if len(members) > 1:
            for i, label in zip(members, _told_apart([names[i] for i in members], room), strict=True):
                short[i] = label
    counts = Counter(short)
    return tuple(_numbered(i, names[i], room) if counts[s] > 1 else s for i, s in enumerate(short))


def _told_apart(names: Sequence[str], room: float) -> list[str]:
    """Shorten names whose last words are the same."""
    tails = ["…" + _fitting(clean(name)[::-1], room)[::-1] for name in names]
    if len(set(tails)) == len(tails):
        return tails
    parts = [name.split(".") for name in names]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
    if any(shared >= len(words) for words in parts):
        return tails
    heads = [fit(words[shared], room / 2) for words in parts]
    return [
        head + fit("…" + ".".join(words[shared + 1 :]), room - text_width(head))
        for head, words in zip(heads, parts, strict=True)
    ]


def _numbered(position: int, name: str, room: float) -> str:
    place = f"#{position}"
    return place + fit(f"…{name}", room - text_width(place))


def number(value: float) -> str:
    """Return two digits of a number in few characters: ``0.31``, ``3e-7``, ``1e30``."""
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def two_lines(text: str, room: float) -> list[str]:
    """Break ``text`` at spaces; a word without any is shortened from the left, an overlong text from the right."""
    words = [fit(word, room) for word in text.split()]
    count = 1
    while count < len(words) and text_width(" ".join(words[: count + 1])) <= room:
        count += 1
    first, rest = " ".join(words[:count]), " ".join(words[count:])
    return [first, fit(rest, room, keep="start")] if rest else [first]
