"""The page of what must never happen names tests that exist, and all of these."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "never.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| elsewhere", "| ---"))]
NAMED = {match for row in ROWS for match in re.findall(r"`(tests/[^`]+)`", row)}


def ids_in(path: Path) -> set[str]:
    """Return the ids of the tests that stand in a file."""
    names = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if hasattr(node, "name")]
    return {f"{path.relative_to(REPOSITORY).as_posix()}::{name}" for name in names if name.startswith("test_")}


def test_every_test_on_the_page_exists() -> None:
    files = {REPOSITORY / test.partition("::")[0] for test in NAMED}
    missing = [str(path.relative_to(REPOSITORY)) for path in files if not path.exists()]
    assert missing == []
    assert NAMED - set().union(*map(ids_in, files)) == set()


def test_every_test_of_this_folder_is_on_the_page() -> None:
    here = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    assert set().union(*map(ids_in, here)) - NAMED == set()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r"\W+", " ", row)[:60].strip())
def test_every_line_says_who_suffered_what_is_done_and_what_would_fail(row: str) -> None:
    elsewhere, here, tests = (cell.strip() for cell in row.strip("| ").split(" | "))
    assert re.search(r"\([\w-]+ #\d+(, ([\w-]+ )?#\d+)*\)\.$", elsewhere)
    assert here.endswith(".")
    assert re.fullmatch(r"(`tests/[\w/]+\.py::test_\w+` ?)+", tests)


def test_the_page_leads_nowhere_outside() -> None:
    assert not re.search(r"https?:|www\.|\.(com|org|io)\b", PAGE)
