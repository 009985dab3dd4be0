"""What auditing an initialisation costs: ``python benchmarks/audit.py`` takes about two minutes on two cores.

It prints two tables and writes them to ``results/audit-cpu.json`` beside this file. The first is of ``audit_init`` on
GPT-2 small as transformers draws it, each time in a process of its own; the second of ``InitAuditor`` in a training.

=========================  =============================================================================================
``seconds``                that ``audit_init`` takes, what it loads the first time included
``extra memory``           at most, over the bytes of the model; what the process held before is taken off
``plain``                  seconds of the first training step without callbacks
``audited``                seconds of the same with ``InitAuditor``, until the report is written
``extra steps``            the difference, over a later plain step; the median of pairs
``before the first step``  seconds in which the weights are measured
=========================  =============================================================================================
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from fits import fit
from networks import GPT, ResNet
from tables import Table, say

from lightning_weightwatch import InitAuditor, audit_init

RESULTS = Path(__file__).parent / "results" / "audit-cpu.json"
THREADS = 2
NETWORKS: dict[str, type[ResNet | GPT]] = {"small ResNet": ResNet, "small GPT": GPT}
STEPS = 8  # of which the first three are left out of what a later step takes: the auditor may listen to them


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: %(default)s)")
    options = parser.parse_args()
    head = {"device": f"{platform.machine()} CPU", "torch": torch.__version__}
    print(*head.values(), sep=", torch ", end="\n\n")
    tables = {"audit_init": of_weights(options.rounds), "InitAuditor": of_training(options.rounds)}
    for table in tables.values():
        print(table, end="\n\n", flush=True)
    plain = {
        name: {row: dict(zip(t.columns, cells, strict=True)) for row, cells in t.rows.items()}
        for name, t in tables.items()
    }
    RESULTS.write_text(json.dumps(head | plain, indent=1) + os.linesep, encoding="utf-8")


def of_weights(rounds: int) -> Table:
    """Audit GPT-2 small, in a fresh process each time, and return the medians."""
    rows = {}
    for what, batched in (("weights alone", False), ("with a batch of 4 x 128 tokens and a loss", True)):
        say(f"audit_init, {what}")
        runs = [_in_a_process(batched) for _ in range(rounds)]
        rows[what] = [statistics.median(column) for column in zip(*runs, strict=True)]
    note = f"{GPT2_ELEMENTS:,} elements, random weights, {THREADS} threads."
    return Table("audit_init of GPT-2 small", ("seconds", "extra memory"), rows, note)


GPT2_ELEMENTS = 124_439_808


def _in_a_process(batched: bool) -> tuple[float, float]:
    os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin lose seconds wherever two of them share a core
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_gpt2, batched).result()


def _gpt2(batched: bool) -> tuple[float, float]:
    """Return the seconds of one audit, and the most memory beyond what was held, over the bytes of the model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    assert sum(p.numel() for p in model.parameters()) == GPT2_ELEMENTS
    words = torch.randint(50_257, (4, 128))
    trial = ((words, words), _next_word) if batched else ()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the most so far counts from here
    held = _kilobytes("VmRSS")
    begin = time.perf_counter()
    audit_init(model, *trial)
    seconds = time.perf_counter() - begin
    return seconds, 1024 * (_kilobytes("VmHWM") - held) / (4 * GPT2_ELEMENTS)


def _next_word(output: Any, words: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), words[:, 1:].flatten())


def _kilobytes(what: str) -> int:
    """Return what the kernel says of this process's memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{what}:"))


def of_training(rounds: int) -> Table:
    """Train in pairs, with the auditor and without it, each first in every other pair, and return the medians."""
    torch.set_num_threads(1)  # with more, a small network's step tells more of what else the machine does
    rows = {}
    for name, network in NETWORKS.items():
        say(f"InitAuditor, {name}")
        _train(network, audited=True)  # imports and fonts are loaded once in a process
        pairs = [_pair(network, audited_first=bool(i % 2)) for i in range(rounds)]
        rows[name] = [statistics.median(column) for column in zip(*pairs, strict=True)]
    note = "One thread."
    columns = ("plain", "audited", "extra steps", "before the first step")
    return Table("InitAuditor in a training", columns, rows, note)


def _pair(network: type[ResNet | GPT], *, audited_first: bool) -> tuple[float, float, float, float]:
    times = {audited: _train(network, audited=audited) for audited in (audited_first, not audited_first)}
    plain, audited = times[False], times[True]
    return plain.first, audited.first, (audited.first - plain.first) / plain.later, audited.before - plain.before


class _Times(pl.Callback):
    """Notes when the training begins and when each step does. It stands before all other callbacks."""

    def __init__(self) -> None:
        self.started, self.begun = 0.0, list[float]()

    def on_train_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun.append(time.perf_counter())

    @property
    def before(self) -> float:
        """Seconds from the start to the first step."""
        return self.begun[0] - self.started

    @property
    def first(self) -> float:
        """Seconds of the first step."""
        return self.begun[1] - self.begun[0]

    @property
    def later(self) -> float:
        """Seconds of a typical later step."""
        return statistics.median(after - before for before, after in itertools.pairwise(self.begun[3:]))


def _train(network: type[ResNet | GPT], *, audited: bool) -> _Times:
    torch.manual_seed(0)
    times, auditor = _Times(), InitAuditor()
    callbacks = [times, auditor] if audited else [times]
    fit(network(), network.batches(STEPS), callbacks, accelerator="cpu", devices=1)
    report = auditor.report
    assert not audited or (report and report.signal and not auditor.broken), "the auditor did not do its work"
    return times


if __name__ == "__main__":
    main()
