"""The page in the documentation tells of the tests that there are."""

from pathlib import Path

from tests.truth import table, test_many_processes, test_not_measured, test_one_process

PAGE = Path(__file__).parents[2] / "docs" / "truth_table.md"
OWN_LOOPS = ["LBFGS with line search", *test_one_process.MANUAL, "unfrozen in mid-run (BackboneFinetuning)"]


def test_the_page_tells_of_every_setting() -> None:
    """If it does not: ``make truth``."""
    told = table.settings(PAGE.read_text(encoding="utf-8"))
    assert told["One process"] == [*test_one_process.AUTOMATIC, *OWN_LOOPS]
    assert told["Several processes"] == list(test_many_processes.SETTINGS)
    assert told["Not measured"] == [*test_not_measured.SAID, "FSDP1, network made in configure_model"]
