"""Tables as text: for the console, and as markdown for TensorBoard's Text tab.

They are drawn by tabulate. rich would draw nicer ones, but Lightning takes another progress bar wherever rich is
installed, and a watcher must not change what the run looks like.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

_MEANINGFUL = re.compile(r"[\\`*|\[]|_(?![^\W_])|(?<![^\W_])_")  # an underscore within a word means nothing


def console_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, widest: int = 44) -> str:
    """Return a table drawn with plain characters; a cell longer than ``widest`` is folded, never cut.

    Example:
        >>> print(console_table("Fruit", ["name", "n"], [["apple", "3"]]))
        Fruit
        name    n
        ------  ---
        apple   3
    """
    if not rows:
        return title
    cells = [list(row) for row in rows]
    return f"{title}\n{tabulate(cells, list(columns), disable_numparse=True, maxcolwidths=[widest] * len(columns))}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a markdown table that shows every cell as it is: what means something in markdown is escaped.

    Example:
        >>> print(markdown_table(["name"], [["a|b"]]))
        | name   |
        |--------|
        | a\|b   |
    """
    cells = [[escape(cell) for cell in row] for row in rows]
    return tabulate(cells, [escape(column) for column in columns], tablefmt="github", disable_numparse=True)


def escape(cell: str) -> str:
    r"""Return text that markdown shows as it is.

    Example:
        >>> print(escape("a<b and *c* of layer_1"))
        a&lt;b and \*c\* of layer_1
    """
    plain = cell.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return _MEANINGFUL.sub(r"\\\g<0>", plain)
