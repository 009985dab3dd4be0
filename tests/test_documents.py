"""What people read is what the code says."""

import doctest
import json
import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
RESULTS = json.loads((REPOSITORY / "benchmarks" / "results" / "overhead-cpu.json").read_text(encoding="utf-8"))


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{target} does not exist"


def test_the_reference_is_what_the_docstrings_say() -> None:
    """If it is not: ``make docs``."""
    pages = runpy.run_path(str(REPOSITORY / "docs" / "build.py"))["pages"]()
    stale = [path for path, page in pages.items() if text(f"docs/{path}") != page]
    assert stale == []


def test_no_page_of_the_reference_is_left_over() -> None:
    pages = runpy.run_path(str(REPOSITORY / "docs" / "build.py"))["pages"]()
    written = {str(p.relative_to(REPOSITORY / "docs")) for p in (REPOSITORY / "docs").rglob("*.md")}
    by_hand = {"tutorial_numbers", "truth_table", "never", "costs", "accuracy", "architectures"}
    assert written - pages.keys() == {f"{name}.md" for name in by_hand}


def test_the_readmes_costs_are_those_that_were_measured() -> None:
    quoted = re.findall(r"^\| (\w[^|]+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", text("README.md"), re.MULTILINE)
    measured = {what: tuple(f"{value:.3g}" for value in ratio) for what, ratio in RESULTS["ratios"].items()}
    assert {what: (least, median, most) for what, median, least, most in quoted} == measured


def test_the_readmes_audit_costs_are_those_that_were_measured() -> None:
    found = json.loads((REPOSITORY / "benchmarks" / "results" / "audit-cpu.json").read_text(encoding="utf-8"))
    resnet, gpt = (found["InitAuditor"][name]["extra steps"] for name in ("small ResNet", "small GPT"))
    alone, batch = found["audit_init"].values()
    readme = " ".join(text("README.md").split())
    assert f"takes {resnet:.2f} of a plain step longer in the small ResNet and {gpt:.2f} in the small GPT" in readme
    assert f"takes {alone['seconds']:.2f} s and {100 * alone['extra memory']:.0f} % of the model's memory" in readme
    assert f"on copies, {batch['seconds']:.1f} s and {batch['extra memory']:.1f} times the model" in readme


def test_accuracy_is_told_as_it_was_measured() -> None:
    tools = json.loads((REPOSITORY / "benchmarks" / "results" / "accuracy-cpu.json").read_text(encoding="utf-8"))[
        "tools"
    ]
    for tool, part in tools.items():
        overall = _cells(part["table"]["overall"])
        assert [f"{tool} {part['version']}", *overall] in _rows("README.md")
        for rule, rates in part["table"].items():
            assert [rule, *_cells(rates)] in _rows("docs/accuracy.md")


def _rows(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text(page).splitlines() if line[:1] == "|"]


def _cells(rates: dict[str, float | None]) -> list[str]:
    """Return what a table shows of the counts, the shares and the delay of one line."""
    plain = {"cases", "runs", "delay"}
    shown = {
        key: f"{value:g}" if key in plain else f"{100 * value:.0f} %"
        for key, value in rates.items()
        if value is not None
    }
    return [shown.get(key, "") for key in rates]


def test_the_page_of_costs_tells_what_was_measured() -> None:
    page = text("docs/costs.md")
    for section, rows in RESULTS.items():
        if isinstance(rows, dict):
            missing = [row for row in rows if row not in page]
            assert not missing, f"{section}: {missing}"


def test_the_readmes_python_examples_run() -> None:
    failed, ran = doctest.testfile(str(REPOSITORY / "README.md"), module_relative=False)
    assert ran > 0
    assert failed == 0


def test_contributing_names_every_folder() -> None:
    rooms = {p.name for p in (REPOSITORY / "lightning_weightwatch").iterdir()}
    rooms = {room for room in rooms if not room.startswith(("_", "py.typed"))} - {"errors.py", "cli"}
    missing = {room for room in rooms if f"`{room}" not in text("CONTRIBUTING.md")}
    assert missing == set()
