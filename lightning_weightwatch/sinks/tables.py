"""Tables as text: for the console, and as markdown for TensorBoard's Text tab.

They are drawn by tabulate. rich would draw nicer ones, but Lightning takes another progress bar wherever rich is
installed, and a watcher must not change what the run looks like.
"""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate


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
    r"""Return a markdown table; characters that would end a cell or open a tag are escaped.

    Example:
        >>> print(markdown_table(["name"], [["a|b"]]))
        | name   |
        |--------|
        | a\|b   |
    """
    cells = [[_escape(cell) for cell in row] for row in rows]
    return tabulate(cells, [_escape(column) for column in columns], tablefmt="github", disable_numparse=True)


def _escape(cell: str) -> str:
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
