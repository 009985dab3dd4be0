"""Files that survive a crash: strict JSON, and no error whatever the disk does."""

import json
import logging
import math

import numpy as np
import pytest

from lightning_weightwatch.sinks.files import append_line, read_lines, set_aside, write_json

ODD = {"nan": math.nan, "list": [1, math.inf, [-math.inf]], "inner": {"x": math.nan}, "ü": None, "flag": True}
PLAIN = {"nan": "nan", "list": [1, "inf", ["-inf"]], "inner": {"x": "nan"}, "ü": None, "flag": True}


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_json_cannot_say_is_written_as_text(tmp_path):
    path = tmp_path / "new" / "folder" / "report.json"
    write_json(path, ODD)
    assert strict(path.read_text(encoding="utf-8")) == PLAIN
    write_json(path, {"a": 1})
    assert strict(path.read_text(encoding="utf-8")) == {"a": 1}


def test_lines_are_appended_and_each_is_whole_at_once(tmp_path):
    path = tmp_path / "weightwatch" / "findings.jsonl"
    for i in range(3):
        append_line(path, {"i": i, **ODD})
        assert [strict(line) for line in path.read_text().splitlines()] == [{"i": n, **PLAIN} for n in range(i + 1)]
    assert read_lines(path) == [{"i": n, **PLAIN} for n in range(3)]


@pytest.mark.parametrize(
    ("number", "plain"),
    [(np.float32(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (np.float64(math.nan), "nan")],
)
def test_numpy_numbers_of_a_users_rule_are_plain_numbers(tmp_path, number, plain):
    path = tmp_path / "findings.jsonl"
    append_line(path, {"value": number})
    assert read_lines(path) == [{"value": plain}]


@pytest.mark.parametrize("write", [append_line, write_json], ids=lambda f: f.__name__)
def test_a_folder_that_cannot_be_written_warns_and_goes_on(tmp_path, caplog, write):
    (tmp_path / "file").touch()
    write(tmp_path / "file" / "report.json", {"a": 1})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith(f"Could not write {tmp_path / 'file' / 'report.json'}: ")


def test_a_last_line_cut_short_by_a_crash_is_left_out(tmp_path, caplog):
    path = tmp_path / "findings.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b')
    assert read_lines(path) == [{"a": 1}]
    assert "no JSON" in caplog.text


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


def test_what_an_earlier_run_left_is_kept_aside(tmp_path):
    path = tmp_path / "findings.jsonl"
    set_aside(path)
    for run in ("first", "second", "third"):
        append_line(path, {"run": run})
        set_aside(path)
        assert not path.exists()
        assert read_lines(tmp_path / "findings.jsonl.old") == [{"run": run}]


def test_what_cannot_be_set_aside_warns_and_stays(tmp_path, caplog):
    path = tmp_path / "findings.jsonl"
    append_line(path, {"a": 1})
    (tmp_path / "findings.jsonl.old" / "in the way").mkdir(parents=True)
    set_aside(path)
    assert read_lines(path) == [{"a": 1}]
    assert "Could not set" in caplog.text
