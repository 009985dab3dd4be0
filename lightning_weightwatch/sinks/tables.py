"""Tables as text: for the console, drawn by rich, and as markdown for TensorBoard's Text tab."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def console_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 110) -> str:
    """Return a table drawn with plain characters; a cell that is too long is folded, never cut.

    Example:
        >>> print(console_table("Fruit", ["name", "n"], [["apple", "3"]], width=30))
        Fruit
         name    n
        ───────────
         apple   3
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, title_style="")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    page = io.StringIO()
    Console(file=page, width=width, color_system=None, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a markdown table; characters that would end a cell or open a tag are escaped.

    Example:
        >>> print(markdown_table(["name"], [["a|b"]]))
        | name |
        | --- |
        | a\|b |
    """
    lines = [list(columns), ["---"] * len(columns), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)


def _escape(cell: str) -> str:
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
