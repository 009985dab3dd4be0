"""How often the scheme of a tensor is named that was drawn from a known one: every scheme, every shape, several seeds.

``python benchmarks/recogniser.py`` draws 30 schemes in 30 shapes of at least 4,096 elements and in 14 smaller ones,
five times each, and prints a table for both. ``--merged`` judges by what is left where no process holds a whole tensor.

===========  ===========================================================================================================
``tensors``  how many were drawn; a scheme is left out where it has no such shapes, or is another one there
``first``    the true scheme is named first
``either``   it is named, behind one whose spread is the same within the interval of 95 % that so many elements tell
``behind``   it is named, behind one that is farther off
``missing``  it is not named
``right``    the share of ``first`` and ``either``
===========  ===========================================================================================================
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from tables import Table, say  # noqa: E402

from tests.helpers.drawn import LARGE, SCHEMES, SMALL, Drawn, drawn, outcome  # noqa: E402
from tests.helpers.recognised import recognised  # noqa: E402

COLUMNS = ("tensors", "first", "either", "behind", "missing", "right")


def main() -> None:
    """Draw, recognise, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how often each is drawn (default: %(default)s)")
    parser.add_argument("--merged", action="store_true", help="judge by what merged shards tell")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for title, shapes in (("At least 4,096 elements", LARGE), ("Fewer elements", SMALL)):
        print(table(title, shapes, options.seeds, merged=options.merged), end="\n\n")


def table(title: str, shapes: Mapping[str, Callable[[], nn.Module]], seeds: int, *, merged: bool) -> Table:
    """Return a row for every scheme, and one for all together."""
    counts = {}
    for scheme in SCHEMES:
        say(f"{title}: {scheme.name}")
        counts[scheme.name] = tally(scheme, shapes, seeds, merged=merged)
    everything = sum(counts.values(), Counter())
    return Table(title, COLUMNS, {name: _row(count) for name, count in [*counts.items(), ("all", everything)]})


def tally(scheme: Drawn, shapes: Mapping[str, Callable[[], nn.Module]], seeds: int, *, merged: bool) -> Counter[str]:
    """Count the outcomes of one scheme."""
    count: Counter[str] = Counter()
    for make in shapes.values():
        for seed in range(seeds):
            layer = drawn(make, scheme, seed)
            if layer is not None:
                found = recognised(layer, merged=merged)["weight"]
                count[outcome(found, scheme, layer.weight.numel())] += 1
    return count


def _row(count: Counter[str]) -> list[float]:
    right = (count["first"] + count["either"]) / max(count.total(), 1)
    return [count.total(), *(count[column] for column in COLUMNS[1:-1]), right]


if __name__ == "__main__":
    main()
