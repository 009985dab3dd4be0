"""What the parts of the benchmark share: what they are told, the table they give back, how they tell progress."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate

SPREAD = ("least", "median", "largest")  # the columns of a table of ratios


@dataclass(frozen=True)
class Settings:
    """What every part is told: where to measure, how many pairs, how many training steps."""

    device: torch.device
    rounds: int
    steps: int


@dataclass(frozen=True)
class Table:
    """Numbers by row; ``None`` in place of a row's numbers says that a package is not installed."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float] | None]
    note: str = ""

    @property
    def of_ratios(self) -> bool:
        """Whether its numbers are spreads of ratios."""
        return tuple(self.columns) == SPREAD

    def __str__(self) -> str:
        parts = [f"## {self.title}", self.note, self._ratios() if self.of_ratios else self._numbers()]
        return "\n\n".join(part for part in parts if part)

    def _ratios(self) -> str:
        """Return the lines as they stand in the README, where a test compares them with what was written."""
        lines = ["| ratio | median | range |", "| --- | --- | --- |"]
        return "\n".join([*lines, *(f"| {name} | {_spread(row)} |" for name, row in self.rows.items())])

    def _numbers(self) -> str:
        missing = ["not installed"] + [""] * (len(self.columns) - 1)
        body = [[name, *(missing if row is None else map(_short, row))] for name, row in self.rows.items()]
        return tabulate(body, ["", *self.columns], tablefmt="github", disable_numparse=True)


def say(words: str) -> None:
    """Tell whoever waits what is being measured."""
    print(words, file=sys.stderr, flush=True)


def _spread(row: Sequence[float] | None) -> str:
    if row is None:
        return "not installed | "
    least, median, largest = (f"{value:.3g}" for value in row)
    return f"{median} | {least} to {largest}"


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
