"""How often the right illness is named, how soon, in which layers, and how often one is named in a healthy run.

``python benchmarks/accuracy.py --seeds 5 --peers 2`` trains every case of ``tests/ward`` with five seeds under the
monitor as it comes, and with two seeds under ``torchmortem`` and ``torch-audit``, if they are installed. It prints a
table for each and writes them, with every verdict, to ``results/accuracy-cpu.json`` beside this file. ``--only``,
``--rule`` and ``--case`` choose among the cases; then nothing is written. ``--list-failures`` prints each run that was
not judged as its label says.

====================  ==================================================================================================
``cases``, ``runs``   trainings with this illness, and how often they were run with different seeds
``hit``               runs with a finding of the right rule at or after the onset, as a warning or worse
``first cause``       runs of which it was named as the first cause
``right layers``      of runs with a place: the first alarm named a right parameter, and at most as many wrong ones
``steps to alarm``    from the onset to the first such finding; the median of the runs that have one
``other alarm``       runs with an alarm that is neither this illness nor a fair reading of it
``healthy warned``    healthy runs in which this rule warned or worse: false alarms
``healthy critical``  the same of critical ones
====================  ==================================================================================================
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the processes that train find the ward and this folder by it

import peer_verdicts  # noqa: E402
import verdicts  # noqa: E402
from tables import say  # noqa: E402
from verdicts import Label, Rates, Told, Verdict  # noqa: E402

from tests.ward.case import Case  # noqa: E402
from tests.ward.cases import healthy_cases, sick_cases  # noqa: E402

RESULTS = HERE / "results" / "accuracy-cpu.json"
OURS = "lightning_weightwatch"


def main() -> None:
    """Judge, print, write."""
    options = _options()
    cases = _chosen(options)
    judged = {tool: judge(tool, cases, seeds, options.jobs) for tool, seeds in _tools(options).items()}
    lines = {tool: verdicts.table(runs, options.rule) for tool, runs in judged.items()}
    for tool, runs in judged.items():
        _print(tool, runs, lines[tool])
        if options.list_failures:
            print(*verdicts.failures(runs, options.rule), sep="\n", end="\n\n")
    if len(judged) > 1:
        print(verdicts.drawn("All together", {tool: [*table.values()][-1] for tool, table in lines.items()}))
    if not (options.only or options.rule or options.case):
        parts = {tool: _plain(tool, runs, lines[tool]) for tool, runs in judged.items()}
        RESULTS.write_text(_lines(_head() | {"tools": _earlier(cases) | parts}, depth=4) + os.linesep, encoding="utf-8")


def judge(tool: str, cases: Sequence[Case], seeds: int, jobs: int) -> list[Verdict]:
    """Run the cases under a tool, each with seeds 0, 1, 2... Those that start processes themselves run one by one."""
    alone = [(case.name, seed) for case in cases if case.devices == 1 for seed in range(seeds)]
    apart = [(case.name, seed) for case in cases if case.devices > 1 for seed in range(seeds)]
    begin = time.perf_counter()
    found = {(v.label.case, v.seed): v for v in _pooled(tool, alone, jobs)}
    for run in apart:
        found |= {(v.label.case, v.seed): v for v in _pooled(tool, [run], 1)}
    say(f"{tool}: {len(found)} runs took {time.perf_counter() - begin:.0f} s")
    return [found[case.name, seed] for case in cases for seed in range(seeds)]


def _pooled(tool: str, runs: Sequence[tuple[str, int]], jobs: int) -> Iterator[Verdict]:
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures: list[Future[Verdict]] = [pool.submit(examine, tool, case, seed) for case, seed in runs]
        for i, future in enumerate(as_completed(futures), 1):
            if i % 50 == 0:
                say(f"{tool}: {i} of {len(runs)} runs")
            yield future.result()


def examine(tool: str, name: str, seed: int) -> Verdict:
    """Train one case under one tool."""
    case = next(case for case in sick_cases() + healthy_cases() if case.name == name)
    label = Label(name, case.sick, tuple(sorted(case.also)), case.layers, case.onset)
    try:
        if tool == OURS:
            return _ours(case, label, seed)
        return Verdict(label, seed, *peer_verdicts.admit(tool, case, seed))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the verdict of this run and of no other
        return Verdict(label, seed, failed=f"{type(error).__name__}: {error}"[:300])


def _ours(case: Case, label: Label, seed: int) -> Verdict:
    from tests.ward import runner

    admission = runner.admit(case, seed)
    told = tuple(Told((f.rule,), f.severity, f.step, f.since_step, f.parameters) for f in admission.findings)
    first = () if admission.first_cause is None else (admission.first_cause.rule,)
    return Verdict(label, seed, told, first, complaints=admission.complaints)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each case (default: %(default)s)")
    parser.add_argument("--only", choices=("healthy", "sick"), help="run these cases alone")
    parser.add_argument("--rule", help="run the cases with this illness and the healthy ones, and count this rule")
    parser.add_argument("--case", help="run the cases whose name matches this shell-style pattern")
    parser.add_argument(
        "--peers", type=int, nargs="?", const=0, metavar="SEEDS", help="run other tools too; as many seeds if not said"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: %(default)s)")
    parser.add_argument("--list-failures", action="store_true", help="print what was not judged as its label says")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> list[Case]:
    sick = [case for case in sick_cases() if options.rule in (None, case.sick)]
    cases = {"sick": sick, "healthy": healthy_cases(), None: sick + healthy_cases()}[options.only]
    chosen = [case for case in cases if fnmatchcase(case.name, options.case or "*")]
    if not chosen:
        sys.exit("No case of the ward is of that kind, illness and name.")
    return chosen


def _tools(options: argparse.Namespace) -> dict[str, int]:
    """Return how many seeds each tool gets; those that are not installed are left out, which is said."""
    tools = {OURS: options.seeds}
    for peer in peer_verdicts.PEERS if options.peers is not None else ():
        if peer_verdicts.is_installed(peer):
            tools[peer] = options.peers or options.seeds
        else:
            print(f"{peer} is left out: it is not installed (pip install {peer}).\n")
    return tools


def _print(tool: str, runs: Sequence[Verdict], lines: Mapping[str, Rates]) -> None:
    print(verdicts.drawn(f"{tool} {importlib.metadata.version(tool)}, {_seeds(runs)} seeds", lines), end="\n\n")
    failed = [verdict.failed for verdict in runs if verdict.failed]
    if failed:
        print(f"{len(failed)} runs have no verdict and count as silent. The first: {failed[0]}\n")


def _seeds(runs: Sequence[Verdict]) -> int:
    return len({verdict.seed for verdict in runs})


def _head() -> dict[str, Any]:
    return {
        "machine": f"{platform.machine()} CPU, 1 thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": importlib.metadata.version("lightning"),
    }


def _plain(tool: str, runs: Sequence[Verdict], lines: Mapping[str, Rates]) -> dict[str, Any]:
    return {
        "version": importlib.metadata.version(tool),
        "seeds": _seeds(runs),
        "table": {name: asdict(rates) for name, rates in lines.items()},
        "runs": [verdict.to_dict() for verdict in runs],
    }


def _earlier(cases: Sequence[Case]) -> dict[str, Any]:
    """Return what was written of other tools; only if it is of the same cases."""
    tools = json.loads(RESULTS.read_text(encoding="utf-8"))["tools"] if RESULTS.exists() else {}
    names = {case.name for case in cases}
    same = {tool: part for tool, part in tools.items() if {run["case"] for run in part["runs"]} == names}
    for tool in tools.keys() - same.keys():
        say(f"{tool}: what was written is of other cases and is dropped")
    return same


def _lines(value: Any, depth: int, pad: str = "") -> str:
    """Return JSON of which the outer levels have a line for each item, and everything inside them has one line."""
    if depth == 0 or not isinstance(value, (dict, list)) or not value:
        return json.dumps(value)
    inner = pad + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_lines(item, depth - 1, inner)}" for key, item in value.items()]
    else:
        items = [_lines(item, depth - 1, inner) for item in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n" + ",\n".join(inner + item for item in items) + f"\n{pad}{end}"


if __name__ == "__main__":
    main()
