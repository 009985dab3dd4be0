"""Every number of docs/tutorial_numbers.md, computed again from published formulas and fresh draws."""

import contextlib
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial_numbers.md").read_text(encoding="utf-8")
(CODE, SIGNAL_CODE), (OUTPUT, SIGNAL_OUTPUT) = (
    re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "text")
)
MEASURED = {"conv": 0.109001, "fc": 0.009038}  # what the tutorial prints
LAYERS = {"conv": lambda: nn.Conv2d(3, 16, 3), "fc": lambda: nn.Linear(4096, 10)}


def fans(layer: str) -> tuple[int, int, int]:
    weight = LAYERS[layer]().weight
    return *nn.init._calculate_fan_in_and_fan_out(weight), weight.numel()


def truth(layer: str) -> float:
    fan_in, _, _ = fans(layer)
    return scipy.stats.uniform(-1 / math.sqrt(fan_in), 2 / math.sqrt(fan_in)).std()


def scatter(layer: str) -> float:
    """From the fourth moment of a uniform distribution, as SciPy knows it."""
    kurtosis = scipy.stats.uniform.stats(moments="k") + 3
    return truth(layer) * math.sqrt((kurtosis - 1) / (4 * fans(layer)[2]))


def row(title: str) -> list[str]:
    (line,) = [line for line in PAGE.splitlines() if line.startswith("| ") and title in line]
    return [cell.strip(" *") for cell in line.strip("| ").split(" | ")][1:]


@pytest.mark.parametrize(
    ("title", "compute"),
    [
        ("number of weights", lambda layer: f"{fans(layer)[2]}"),
        ("PyTorch's bound", lambda layer: f"{1 / math.sqrt(fans(layer)[0]):.6f}"),
        ("true standard deviation", lambda layer: f"{truth(layer):.6f}"),
        ("its scatter", lambda layer: f"{scatter(layer):.6f}"),
        (
            "95 % of draws",
            lambda layer: f"{truth(layer) - 2 * scatter(layer):.6f} to {truth(layer) + 2 * scatter(layer):.6f}",
        ),
        ("the tutorial measured", lambda layer: f"{MEASURED[layer]:.6f}"),
        ("that is off by", lambda layer: f"{(MEASURED[layer] - truth(layer)) / scatter(layer):+.2f} sigma"),
        ("Kaiming for ReLU", lambda layer: f"{math.sqrt(2 / fans(layer)[0]):.6f}"),
        ("Xavier, sqrt", lambda layer: f"{math.sqrt(2 / sum(fans(layer)[:2])):.6f}"),
    ],
)
def test_table(title, compute):
    assert row(title) == [compute("conv"), compute("fc")]


def test_fan_in_and_the_tutorials_theory():
    assert row("fan_in |") == ["3 · 3 · 3 = 27", "4096"]
    assert [fans(layer)[0] for layer in LAYERS] == [27, 4096]
    assert row("the tutorial's theory") == [f"{math.sqrt(2 / 3):.6f}", f"{math.sqrt(2 / 4096):.6f} (Kaiming)"]


def test_sentences():
    conv, kaiming, xavier = truth("conv"), math.sqrt(2 / 27), math.sqrt(2 / 171)
    relative = scatter("conv") / conv
    stays_below_xavier = (xavier * math.sqrt(3) * math.sqrt(27)) ** 432
    normal_scatters = math.sqrt((3 - 1) / (1.8 - 1))
    assert kaiming**2 / conv**2 == pytest.approx(6)  # "a sixth of Kaiming's"
    text = " ".join(PAGE.split())
    for sentence in (
        f"is {math.sqrt(2 / 3) / conv:.2f} times too large",
        f"{(kaiming - MEASURED['conv']) / (kaiming * relative):.0f} sigma away from {kaiming:.6f}",
        f"Xavier gives {math.sqrt(2 / 4106):.6f}, {math.sqrt(2 / 4106) / truth('fc'):.2f} times what was measured",
        f"is only {1 - xavier / conv:.1%}".replace("%", " %"),
        f"scatter by {relative:.1%}".replace("%", " %"),
        f"(0.109001 is {(MEASURED['conv'] - xavier) / (xavier * relative):.2f} sigma from Xavier's)",
        f"stay below {xavier * math.sqrt(3):.6f}",
        f"once in {round(1 / stays_below_xavier, -3):,.0f} draws",
        f"scatters {normal_scatters:.2f} times as much",
    ):
        assert sentence in text, sentence


@pytest.mark.parametrize("layer", ["conv", "fc"])
def test_fresh_draws_scatter_as_the_page_says(layer):
    torch.manual_seed(0)
    draws = np.array([LAYERS[layer]().weight.std().item() for _ in range(200)])
    assert draws.mean() == pytest.approx(truth(layer), abs=4 * scatter(layer) / math.sqrt(200))
    assert draws.std() == pytest.approx(scatter(layer), rel=0.2)


def test_the_snippet_prints_what_the_page_shows():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(CODE, {})
    assert printed.getvalue() == OUTPUT


def test_the_signal_is_what_the_page_shows_and_what_theory_and_plain_torch_say():
    printed, known = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(CODE + SIGNAL_CODE, known)
    assert printed.getvalue() == OUTPUT + SIGNAL_OUTPUT
    model, (pictures, _) = known["model"], known["batch"]
    inputs = 3 * ((30 * 3 + 2 * 2) / 32) ** 2
    with torch.no_grad():
        conv, logits = (part(pictures) for part in (model[0], model))
        left = model[:4](pictures).square().mean().item()
    sigma = logits.var(dim=1, correction=0).mean().item()
    assert row("output of the convolution")[0] == f"{math.sqrt((inputs + 1) / 81):.4f}"
    assert row("output of the linear layer")[0] == f"{math.sqrt(left / 3 + 1 / (3 * 4096)):.4f}"
    assert row("first loss")[0] == f"{math.log(10) + sigma / 2:.2f}"
    assert [row(f"output of the {layer}")[1] for layer in ("convolution", "linear layer")] == [
        f"{output.square().mean().sqrt().item():.2f}" for output in (conv, logits)
    ]
    assert f"ten units vary by {100 / math.sqrt(2 * 10):.0f} %" in PAGE
    assert f"= {inputs:.2f} rather than 27" in PAGE


def test_seed_42_does_not_give_the_tutorials_numbers():
    torch.manual_seed(42)
    conv, fc = (f"{make().weight.std().item():.6f}" for make in LAYERS.values())
    assert f"gives {conv} and {fc} for the two weights" in PAGE
    assert (conv, fc) != ("0.109001", "0.009038")
