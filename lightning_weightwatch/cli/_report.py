"""``weightwatch report``: say what was found in a run, finished or crashed.

It reads the files that the callbacks leave under ``<log_dir>/weightwatch/``, and imports neither torch nor lightning.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lightning_weightwatch.advice import what_to_try
from lightning_weightwatch.rules import Finding, first_cause
from lightning_weightwatch.sinks.files import read_json, read_lines

HEALTHY, ILL, NOTHING_FOUND = 0, 1, 2
_FILES = ("seed_report.json", "init_report.json", "findings.jsonl")


def add_to(commands: Any) -> None:
    """Add the command to a parser."""
    about = "Exit code: 0 without critical findings, 1 with, 2 if there is no run."
    command = commands.add_parser("report", help="say what was found in one or several runs", epilog=about)
    command.add_argument("log_dir", type=Path, help="a folder that holds one or several runs")
    command.add_argument("--json", action="store_true", help="print JSON for another program")
    command.set_defaults(run=lambda options: report(options.log_dir, as_json=options.json))


def report(log_dir: Path, *, as_json: bool = False) -> int:
    """Print what was found in the runs below a folder.

    Args:
        log_dir: A folder that holds one or several runs.
        as_json: Print JSON for another program.

    Returns:
        The exit code: 0 without critical findings, 1 with, 2 if there is no run.
    """
    folders = sorted({path.parent for name in _FILES for path in log_dir.rglob(f"weightwatch/{name}")})
    if not folders:
        print(f"No run below {log_dir}: no folder named weightwatch with a report in it.", file=sys.stderr)  # noqa: T201
        return NOTHING_FOUND
    runs = {folder.parent: _findings(folder) for folder in folders}
    if as_json:
        print(json.dumps({str(run): [f.to_dict() for f in found] for run, found in runs.items()}, indent=1))  # noqa: T201
    else:
        print("\n\n".join(_told(run, found) for run, found in runs.items()))  # noqa: T201 - this is the console
    return ILL if any(f.severity == "critical" for found in runs.values() for f in found) else HEALTHY


def _findings(folder: Path) -> list[Finding]:
    """Return the findings of training and of the initialisation, in order of onset."""
    found = read_lines(folder / "findings.jsonl")
    found += read_json(folder / "init_report.json").get("findings", [])
    return sorted((_finding(plain) for plain in found), key=lambda f: (f.since_step, f.step))


def _finding(plain: dict[str, Any]) -> Finding:
    """Rebuild a finding; NaN and Inf were written as text."""
    return Finding.from_dict(plain | {key: float(plain[key]) for key in ("value", "limit")})


def _told(run: Path, findings: list[Finding]) -> str:
    serious = [f for f in findings if f.severity != "info"]
    cause = first_cause(findings)
    lines = [f"{run}: {len(serious) or 'no'} finding{'' if len(serious) == 1 else 's'}"]
    if cause is not None:
        lines.append(f"  first cause: {cause.rule}, since step {cause.since_step}")
    lines += [f"  {finding}" for finding in serious]
    if serious:
        tries = what_to_try(f.rule for f in serious)
        lines += ["  what to try, in this order:", *(f"    {topic}: {action}" for topic, action in tries)]
    return "\n".join(lines)
