"""Files under ``<log_dir>/weightwatch/``: evidence that survives a crash, a spawned worker and any logger.

JSON has no NaN or Inf, so such numbers are written as the texts ``"nan"``, ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lightning_weightwatch.sinks._base import log


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line and close the file, so that the next line of the program may crash."""
    _write(path, json.dumps(_plain(record), allow_nan=False) + "\n", mode="a")


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write one JSON object in place of what was there; a crash in the middle leaves what was there."""
    beside = path.with_name(path.name + ".part")
    _write(path, json.dumps(_plain(record), allow_nan=False, indent=1) + "\n", mode="w", by_way_of=beside)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; empty where there is none or it cannot be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, json.JSONDecodeError) as error:
        log.warning("%s cannot be read and is left out: %s", path, error)
        record = {}
    return record if isinstance(record, dict) else {}


def set_aside(path: Path) -> None:
    """Keep what an earlier run left in the same folder as ``<name>.old``, so that runs do not mix."""
    try:
        if path.exists():
            path.replace(path.with_name(path.name + ".old"))
    except OSError as error:
        log.warning("Could not set %s aside: %s", path, error)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file, one per line; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s holds a line that is no JSON; it is left out.", path)
    return records


def _write(path: Path, text: str, *, mode: str, by_way_of: Path | None = None) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (by_way_of or path).open(mode, encoding="utf-8") as file:
            file.write(text)
        if by_way_of is not None:
            by_way_of.replace(path)
    except OSError as error:
        log.warning("Could not write %s: %s", path, error)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):  # a user's rule may give NumPy's numbers
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
