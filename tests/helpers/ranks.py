"""Two real processes that train together, met at a file, kept for the whole test run.

They are forked (a fresh interpreter would import torch for seconds), keep to one thread and run what they are asked to.
"""

import datetime
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 60  # seconds until silence is taken for a hang


class Ranks:
    """A gloo process group of forked workers.

    Args:
        meeting_place: A file that does not exist yet.
        world_size: How many.
    """

    def __init__(self, meeting_place: Path, world_size: int = 2) -> None:
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe() for _ in range(world_size)]
        self._ends = [here for here, _ in pipes]
        self._workers = [
            context.Process(target=_serve, args=(rank, world_size, meeting_place, there), daemon=True)
            for rank, (_, there) in enumerate(pipes)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # "multi-threaded, use of fork() may lead to deadlocks"
            for worker in self._workers:
                worker.start()

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run ``work(*arguments)`` on every rank and return what each returned, by rank.

        ``work`` is a function of a test module. Results must be plain values.
        """
        for end in self._ends:
            end.send((work, arguments))
        answers = []
        for rank, end in enumerate(self._ends):
            if not end.poll(PATIENCE):
                self.close(patience=0)
                raise TimeoutError(f"rank {rank} did not answer within {PATIENCE} seconds")
            answers.append(end.recv())
        failures = [f"rank {rank}:\n{problem}" for rank, (_, problem) in enumerate(answers) if problem]
        assert not failures, "\n".join(failures)
        return [answer for answer, _ in answers]

    def close(self, patience: float = 10) -> None:
        """End the workers."""
        for end, worker in zip(self._ends, self._workers, strict=True):
            if worker.is_alive() and patience:
                end.send(None)
            worker.join(patience)
            if worker.is_alive():
                worker.kill()
                worker.join()
            end.close()


def _serve(rank: int, world_size: int, meeting_place: Path, end: Connection) -> None:
    torch.set_num_threads(1)  # threads of a forked parent are gone, and waiting for them would hang
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=PATIENCE / 2),
    )
    while (task := end.recv()) is not None:
        work, arguments = task
        try:
            end.send((work(*arguments), None))
        except Exception:  # noqa: BLE001 - it is told to the test
            end.send((None, traceback.format_exc()))
    dist.destroy_process_group()
