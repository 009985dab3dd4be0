"""Imports point downwards, and each folder stays within its question."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_weightwatch

PACKAGE = Path(lightning_weightwatch.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From top to bottom. What stands in one line may import what stands in the lines below it, and its own folder.
TIERS = [
    {"__init__", "cli"},
    {"callbacks"},
    {"audit", "recorder", "counter", "accumulators", "activations"},
    {"probe"},
    {"flight", "report", "propagation"},
    {"listening"},
    {"snapshot", "meters", "replay", "places"},
    {"sinks", "rules", "advice", "parameters", "structure", "seeding"},
    {"figures", "evidence", "theory", "stats", "reduce", "ring", "parcel"},
    {"_arguments", "_folder", "_version", "errors"},
]
TIER = {name: level for level, names in enumerate(TIERS) for name in names}


def room(path: Path) -> str:
    """Return the folder or file of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield every module a file imports, except for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def foreign(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def test_every_room_has_its_tier() -> None:
    assert {room(path) for path in FILES} <= TIER.keys()


@every_file
def test_imports_point_downwards(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "lightning_weightwatch" or len(parts) == 1 or parts[1] not in TIER or parts[1] == here:
            continue
        assert TIER[parts[1]] > TIER[here], f"{here} imports {parts[1]}, which does not lie below it"


@every_file
def test_only_callbacks_import_lightning(path: Path) -> None:
    if room(path) != "callbacks":
        assert not foreign(path) & {"lightning", "pytorch_lightning", "lightning_fabric"}


@every_file
def test_only_reduce_talks_to_other_processes(path: Path) -> None:
    if room(path) != "reduce":
        assert not any(name.startswith("torch.distributed") for name in imports(path))


@every_file
def test_nobody_uses_pyplot(path: Path) -> None:
    assert not any(name.startswith("matplotlib.pyplot") for name in imports(path))


@every_file
def test_rules_evidence_and_advice_never_see_a_tensor(path: Path) -> None:
    if room(path) in {"rules", "evidence", "advice", "figures", "cli", "theory"}:
        assert "torch" not in foreign(path)


@every_file
def test_matplotlib_stays_in_figures(path: Path) -> None:
    if room(path) != "figures":
        assert "matplotlib" not in foreign(path)


@every_file
def test_tensorboard_stays_in_sinks(path: Path) -> None:
    if room(path) != "sinks":
        assert "tensorboard" not in foreign(path)


@every_file
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


@every_file
def test_every_module_says_what_lies_in_it(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_callbacks_do_no_arithmetic_on_tensors() -> None:
    """They may name tensors in annotations; making, adding and comparing them is the business of ``stats``."""
    for path in FILES:
        if room(path) == "callbacks":
            used = {n for n in imports(path) if n.startswith("torch")}
            allowed = {"torch", "torch.Tensor", "torch.optim", "torch.optim.Optimizer", "torch.device", "torch.nn"}
            assert used <= allowed, f"{path.name} imports {used - allowed}"
