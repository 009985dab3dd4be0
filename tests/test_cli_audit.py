"""The audit of a network that a function makes, from the console."""

import json
from pathlib import Path

import pytest

from lightning_weightwatch.cli import main

NETS = """
import torch
from torch import nn


def good():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def constant():
    net = good()
    for layer in (net[0], net[2]):
        nn.init.constant_(layer.weight, 0.1)
    return net


class Made(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)


instance = good()


def batch():
    return torch.randn(32, 8), torch.randint(3, (32,))


def inputs():
    return torch.randn(32, 8)


def broken():
    return torch.full((32, 8), float("nan")), torch.randint(3, (32,))


def number():
    return 3


def fails():
    raise ValueError("no data here")
"""


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_a_shop.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def audit(*arguments: str) -> int:
    return main(["audit", *(argument.replace("nets:", "nets_of_a_shop:") for argument in arguments)])


@pytest.mark.parametrize("factory", ["nets:good", "nets:Made", "nets:instance"])
def test_a_healthy_network_is_told_in_one_line(factory: str, capsys: pytest.CaptureFixture) -> None:
    assert audit(factory) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Initial weights of ")


@pytest.mark.parametrize(("severity", "code"), [("info", 1), ("warning", 1), ("critical", 1)])
def test_an_ill_network_exits_with_one(severity: str, code: int, capsys: pytest.CaptureFixture) -> None:
    assert audit("nets:constant", "--fail-on", severity) == code
    assert "CRITICAL at step 0: constant_weights." in capsys.readouterr().out


def test_notes_fail_only_where_they_are_asked_to(capsys: pytest.CaptureFixture) -> None:
    (Path.cwd() / "notes_of_a_shop.py").write_text(
        NETS + "\n\ndef one_constant():\n    net = good()\n    nn.init.constant_(net[0].weight, 0.1)\n    return net\n"
    )
    assert audit("notes_of_a_shop:one_constant") == 0
    assert "INFO at step 0: constant_weights." in capsys.readouterr().out
    assert audit("notes_of_a_shop:one_constant", "--fail-on", "info") == 1


@pytest.mark.parametrize("loss", ["torch.nn.functional:cross_entropy", "torch.nn:CrossEntropyLoss"])
def test_with_a_batch_and_a_loss_the_signal_is_followed(loss: str, capsys: pytest.CaptureFixture) -> None:
    assert audit("nets:good", "--batch", "nets:batch", "--loss", loss, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in told["signal"]["layers"]] == ["0.weight", "2.weight"]
    assert 0.5 < told["signal"]["loss"] < 2.0


def test_a_batch_of_nan_does_not_pass_for_health(capsys: pytest.CaptureFixture) -> None:
    assert audit("nets:good", "--batch", "nets:broken", "--loss", "torch.nn.functional:cross_entropy") == 1
    assert "NaN or Inf came out of 0.weight first" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_report(capsys: pytest.CaptureFixture) -> None:
    told = []
    for seed in ("1", "1", "2"):
        audit("nets:good", "--batch", "nets:inputs", "--json", "--seed", seed)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] != told[2]


def test_markdown_is_for_a_pull_request(capsys: pytest.CaptureFixture) -> None:
    assert audit("nets:good", "--markdown") == 0
    assert capsys.readouterr().out.startswith("**Initial weights of 4 parameters: 4 ok**")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nets:number"], "factory=nets:number: expected a torch.nn.Module. It gave a int."),
        (["nets:nothing"], "factory=nets:nothing: nets has no nothing. Check the name after the colon."),
        (["nets"], "factory=nets: expected package.module:name. Put a colon before the function."),
        (["no_such_shop:net"], "factory=no_such_shop:net: No module named 'no_such_shop'. Run it from the folder"),
        (["nets:fails"], "factory=nets:fails: it raised ValueError: no data here"),
        (["nets:good", "--batch", "nets:fails"], "--batch=nets:fails: it raised ValueError: no data here"),
        (["nets:good", "--batch", "nets:batch"], "--batch=nets:batch: the network could not take it: "),
        (["nets:good", "--loss", "nets:batch"], "--loss=nets:batch: expected --batch beside it. It must give a pair"),
    ],
)
def test_what_cannot_be_done_is_said_and_exits_with_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert audit(*(a if ":" in a else a.replace("nets", "nets_of_a_shop") for a in arguments)) == 2
    assert message.replace("nets", "nets_of_a_shop") in capsys.readouterr().err
