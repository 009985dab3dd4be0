"""Letters fit, and different names stay different."""

import math

import pytest

from lightning_weightwatch.figures import _letters


@pytest.mark.parametrize("room", [80, 110, 182])
@pytest.mark.parametrize(
    "names",
    [
        [f"model.encoder.layers.{i}.attention.q_proj" for i in range(48)],
        [f"blocks.{i}.layers.{j}.mlp.fc" for i in range(5) for j in range(5)],
        ["encoder.a_very_long_name_indeed", "decoder.a_very_long_name_indeed"],
        ["a_very_long_name_indeed_1", "b_very_long_name_indeed_1"],
        ["x", "y", "fc.weight"],
        ["same.name.of.two.layers"] * 2,
    ],
)
def test_short_names_fit_and_stay_different(names: list[str], room: float) -> None:
    short = _letters.short_names(names, room)
    assert max(map(_letters.text_width, short)) <= room
    assert len(set(short)) == len(names)


def test_short_names_keep_what_tells_layers_apart() -> None:
    names = [f"model.encoder.layers.{i}.attention.q_proj" for i in range(12)]
    assert _letters.short_names(names, 110)[11] == "11…q_proj"
    assert _letters.short_names(["conv1", "fc"], 110) == ["conv1", "fc"]


def test_fit_leaves_short_text_alone_and_marks_what_it_cut() -> None:
    assert _letters.fit("conv", 100) == "conv"
    assert _letters.fit("encoder.layers.3.conv", 100).startswith("…")
    assert _letters.fit("encoder.layers.3.conv", 100, keep="start").endswith("…")


def test_clean_replaces_what_the_font_lacks() -> None:
    assert _letters.clean("a\n词\tb\x00") == "a ? b?"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.314, "0.31"), (-3e-7, "-3e-7"), (1e30, "1e30"), (1234.0, "1.2e3"), (math.inf, "inf")],
)
def test_number_is_short(value: float, text: str) -> None:
    assert _letters.number(value) == text
