"""The console command ``weightwatch``: one file for each of its commands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lightning_weightwatch._version import __version__
from lightning_weightwatch.cli import _audit, _report

NOTHING_TO_SAY = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="weightwatch", description="Watches over how networks begin and train.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (_report, _audit):
        command.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain once more at its end
        return NOTHING_TO_SAY
    return code
