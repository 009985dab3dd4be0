"""What ``seeding`` promises, held against sequences drawn without it."""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch import seeding
from lightning_weightwatch.seeding import SeedReport, make_deterministic, restore, seed

LARGEST = 2**32 - 1


def flags():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def draws():
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()


pytestmark = pytest.mark.usefixtures("untouched_process")


# Silent cases


def test_no_flag_is_touched_unless_determinism_is_asked_for():
    # False is the default, and Trainer(deterministic=...) may have been set already.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    before = flags()
    seed(42)
    assert flags() == before


def test_nothing_is_said_of_a_valid_seed_in_the_environment(caplog):
    # LightningCLI and a parent process leave it there on purpose.
    os.environ["PL_GLOBAL_SEED"] = "7"
    assert seed().source == "PL_GLOBAL_SEED"
    assert not caplog.records


def test_picking_a_seed_draws_from_no_generator_of_the_process():
    # Picking must not depend on, or move, a stream that somebody seeded.
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    picked = {seeding.choose(None) for _ in range(5)}
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert len(picked) > 1
    assert all(0 <= value <= LARGEST and source == "picked" for value, source in picked)


def test_the_hash_seed_is_recorded_and_never_set(monkeypatch):
    # Python reads it at its start; setting it later would only look as if it helped.
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    assert seed(42).python_hash_seed is None
    assert "PYTHONHASHSEED" not in os.environ
    monkeypatch.setenv("PYTHONHASHSEED", "3")
    assert seed(42).python_hash_seed == "3"


def test_importing_it_brings_in_no_lightning():
    # It is for the top of a script, before anything heavy.
    code = "import sys, lightning_weightwatch.seeding; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Seeding


@pytest.mark.parametrize("value", [0, 42, LARGEST])
def test_all_three_generators_begin_where_a_plain_seeding_would_put_them(value):
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    expected = draws()
    seed(value)
    assert draws() == expected


def test_it_leaves_the_process_as_lightnings_own_function_does():
    from lightning.pytorch import seed_everything

    seed_everything(42, workers=True, verbose=False)
    expected = draws(), os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]
    os.environ["PL_GLOBAL_SEED"] = os.environ["PL_SEED_WORKERS"] = ""
    seed(42)
    assert (draws(), os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == expected


def test_workers_are_left_to_torch_on_request():
    assert not seed(42, workers=False).workers
    assert os.environ["PL_SEED_WORKERS"] == "0"


def test_the_argument_wins_over_the_environment():
    os.environ["PL_GLOBAL_SEED"] = "7"
    report = seed(42)
    assert (report.seed, report.source) == (42, "argument")
    assert report.changed["PL_GLOBAL_SEED"] == ("7", "42")


def test_a_picked_seed_holds_for_the_process():
    first = seed()
    second = seed()
    assert first.source == "picked"
    assert (second.seed, second.source) == (first.seed, "PL_GLOBAL_SEED")


@pytest.mark.parametrize("text", ["", "forty-two", "-1", "1.5", str(2**32)])
def test_an_invalid_seed_in_the_environment_is_passed_over_and_said(text, caplog):
    os.environ["PL_GLOBAL_SEED"] = text
    assert seed().source == "picked"
    expected = f"PL_GLOBAL_SEED={text!r} is passed over: it is no whole number from 0 to 4294967295."
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_a_numpy_integer_is_a_whole_number():
    report = seed(np.int64(42))
    assert type(report.seed) is int
    json.dumps(report.to_dict())


# Determinism


@pytest.mark.parametrize(("level", "debug_mode"), [(True, 2), ("warn", 1)])
def test_torch_itself_says_that_determinism_is_on(level, debug_mode):
    report = seed(42, deterministic=level)
    assert torch.get_deterministic_debug_mode() == debug_mode
    assert report.deterministic == level
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("level", [False, True, "warn"])
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("warn_only", [False, True])
@pytest.mark.parametrize("benchmark", [False, True])
@pytest.mark.parametrize("cublas", [None, ":16:8"])
def test_whatever_was_changed_is_listed_and_put_back_exactly(level, enabled, warn_only, benchmark, cublas):
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.backends.cudnn.benchmark = benchmark
    if cublas:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = cublas
    before = flags()
    changed = make_deterministic(level)
    differing = sum(a != b for a, b in zip(before, flags(), strict=True))
    assert len(changed) == differing
    restore(changed)
    assert flags() == before


def test_a_workspace_that_the_user_chose_stays():
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    assert "CUBLAS_WORKSPACE_CONFIG" not in make_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_what_somebody_else_changed_since_is_not_put_back():
    torch.backends.cudnn.benchmark = False
    changed = make_deterministic(True)
    torch.backends.cudnn.benchmark = True
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    restore(changed)
    assert torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_whole_seeding_can_be_undone_in_the_environment_too():
    os.environ["PL_GLOBAL_SEED"] = "7"
    report = seed(42, deterministic=True)
    restore(report.changed)
    assert os.environ["PL_GLOBAL_SEED"] == "7"
    assert "PL_SEED_WORKERS" not in os.environ
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_nothing_is_left_half_done_where_torch_refuses_a_change(monkeypatch):
    # What torch.backends.disable_global_flags() does, but it can be undone.
    torch.backends.cudnn.benchmark = True
    before = flags()
    with monkeypatch.context() as frozen:
        frozen.setitem(torch.backends.flags_frozen.__globals__, "__allow_nonbracketed_mutation_flag", False)
        with pytest.raises(RuntimeError, match="disable_global_flags"):
            make_deterministic(True)
    assert flags() == before


@pytest.mark.parametrize(("allocated", "said"), [(0, False), (512, True)])
def test_it_says_that_cublas_may_have_begun_without_its_setting(monkeypatch, caplog, allocated, said):
    # An initialised but unused CUDA is in time: Lightning initialises it before any hook.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: allocated)
    make_deterministic("warn")
    expected = (
        "CUBLAS_WORKSPACE_CONFIG is set only now, and CUDA has been used already. If torch then refuses matrix "
        "products, set it before Python starts: CUBLAS_WORKSPACE_CONFIG=:4096:8."
    )
    assert [record.getMessage() for record in caplog.records] == [expected] * said
    assert all(record.levelno == logging.WARNING for record in caplog.records)


# The report


def test_the_report_is_plain_enough_for_json_and_complete():
    report = seed(42, deterministic="warn")
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain == report.to_dict()
    assert plain["seed"] == 42
    assert plain["changed"]["PL_GLOBAL_SEED"] == [None, "42"]
    assert plain["changed"]["torch.are_deterministic_algorithms_enabled"] == [False, True]
    assert plain["versions"]["python"] == platform.python_version()
    assert plain["versions"]["torch"] == torch.__version__
    assert plain["versions"]["numpy"] == np.__version__
    assert "lightning" in plain["versions"]
    assert plain["devices"][0] == "CPU"
    assert plain["model_built_before"] is None


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"source": "argument", "workers": True, "deterministic": False},
            "Seed 42 (as asked) for random, NumPy, torch and DataLoader workers; deterministic algorithms: off.",
        ),
        (
            {"source": "PL_GLOBAL_SEED", "workers": False, "deterministic": True},
            "Seed 42 (from PL_GLOBAL_SEED) for random, NumPy and torch; deterministic algorithms: on.",
        ),
        (
            {"source": "picked", "workers": False, "deterministic": "warn"},
            (
                "Seed 42 (picked; seed=42 repeats it) for random, NumPy and torch; "
                "deterministic algorithms: on, with warnings only."
            ),
        ),
    ],
)
def test_the_report_is_one_line_on_the_console(fields, line):
    assert str(SeedReport(seed=42, **fields)) == line


def test_the_page_shows_every_fact():
    report = SeedReport(
        seed=42,
        source="argument",
        workers=False,
        deterministic=False,
        changed={"PL_GLOBAL_SEED": (None, "42")},
        versions={"torch": "2.4"},
        devices=("CPU", "2 x CUDA"),
        model_built_before=True,
    )
    assert report.to_markdown().splitlines() == [
        "**Seed 42 (as asked) for random, NumPy and torch; deterministic algorithms: off.**",
        "",
        "- changed: `PL_GLOBAL_SEED (not set to 42)`",
        "- trainable weights older than the seed: `yes: the seed does not account for them`",
        "- versions: `torch 2.4`",
        "- devices: `CPU, 2 x CUDA`",
        "- PYTHONHASHSEED: `not set`",
    ]


def test_a_gpu_is_named_only_where_cuda_runs_already(monkeypatch):
    # Asking its name would start CUDA, and a process with CUDA can no longer fork.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert seeding._devices()[:2] == ("CPU", "2 x CUDA")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    assert seeding._devices()[:3] == ("CPU", "GPU 0", "GPU 1")


# Which weights are older


def test_weights_made_later_are_not_taken_for_older_ones():
    older = seeding.modules_alive()
    assert not seeding.has_older_weights(nn.Linear(2, 2), older)


def test_a_frozen_backbone_and_a_loss_are_no_weights_to_be_seeded():
    backbone, loss = nn.Linear(2, 2).requires_grad_(False), nn.MSELoss()
    older = seeding.modules_alive()
    assert not seeding.has_older_weights(nn.Sequential(backbone, loss, nn.Linear(2, 2)), older)


def test_an_older_layer_is_found_inside_a_newer_model():
    layer = nn.Linear(2, 2)
    older = seeding.modules_alive()
    assert seeding.has_older_weights(nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer)), older)


def test_looking_keeps_no_module_alive():
    layer = nn.Linear(2, 2)
    older = seeding.modules_alive()
    alive = sum(reference() is not None for reference in older)
    del layer
    assert sum(reference() is not None for reference in older) == alive - 1


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"seed": value},
            error,
            f"seed(seed={value!r}): expected a whole number from 0 to 4294967295 or None. Use 42, or None to pick one.",
        )
        for value, error in [
            (-1, ValueError),
            (2**32, ValueError),
            (True, TypeError),
            ("42", TypeError),
            (1.5, TypeError),
        ]
    ]
    + [
        (
            {"deterministic": value},
            ValueError,
            (
                f"seed(deterministic={value!r}): expected one of False, True, 'warn'. "
                'Use "warn" to be warned of operations that are not deterministic.'
            ),
        )
        for value in ("yes", 1, None)
    ]
    + [
        (
            {"workers": "no"},
            TypeError,
            "seed(workers='no'): expected True or False. Use True to seed DataLoader workers too.",
        )
    ],
)
def test_bad_input_is_refused_with_a_remedy_before_anything_is_touched(arguments, error, message):
    state = torch.get_rng_state().tolist()
    with pytest.raises(error) as refusal:
        seed(**arguments)
    assert str(refusal.value) == message
    assert torch.get_rng_state().tolist() == state
    assert "PL_GLOBAL_SEED" not in os.environ
