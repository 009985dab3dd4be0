"""``weightwatch audit``: judge the initialisation of a network that a function makes, without a training.

torch is imported only when the command runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from lightning_weightwatch.rules import SEVERITIES

WELL, ILL, NOT_DONE = 0, 1, 2
_EPILOG = """
Example: weightwatch audit shop.models:make_net --batch shop.data:one_batch --loss torch.nn.functional:cross_entropy

Exit code: 0 without findings, 1 with findings of at least --fail-on, 2 if the network or the batch could not be made.
"""


class NotMadeError(Exception):
    """What was named on the command line is not there, or does not do what it is for."""


def add_to(commands: Any) -> None:
    """Add the command to a parser."""
    command = commands.add_parser(
        "audit",
        help="judge how a network is initialised",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = "package.module:name"
    command.add_argument("factory", metavar=where, help="a function without arguments that returns a torch.nn.Module")
    command.add_argument("--batch", metavar=where, help="a function that returns what the network takes, or its pair")
    command.add_argument("--loss", metavar=where, help="loss(output, target); the batch is then (input, target)")
    command.add_argument("--seed", type=int, default=0, help="seed of every random stream (default: %(default)s)")
    worst = "exit with 1 from this severity on (default: %(default)s)"
    command.add_argument("--fail-on", choices=SEVERITIES, default="warning", help=worst)
    shape = command.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON for another program")
    shape.add_argument("--markdown", action="store_true", help="print markdown, such as for a pull request")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Audit, print the report, and return the exit code."""
    try:
        report = _audited(options)
    except NotMadeError as error:
        print(f"weightwatch audit: {error}", file=sys.stderr)  # noqa: T201 - this is the console
        return NOT_DONE
    if options.json:
        print(json.dumps(report.to_dict(), indent=1))  # noqa: T201
    else:
        print(report.to_markdown() if options.markdown else _told(report))  # noqa: T201
    severe = SEVERITIES[SEVERITIES.index(options.fail_on) :]
    return ILL if report.broken_at or any(finding.severity in severe for finding in report.findings) else WELL


def _audited(options: argparse.Namespace) -> Any:
    from lightning_weightwatch import audit_init, seed

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as ``python -m`` does; a console script begins at its own folder
    seed(options.seed)
    model = _made("factory", options.factory)
    if isinstance(model, type) or not hasattr(model, "named_parameters"):
        raise NotMadeError(f"factory={options.factory}: expected a torch.nn.Module. It gave a {type(model).__name__}.")
    if options.loss and not options.batch:
        raise NotMadeError(f"--loss={options.loss}: expected --batch beside it. It must give a pair (input, target).")
    batch = _made("--batch", options.batch) if options.batch else None
    loss = _found("--loss", options.loss) if options.loss else None
    loss = loss() if isinstance(loss, type) else loss  # torch.nn:CrossEntropyLoss
    try:
        return audit_init(model, batch, loss)
    except Exception as error:  # the user's network, batch or loss may raise whatever it likes
        traceback.print_exc()
        raise NotMadeError(f"--batch={options.batch}: the network could not take it: {error}") from error


def _made(argument: str, path: str) -> Any:
    """Return what a function gives, or what is named if it is no function of its own."""
    thing = _found(argument, path)
    is_made = not callable(thing) or (hasattr(thing, "forward") and not isinstance(thing, type))
    try:
        return thing if is_made else thing()
    except Exception as error:  # as above
        traceback.print_exc()
        raise NotMadeError(f"{argument}={path}: it raised {type(error).__name__}: {error}") from error


def _found(argument: str, path: str) -> Any:
    """Import what ``package.module:name`` names."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise NotMadeError(f"{argument}={path}: expected package.module:name. Put a colon before the function.")
    try:
        thing: Any = importlib.import_module(module)
    except ImportError as error:
        raise NotMadeError(f"{argument}={path}: {error}. Run it from the folder that holds {module}.") from error
    for part in name.split("."):
        if not hasattr(thing, part):
            raise NotMadeError(f"{argument}={path}: {module} has no {name}. Check the name after the colon.")
        thing = getattr(thing, part)
    return thing


def _told(report: Any) -> str:
    """Return one line where all is well, with the notes if there are any, else everything."""
    return "\n".join([report.headline, *map(str, report.findings)]) if report.is_well else str(report)
