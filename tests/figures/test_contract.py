"""What every figure owes, whatever it is given."""

import io
import subprocess
import sys
import threading

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lightning_weightwatch import figures
from lightning_weightwatch.figures._paper import Word

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


def _signal(values: list[float], name: str) -> object:
    names = [f"{name}.{i}" for i in range(len(values))]
    return figures.signal_profile(names=names, spread=np.abs(values), gradient=np.abs(values[::-1]), title=name)


FIGURES = {
    "health_report": _health,
    "init_audit": _audit,
    "signal_profile": _signal,
    "filters 1d": _filters(1),
    "filters 2d": _filters(2),
    "filters 3d": _filters(3),
    "filters in colour": _coloured,
    "weight_matrix": lambda values, name: figures.weight_matrix(_square(values), title=name),
    "bias_bars": lambda values, name: figures.bias_bars(values, title=name),
}
every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


def _words(figure) -> list[Word]:
    return [word for word in figure.words if word.text]


def _overlap(one: Word, other: Word) -> bool:
    across = min(one.right, other.right) - max(one.left, other.left)
    return across > 0 and min(one.bottom, other.bottom) - max(one.top, other.top) > 0


@every_figure
@pytest.mark.parametrize("values", VECTORS.values(), ids=VECTORS)
def test_hostile_numbers_give_a_picture_of_the_right_size(draw, values) -> None:
    png = figures.encode(draw(values, "layer"))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(png[i : i + 4], "big") for i in (16, 20)] == [640, 310]
    assert png[24:26] == bytes([8, 2])  # 8 bits of red, green and blue


@every_figure
def test_the_picture_is_what_matplotlib_draws(draw) -> None:
    figure = draw(VECTORS["mixed"], "layer")
    assert isinstance(figure, Figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.open(io.BytesIO(figures.encode(figure)))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(canvas.buffer_rgba())[..., :3])


@every_figure
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_hostile_names_stay_inside(draw, name) -> None:
    for word in _words(draw(VECTORS["mixed"], name)):
        assert word.left >= 0, word
        assert word.right <= 640, word
        assert word.top >= 0, word
        assert word.bottom <= 310, word


@every_figure
@pytest.mark.parametrize("kind", ["mixed", "many", "one"])
def test_no_two_texts_overlap_and_none_is_small(draw, kind) -> None:
    words = _words(draw(VECTORS[kind], "encoder.layer"))
    for i, word in enumerate(words):
        assert word.size >= 12 * 100 / 72  # 12 points
        assert not [other for other in words[:i] if _overlap(word, other)], word


@every_figure
def test_empty_says_so_in_words(draw) -> None:
    words = [word.text for word in _words(draw([], "layer"))]
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
        "figure.constrained_layout.use": True,
        "axes.grid": True,
        "lines.linewidth": 9,
        "lines.antialiased": False,
        "markers.fillstyle": "none",
        "path.simplify_threshold": 1.0,
        "path.sketch": (5, 50, 5),
        "text.antialiased": False,
        "font.weight": "bold",
        "axes.autolimit_mode": "round_numbers",
        "image.interpolation": "bicubic",
    }
    with matplotlib.rc_context(loud):
        before = dict(matplotlib.rcParams)
        assert figures.encode(draw(VECTORS["mixed"], "a $b$")) == plain
        assert dict(matplotlib.rcParams) == before


@every_figure
def test_style_of_the_user_is_not_touched_for_a_moment(draw, monkeypatch) -> None:
    """The user may plot in another thread meanwhile."""

    def refuse(*arguments) -> None:
        raise AssertionError(arguments)

    for method in ("__setitem__", "update", "_set", "_update_raw"):
        if hasattr(matplotlib.RcParams, method):
            monkeypatch.setattr(matplotlib.RcParams, method, refuse)
    figures.encode(draw(VECTORS["mixed"], "layer"))


def test_threads_draw_the_same() -> None:
    drawn = []

    def draw() -> None:
        drawn.extend(figures.encode(figures.bias_bars([1.0, 2.0], title="fc.bias")) for _ in range(4))

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 12
    assert len(set(drawn)) == 1


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
