"""What every figure owes, whatever it is given."""

import subprocess
import sys
import threading

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from lightning_weightwatch import figures

NAN, INF = np.nan, np.inf
NAMES = [
    "",
    "weight",
    "a_name_with_underscores.weight",
    "costs $5 or $6",
    r"100 % \alpha^{2}_{",
    "model." + "very_long_name_" * 60 + ".weight",
    "x" * 500,
    "词嵌入.weight\n\t\x00",
]
VECTORS = {
    "empty": [],
    "one": [0.3],
    "constant": [0.7] * 40,
    "zero": [0.0] * 40,
    "all NaN": [NAN] * 40,
    "all Inf": [INF, -INF] * 20,
    "tiny": [1e-40, -3e-40, 0.0, 2e-41] * 10,
    "least": [5e-324, 0.0] * 20,
    "huge": [1e30, -1e30, 1e-40, 3.0] * 10,
    "largest": [1.7e308, -1.7e308] * 20,
    "mixed": [1.0, NAN, INF, -INF, 0.0, -2.0, 1e30, 1e-40] * 5,
    "many": list(np.linspace(-1, 2, 5000)),
}


def _square(values: list[float]) -> np.ndarray:
    rows = 1 if len(values) < 4 else 4
    return np.array(values).reshape(rows, -1)


def _health(values: list[float], name: str) -> object:
    grid = _square(values)
    steps, layers = grid.shape if grid.size else (0, 0)
    names = [f"{name}{i}" for i in range(layers)]
    losses = grid[:, 0] if grid.size else []
    return figures.health_report(
        verdict=name, healthy=True, layers=names, steps=list(range(steps)), log_rms=grid, losses=losses
    )


def _audit(values: list[float], name: str) -> object:
    names = [f"{name}.{i}" for i in range(len(values))]
    stds = np.abs(values) if values else []
    verdicts = ["ok", "warning", "critical", "skipped", "no such word"] * len(names)
    return figures.init_audit(
        names=names, measured_std=stds, expected_std=stds[::-1], verdicts=verdicts[: len(names)], sizes=[9] * len(names)
    )


def _filters(axes: int):
    def draw(values: list[float], name: str) -> object:
        grid = _square(values)
        weight = grid.reshape(grid.shape[0], 1, *[1] * (axes - 1), -1)
        return figures.convolution_filters(weight, title=name)

    return draw


def _coloured(values: list[float], name: str) -> object:
    return figures.convolution_filters(np.array([[_square(values)] * 3])[0][None], title=name)


FIGURES = {
    "health_report": _health,
    "init_audit": _audit,
    "filters 1d": _filters(1),
    "filters 2d": _filters(2),
    "filters 3d": _filters(3),
    "filters in colour": _coloured,
    "weight_matrix": lambda values, name: figures.weight_matrix(_square(values), title=name),
    "bias_bars": lambda values, name: figures.bias_bars(values, title=name),
}
every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


def _words(figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


@every_figure
@pytest.mark.parametrize("values", VECTORS.values(), ids=VECTORS)
def test_hostile_numbers_give_a_picture_of_the_right_size(draw, values) -> None:
    png = figures.encode(draw(values, "layer"))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(png[i : i + 4], "big") for i in (16, 20)] == [640, 310]
    assert png[24:26] == bytes([8, 6])  # 8 bits, RGBA


@every_figure
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_hostile_names_stay_inside_and_are_no_formulas(draw, name) -> None:
    figure = draw(VECTORS["mixed"], name)
    figures.encode(figure)
    for text in _words(figure):
        assert not text.get_parse_math()
        box = text.get_window_extent()
        assert box.x0 >= -1, text
        assert box.x1 <= 641, text
        assert box.y0 >= -1, text
        assert box.y1 <= 311, text


@every_figure
@pytest.mark.parametrize("kind", ["mixed", "many", "one"])
def test_no_two_texts_overlap_and_none_is_small(draw, kind) -> None:
    figure = draw(VECTORS[kind], "encoder.layer")
    figures.encode(figure)
    words = _words(figure)
    boxes = [text.get_window_extent().padded(-2) for text in words]
    for i, box in enumerate(boxes):
        assert words[i].get_fontsize() >= 12
        assert not [words[j] for j in range(i) if box.overlaps(boxes[j])], words[i]


@every_figure
def test_empty_says_so_in_words(draw) -> None:
    words = [text.get_text() for text in _words(draw([], "layer"))]
    assert any(word.startswith(("no ", "nothing ")) for word in words), words


@every_figure
def test_same_numbers_give_the_same_bytes_without_a_version_or_a_time(draw) -> None:
    first, second = (figures.encode(draw(VECTORS["mixed"], "layer")) for _ in range(2))
    assert first == second
    assert b"tEXt" not in first
    assert b"tIME" not in first


@every_figure
def test_style_of_the_user_neither_shows_nor_changes(draw) -> None:
    plain = figures.encode(draw(VECTORS["mixed"], "a $b$"))
    loud = {
        "axes.facecolor": "black",
        "figure.facecolor": "black",
        "savefig.facecolor": "red",
        "font.size": 31,
        "savefig.bbox": "tight",
        "figure.autolayout": True,
        "axes.grid": True,
    }
    with matplotlib.rc_context(loud):
        before = dict(matplotlib.rcParams)
        assert figures.encode(draw(VECTORS["mixed"], "a $b$")) == plain
        assert dict(matplotlib.rcParams) == before


def test_style_of_the_user_survives_two_threads() -> None:
    before = dict(matplotlib.rcParams)

    def draw() -> None:
        for _ in range(4):
            figures.encode(figures.bias_bars([1.0, 2.0], title="fc.bias"))

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys, numpy as np\n"
        "from lightning_weightwatch import figures as f\n"
        "f.encode(f.bias_bars([1.0], title='a'))\n"
        "f.encode(f.weight_matrix(np.ones((2, 2)), title='a'))\n"
        "f.encode(f.convolution_filters(np.ones((2, 2, 2)), title='a'))\n"
        "f.encode(f.init_audit(names=['a'], measured_std=[1.0], expected_std=[1.0], verdicts=['ok']))\n"
        "f.encode(f.health_report(verdict='a', healthy=True, layers=['a'], steps=[0], log_rms=[[0.0]], losses=[1.0]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
