"""What watching costs, side by side with what others do, in one process and one run.

``python benchmarks/overhead.py`` takes about ten minutes on one core. It prints the tables that the README quotes and
writes them to ``results/overhead-<device>.json`` beside this file, with ``results/scaling-<device>.png``.
``--only SECTION`` measures one section, prints it and writes nothing. wandb is measured if it is installed.

======================  ================================================================================================
``ratios``              times over one ``clip_grad_norm_``, on gradients of ResNet-50's and GPT-2 small's shapes
``syncs``               how often the device is waited for
``collectives``         what our monitor asks of two processes
``memory``              what is held on the device
``events``              bytes of histograms in the event file
``scaling``             cost per tensor against the number of tensors
``training``            whole trainings of small networks, with ``watch()`` and without
======================  ================================================================================================
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import collectives
import counting
import events
import lightning.pytorch as pl
import memory
import ratios
import scaling
import torch
import training
from tables import Settings, Table, say

SECTIONS: dict[str, Callable[[Settings], Table]] = {
    "ratios": ratios.measure,
    "syncs": counting.measure,
    "collectives": collectives.measure,
    "memory": memory.measure,
    "events": events.measure,
    "scaling": scaling.measure,
    "training": training.measure,
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print, write."""
    options = _options()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, 1 thread"
    print(f"{name}, torch {torch.__version__}, lightning {pl.__version__}\n")
    tables: dict[str, Table] = {}
    for section in [options.only] if options.only else SECTIONS:
        begin = time.perf_counter()
        tables[section] = SECTIONS[section](Settings(device, options.rounds, options.steps))
        say(f"{section} took {time.perf_counter() - begin:.0f} s")
        print(tables[section], end="\n\n", flush=True)
    if not options.only:
        head = {"device": name, "torch": torch.__version__, "lightning": pl.__version__}
        text = json.dumps(head | _plain(tables), indent=1) + os.linesep
        (RESULTS / f"overhead-{device.type}.json").write_text(text, encoding="utf-8")
        scaling.draw(tables["scaling"], f"{name}, torch {torch.__version__}", RESULTS / f"scaling-{device.type}.png")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="pairs measured (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="training steps of a run (default: %(default)s)")
    parser.add_argument("--only", choices=SECTIONS, help="measure this section alone and write nothing")
    return parser.parse_args()


def _plain(tables: Mapping[str, Table]) -> dict[str, Any]:
    """Return what is written: all ratios under one key, every other table under its own; without missing rows."""
    plain: dict[str, Any] = {"ratios": {}}
    for section, table in tables.items():
        rows = {name: row for name, row in table.rows.items() if row is not None}
        if table.of_ratios:
            plain["ratios"] |= rows
        else:
            plain[section] = {name: dict(zip(table.columns, row, strict=True)) for name, row in rows.items()}
    return plain


if __name__ == "__main__":
    main()
