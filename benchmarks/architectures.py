"""What the audit says of every architecture that the tests build: ``python benchmarks/architectures.py``.

Each is made as its library or its paper initialises it, and audited twice: its weights alone, and with a batch and a
loss. The page goes to ``docs/architectures.md``. It takes about a minute on one core; ``--print`` writes nothing.

===============  =======================================================================================================
``parameters``   how many tensors, of how many elements in all
``recognised``   the share of the tensors of which a scheme is named
``matrices``     the schemes that are named first of most of its matrices
``of no scheme`` the last parts of the names of those of which none is named
``findings``     the rules that say something, of the weights alone or with a batch; a warning or worse is set in bold
``signal``       powers of ten by which the spread changes from the first layer to the last; a dash without a batch
===============  =======================================================================================================
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded

from tables import say  # noqa: E402

from lightning_weightwatch import InitReport, ParameterVerdict, audit_init  # noqa: E402
from tests.architectures.everything import DEFENDED, ZOO  # noqa: E402
from tests.architectures.zoo import Architecture  # noqa: E402

PAGE = HERE.parent / "docs" / "architectures.md"
COLUMNS = ("from", "architecture", "parameters", "recognised", "matrices", "of no scheme", "findings", "signal")


def main() -> None:
    """Audit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print the page and write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = page(ZOO)
    print(text)
    if not options.print:
        PAGE.write_text(text, encoding="utf-8")


def page(zoo: Iterable[Architecture]) -> str:
    """Return the page."""
    rows, recognised, tensors = [], 0, 0
    for architecture in zoo:
        say(str(architecture))
        cells, known, of = row(architecture)
        rows.append(cells)
        recognised, tensors = recognised + known, tensors + of
    head = _HEAD.format(
        architectures=len(rows),
        tensors=tensors,
        share=f"{100 * recognised / tensors:.1f}",
        torch=version("torch"),
        transformers=version("transformers"),
    )
    defended = [f"- {name}, `{rule}`: {why}." for name, rules in DEFENDED.items() for rule, why in rules.items()]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join([head, *defended, "", *(f"| {' | '.join(cells)} |" for cells in lines), ""])


_HEAD = """# What the audit says of known architectures

{architectures} networks, tiny, as their library or their paper initialises them: those of transformers {transformers}
are built by its own code, the others are written after their papers in `tests/architectures`. Each parameter gets a
verdict with a reason; of {tensors:,} parameters, {share} % are recognised. No weights alone are called ill; with a
batch and a loss, only those named below are, and rightly. Written by `python benchmarks/architectures.py` with torch
{torch}, which explains the columns.
"""


def row(architecture: Architecture) -> tuple[list[str], int, int]:
    """Return the cells of one architecture, how many tensors are recognised, and of how many."""
    model = architecture.make()
    alone, tried = audit_init(model), _tried(architecture, model)
    unknown = [p for p in alone.parameters if p.scheme == "unrecognised"]
    known = len(alone.parameters) - len(unknown)
    cells = [
        architecture.source,
        architecture.name,
        f"{len(alone.parameters)} ({sum(math.prod(p.shape) for p in alone.parameters):,})",
        f"{100 * known / len(alone.parameters):.0f} %",
        ", ".join(scheme for scheme, _ in _schemes(alone.parameters).most_common(2)),
        ", ".join(_leaves(unknown)),
        ", ".join(_told(alone, tried)),
        "-" if tried is None or tried.signal is None else _decades(tried.signal.forward_decades),
    ]
    return cells, known, len(alone.parameters)


def _tried(architecture: Architecture, model: nn.Module) -> InitReport | None:
    if architecture.trial is None:
        return None
    return audit_init(model, architecture.batch(), architecture.trial.loss)


def _schemes(parameters: Iterable[ParameterVerdict]) -> Counter[str]:
    """Count what is named first of each matrix."""
    matrices = [p for p in parameters if len(p.shape) > 1 and p.kind not in ("norm", "bias")]
    first = (p.scheme.split(" or ")[0].removesuffix(", a padding row") for p in matrices)
    return Counter(scheme for scheme in first if scheme != "unrecognised")


def _leaves(parameters: Iterable[ParameterVerdict]) -> list[str]:
    """Return the last two parts of each name once, of those that are no numbers."""
    parts = ([part for part in p.name.split(".") if not part.isdigit()] for p in parameters)
    return list(dict.fromkeys(f"`{'.'.join(words[-2:])}`" for words in parts))


def _told(*reports: InitReport | None) -> list[str]:
    worst = {}
    for report in reports:
        for finding in report.findings if report else ():
            worst[finding.rule] = finding.rule if finding.severity == "info" else f"**{finding.rule}**"
    return list(worst.values())


def _decades(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1f}"


if __name__ == "__main__":
    main()
