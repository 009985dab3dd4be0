"""The public names and signatures. To change one is a deliberate edit of this file."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_weightwatch as lw

REPOSITORY = Path(__file__).parents[1]

SIGNATURES = {
    "SeedEverything": "(seed: 'int | None' = None, *, workers: 'bool' = True, "
    "deterministic: \"bool | Literal['warn']\" = False) -> 'None'",
    "InitAuditor": "(*, include: 'Sequence[str]' = ('*',), exclude: 'Sequence[str]' = (), "
    "on_finding: \"Literal['warn', 'raise', 'ignore']\" = 'warn', prefix: 'str' = 'health') -> 'None'",
    "WeightHistogramLogger": "(*, every_n_steps: 'int | None' = None, include: 'Sequence[str]' = ('*',), "
    "exclude: 'Sequence[str]' = (), gradients: 'bool' = True, figures: 'int' = 6, "
    "max_overhead: 'float | None' = 0.01, prefix: 'str' = 'health') -> 'None'",
    "GradientHealthMonitor": "(*, every_n_steps: 'int' = 10, include: 'Sequence[str]' = ('*',), "
    "exclude: 'Sequence[str]' = (), rules: 'Sequence[Rule] | None' = None, "
    "action: 'Action | Mapping[Severity, Action]' = 'warn', on_finding: 'Callable[[Finding], object] | None' = None, "
    "ignore: 'Mapping[str, Sequence[str]] | None' = None, "
    "limits: 'Mapping[str, Mapping[str, float]] | None' = None, replay: 'bool' = False, window: 'int' = 200, "
    "statistics_every_n_steps: 'int | None' = None, max_overhead: 'float | None' = 0.01, "
    "prefix: 'str' = 'health') -> 'None'",
    "watch": "(*, seed: 'int | None' = None) -> 'list[pl.Callback]'",
    "seed": "(seed: 'int | None' = None, *, workers: 'bool' = True, deterministic: 'Level' = False) -> 'SeedReport'",
    "audit_init": "(model: 'nn.Module', batch: 'Any' = None, "
    "loss_fn: 'Callable[[Any, Any], Tensor] | None' = None) -> 'InitReport'",
}


def test_the_public_names_are_these() -> None:
    assert lw.__all__ == [
        "Finding",
        "GradientHealthMonitor",
        "InitAuditor",
        "InitReport",
        "ParameterVerdict",
        "SeedEverything",
        "SeedReport",
        "WeightHistogramLogger",
        "__version__",
        "audit_init",
        "seed",
        "watch",
    ]


@pytest.mark.parametrize("name", lw.__all__)
def test_every_public_name_can_be_used_and_is_documented(name: str) -> None:
    value = getattr(lw, name)
    assert name == "__version__" or inspect.getdoc(value)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_these(name: str) -> None:
    assert str(inspect.signature(getattr(lw, name))) == SIGNATURES[name]


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Watch'"):
        _ = lw.Watch


@pytest.mark.parametrize(
    ("line", "forbidden"),
    [
        ("import lightning_weightwatch", ["torch", "lightning", "matplotlib", "numpy", "tensorboard"]),
        ("import lightning_weightwatch.cli", ["torch", "lightning", "matplotlib"]),
        ("from lightning_weightwatch import Finding", ["torch", "lightning", "matplotlib"]),
    ],
)
def test_an_import_brings_no_more_than_it_needs(line: str, forbidden: list[str]) -> None:
    code = f"{line}\nimport sys\nprint([name for name in {forbidden} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_changelog_begins_with_this_version() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(\d[^\]]*)\]", text, re.MULTILINE).group(1) == lw.__version__


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(lw.__file__).parent / "py.typed").exists()
