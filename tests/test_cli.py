"""The console command, on the files of real runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_weightwatch import GradientHealthMonitor
from lightning_weightwatch.cli import main
from tests.helpers import fits, nets


def test_a_healthy_run_is_silent_and_exits_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "weightwatch").mkdir()
    (tmp_path / "weightwatch" / "init_report.json").write_text('{"parameters": [], "findings": []}')
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: no findings\n"


def test_a_run_with_nan_exits_with_one_and_says_what_to_try(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fits.fit(nets.TurnsNaN, [GradientHealthMonitor()], default_root_dir=tmp_path)
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "first cause: non_finite_gradients, since step 3" in told
    assert "what to try, in this order:" in told


def test_json_is_for_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fits.fit(nets.TurnsNaN, [GradientHealthMonitor()], default_root_dir=tmp_path)
    capsys.readouterr()
    main(["report", str(tmp_path), "--json"])
    (findings,) = json.loads(capsys.readouterr().out).values()
    assert findings[0]["rule"] == "non_finite_gradients"


def test_a_crashed_run_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    fits.fit(nets.TurnsNaN, [GradientHealthMonitor()], default_root_dir=tmp_path)
    with (tmp_path / "weightwatch" / "findings.jsonl").open("a") as file:
        file.write('{"rule": "cut sho')
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 1
    assert "holds a line that is no JSON" in caplog.text


def test_a_folder_without_runs_exits_with_two(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "No run below" in capsys.readouterr().err


def test_a_wrong_command_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["reprot", "x"])
    assert stopped.value.code == 2


def test_a_report_that_was_cut_short_does_not_end_in_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "weightwatch").mkdir()
    (tmp_path / "weightwatch" / "init_report.json").write_text('{"findings": [{"rule"')
    assert main(["report", str(tmp_path)]) == 0
    assert "cannot be read and is left out" in caplog.text


def test_a_reader_that_has_seen_enough_ends_in_no_traceback(tmp_path: Path) -> None:
    """``weightwatch report LOGDIR | head -1`` ended in one."""
    (tmp_path / "weightwatch").mkdir()
    (tmp_path / "weightwatch" / "init_report.json").write_text("{}")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lightning_weightwatch.cli", "report", str(tmp_path)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
