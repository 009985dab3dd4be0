"""The truth table of the documentation, drawn from the tests that ran: ``make truth``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from tests.truth.compare import ALL_COLUMNS, TOLERANCE

HEAD = f"""# Truth table

Each line is a training that was watched, and run again in plain torch without this package; `pytest tests/truth` does
both and compares every parameter in every step, on every rank. A cell is the largest relative error over all of them
(the tests allow {TOLERANCE:.0e}), *exact* where the numbers are equal, and a dash where there is nothing to measure,
such as a norm after clipping where nothing clips. The error of a mean is taken relative to a thousandth of the standard
deviation, if the mean is smaller than that: gradients average to nearly nothing.

Written by `make truth` from the tests that ran.
"""
TITLES = {
    "one process": "## One process",
    "several processes": """## Several processes

Trained in double precision where the strategy allows it (all but FSDP1): processes add up gradients in another order
than one process does, and in single precision that order shows, whoever measures.""",
    "not measured": """## Not measured

What cannot be measured is said to be, with the reason, and never shown as zero. These are the words.""",
}


def page(cells: Iterable[tuple[str, str, Any]]) -> str:
    """Return the page.

    Args:
        cells: Kind, setting and the errors by column; of the kind ``not measured``, what was said.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind, setting, content in cells:
        found.setdefault(kind, {})[setting] = content
    tables = {kind: _errors(rows) for kind, rows in found.items() if kind != "not measured"}
    said = [[what, f"`{words}`"] for what, words in found["not measured"].items()]
    tables["not measured"] = _table(["what", "what is said"], said)
    return "\n".join([HEAD, *(f"{title}\n\n{tables[kind]}\n" for kind, title in TITLES.items())])


def _errors(rows: Mapping[str, Mapping[str, float]]) -> str:
    cells = [[setting, *(_cell(errors[column]) for column in ALL_COLUMNS)] for setting, errors in rows.items()]
    return _table(["setting", *ALL_COLUMNS], cells)


def _cell(error: float) -> str:
    if error != error:
        return "-"
    return f"{error:.0e}" if error else "exact"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, list(columns), tablefmt="github", disable_numparse=True)


def settings(page: str) -> Mapping[str, list[str]]:
    """Return the settings that a page tells of, by heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in page.splitlines():
        heading = line.removeprefix("## ") if line.startswith("## ") else heading
        if line.startswith("| ") and not line.startswith(("| setting", "| what")):
            found.setdefault(heading, []).append(line.split("|")[1].strip())
    return found
