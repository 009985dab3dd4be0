"""Every parameter of every architecture of the zoo gets a verdict, and nobody's own initialisation is called ill."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_weightwatch import InitReport, audit_init
from tests.architectures.everything import DEFENDED, ZOO
from tests.architectures.zoo import Architecture

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
TRIED = [architecture for architecture in ZOO if architecture.trial is not None]


def each(zoo: Iterable[Architecture]) -> pytest.MarkDecorator:
    """Run a test on the everyday ones, and on the others when everything is run."""
    cases = [pytest.param(one, id=str(one), marks=[] if one.everyday else [pytest.mark.long]) for one in zoo]
    return pytest.mark.parametrize("architecture", cases)


def audited(architecture: Architecture, *batch_and_loss: Any) -> InitReport:
    """Audit it, and see that it is as it was, and that every parameter has its verdict."""
    model = architecture.make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = audit_init(model, *batch_and_loss)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(before[name], value)]
    assert changed == []
    assert [p.name for p in report.parameters] == [name for name, _ in model.named_parameters()]
    assert [p.name for p in report.parameters if p.verdict == "skipped" or not p.reason] == []
    return report


def alarms(report: InitReport) -> dict[str, list[str]]:
    """Return what is told by each rule that warns."""
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.severity != "info":
            found.setdefault(finding.rule, []).append(finding.saw)
    return found


def defended(architecture: Architecture) -> dict[str, str]:
    return DEFENDED.get(str(architecture), {})


@each(ZOO)
def test_weights_alone_raise_no_alarm(architecture: Architecture) -> None:
    report = audited(architecture)
    assert alarms(report) == {}


@each(TRIED)
def test_a_batch_and_a_loss_raise_no_alarm_but_those_that_are_right(architecture: Architecture) -> None:
    assert architecture.trial is not None
    report = audited(architecture, architecture.batch(), architecture.trial.loss)
    assert report.signal is not None
    assert report.signal.layers
    found = alarms(report)
    assert found.keys() == defended(architecture).keys(), found


def test_the_zoo_would_notice() -> None:
    """What is asserted above can fail."""
    llama, vgg = (next(one for one in ZOO if one.name == name) for name in ("llama", "vgg_he"))
    ill = llama.make()
    torch.nn.init.constant_(ill.get_parameter("model.layers.0.mlp.up_proj.weight"), torch.nan)
    assert alarms(audit_init(ill))
    assert vgg.trial is not None
    ill = vgg.make().apply(lambda layer: hasattr(layer, "weight") and layer.weight.data.mul_(0.01))
    assert alarms(audit_init(ill, vgg.batch(), vgg.trial.loss))


def test_no_two_architectures_share_a_name() -> None:
    assert len({str(one) for one in ZOO}) == len(ZOO)


def test_what_is_defended_is_there() -> None:
    assert DEFENDED.keys() <= {str(one) for one in TRIED}


def test_the_page_tells_of_every_architecture() -> None:
    """If it does not: ``python benchmarks/architectures.py``."""
    rows = [line.split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    told = [f"{row[1].strip()}-{row[2].strip()}" for row in rows if row[1].strip() in ("own", "transformers")]
    assert told == [str(one) for one in ZOO]
