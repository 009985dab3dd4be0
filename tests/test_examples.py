"""Every example runs, and says what the README says it says."""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import events

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each example its own import path."""
    # LightningCLI calls what jsonargparse deprecates.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    sys.modules.pop("quickstart", None)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"audit_a_network.py", "quickstart.py", "lightning_cli.py"}


def test_the_quickstart_shows_a_healthy_and_a_sick_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(monkeypatch, "quickstart.py", "--log-dir", str(tmp_path))
    told = capsys.readouterr().out
    assert told.count("Seed 42") == 2
    assert re.search(r"conv1\.weight: std 0\.\d{4}, expected 0\.1925 by PyTorch default", told)  # 1 / sqrt(3 * 9)
    healthy, sick = told.split("Healthy: SimpleCNN")[1].split("Sick: DeepSigmoid")
    assert float(re.search(r"accuracy +([\d.]+) %", healthy).group(1)) >= 95
    assert re.search(r"findings +0\n", healthy)
    assert "first cause          vanishing_gradients, since step 0" in sick
    # Eight sigmoid layers lose 0.84 decades each, so what lies four or more below the last is beyond three decades.
    assert "where                net.1.weight, net.3.weight, net.5.weight, net.7.weight, net.9.weight\n" in sick
    first = re.search(r"WARNING at step (\d+): vanishing_gradients", told)
    assert int(first.group(1)) < 50
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"```\n(weightwatch: WARNING.*?)```", readme, re.DOTALL)
    assert as_on_any_machine(quoted) in as_on_any_machine(told)
    assert f"tensorboard --logdir {tmp_path}/quickstart" in told


def test_the_quickstarts_pages_hold_what_is_promised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "quickstart.py", "--log-dir", str(tmp_path), "--epochs", "1")
    healthy, sick = (events.read(tmp_path / "quickstart" / name) for name in ("healthy", "sick"))
    assert "health/findings" not in healthy.all_tags()
    assert "vanishing_gradients" in "".join(sick.text("health/findings").values())
    for seen in (healthy, sick):
        assert {"health/0 report", "health/1 init audit", "health/2 signal"} <= seen.tags("images")
        assert {"health/seed", "health/init audit"} <= seen.tags("tensors")


def test_the_audit_tells_the_sick_network_from_the_healthy_one_before_training_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run(monkeypatch, "audit_a_network.py")
    sick, healthy = capsys.readouterr().out.split("=== Healthy")
    assert re.search(r"(WARNING|CRITICAL) at step 0: init_too_small\.", sick)
    assert "nn.init.kaiming_normal_(model[" in sick
    assert not re.search(r"WARNING|CRITICAL", healthy)
    losses = {name: float(loss) for name, loss in re.findall(r"^  (sick|healthy) +([\d.]+)$", healthy, re.MULTILINE)}
    assert losses["sick"] > 2.25
    assert losses["healthy"] < 1.0


def as_on_any_machine(text: str) -> str:
    """Return it in one line, without the digits that depend on how a machine adds up."""
    return re.sub(r"\d\.\de[+-]\d\d", "#", " ".join(text.split()))


def test_the_yaml_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = str(EXAMPLES / "lightning_cli.yaml")
    run(monkeypatch, "lightning_cli.py", "fit", "--config", config, "--trainer.max_epochs", "1")
    assert (tmp_path / "logs" / "lightning_cli").exists()
