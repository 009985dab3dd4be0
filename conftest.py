"""The police: no test leaves a mark on the process that the next one could trip over."""

import gc
import os
import random
import threading
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
import torch

# Set by Lightning, torch or a strategy in the course of a fit and harmless to the next test.
TOLERATED_ENV = {
    "PYTEST_CURRENT_TEST",
    "MASTER_PORT",
    "MASTER_ADDR",
    "KMP_INIT_AT_FORK",
    "KMP_DUPLICATE_LIB_OK",
    "CUDA_MODULE_LOADING",
    "TORCHINDUCTOR_CACHE_DIR",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
}

torch.manual_seed(0)  # for what is drawn while tests are collected

# The networks of the tests are small: two threads lose more time in waiting for one another than they gain.
torch.set_num_threads(1)


def flags() -> dict[str, object]:
    """Return the process-wide settings that a careless callback might change."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn deterministic": torch.backends.cudnn.deterministic,
        "fill_uninitialized_memory": torch.utils.deterministic.fill_uninitialized_memory,
        "default dtype": torch.get_default_dtype(),
        "grad enabled": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
    }


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let ``make truth`` say where the truth table goes."""
    parser.addoption("--truth-table", metavar="FILE", help="write what tests/truth measured as a page")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the truth table from the tests that ran."""
    if path := config.getoption("--truth-table"):
        from tests.truth import table

        told = [dict(report.user_properties) for report in terminalreporter.stats.get("passed", [])]
        page = table.page(properties["truth"] for properties in told if "truth" in properties)
        (config.rootpath / path).write_text(page, encoding="utf-8")


@pytest.fixture(autouse=True, scope="module")
def old_objects_set_aside() -> None:
    """Keep the collector off what earlier files left: tests that call it would take half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def police(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves environment variables, flags, settings of matplotlib or threads behind."""
    before = flags(), dict(os.environ), dict(mpl.rcParams), set(threading.enumerate())
    yield
    flags_now, env_now = flags(), dict(os.environ)
    changed = {k for k in env_now.keys() | before[1].keys() if env_now.get(k) != before[1].get(k)} - TOLERATED_ENV
    assert flags_now == before[0]
    assert not changed, f"environment variables left behind: {changed}"
    assert dict(mpl.rcParams) == before[2]
    left = {t.name for t in set(threading.enumerate()) - before[3] if t.is_alive() and not t.daemon}
    assert not left, f"threads left behind: {left}"


@pytest.fixture(autouse=True)
def own_seed(police: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back the variables that SeedEverything leaves on purpose, for strategies and workers to read."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def own_numbers(police: None) -> None:
    """Let every test draw the same numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_folder(police: None, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in a folder of its own, so that nothing is written into the repository.

    It asks for ``police`` so that what ``monkeypatch`` changed is undone before the police look.
    """
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def untouched_process() -> Iterator[None]:
    """Give a test a process without seed and flags, and put all of that back after it."""
    environment = dict(os.environ)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before = flags()
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG"):
        os.environ.pop(name, None)
    torch.manual_seed(1)
    yield
    os.environ.clear()
    os.environ.update(environment)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.use_deterministic_algorithms(bool(before["deterministic"]), warn_only=bool(before["warn_only"]))
    torch.backends.cudnn.benchmark = bool(before["benchmark"])
    torch.utils.deterministic.fill_uninitialized_memory = bool(before["fill_uninitialized_memory"])
