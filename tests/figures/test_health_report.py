"""The landing picture says what is so: right colours, right rows, right steps, nothing pooled away."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from PIL import Image

from lightning_weightwatch.figures import _paper, encode, health_report
from lightning_weightwatch.figures._paper import Word, _Dots
from lightning_weightwatch.figures.health_report import colours, medians, pooled

INF, NAN = np.inf, np.nan


def _report(log_rms, *, layers=None, steps=None, losses=None, **more):
    log_rms = np.asarray(log_rms, float)
    count, width = log_rms.shape
    return health_report(
        verdict="No illness found",
        healthy=True,
        layers=layers or [f"net.{i}.weight" for i in range(width)],
        steps=steps if steps is not None else list(range(count)),
        log_rms=log_rms,
        losses=np.ones(count) if losses is None else losses,
        **more,
    )


def _texts(figure) -> list[str]:
    return [word.text for word in figure.words]


def _names(figure) -> list[Word]:
    """Return the names beside the heat map."""
    return [word for word in figure.words if word.right <= 120 and 82 < word.top < 250]


def _steps(figure) -> list[Word]:
    """Return the labels below the heat map."""
    return [word for word in figure.words if 255 < word.top < 280 and 100 < word.right < 500]


def _pixels(figure, width: int = 640) -> np.ndarray:
    """Return the picture as TensorBoard shows it: scaled down without smoothing."""
    image = Image.open(io.BytesIO(encode(figure))).convert("RGB")
    return np.asarray(image.resize((width, 310 * width // 640), Image.Resampling.NEAREST))


def _quiet(steps: int = 2000, layers: int = 120) -> np.ndarray:
    return np.random.default_rng(0).normal(-3, 0.2, (steps, layers))


def _heat(figure, width: int) -> np.ndarray:
    scale = width / 640
    rows, columns = (slice(int(a * scale), int(b * scale)) for a, b in ((97, 250), (128, 487)))
    return _pixels(figure, width)[rows, columns]


def test_bands_classify() -> None:
    neutral, black = to_rgba(_paper.PALE), to_rgba(_paper.BLACK)
    painted = colours([0, 1.99, -2, 2, -2.01, 2.01, INF, -INF, NAN], band=2.0)
    assert [tuple(c) for c in painted[:4]] == [neutral] * 4
    np.testing.assert_allclose(painted[4], to_rgba(_paper.LOW), atol=0.01)
    np.testing.assert_allclose(painted[5], to_rgba(_paper.HIGH), atol=0.01)
    assert tuple(painted[6]) == black
    assert tuple(painted[7]) == to_rgba(_paper.LOWEST)
    assert painted[8][3] == 0  # nothing drawn: the hatched ground shows


def test_farther_out_is_darker_up_to_three_bands() -> None:
    for sign in (-1, 1):
        sums = colours(sign * np.array([2.1, 3, 4, 5, 6]), band=2.0)[:, :3].sum(axis=1)
        assert (np.diff(sums) < 0).all()
    np.testing.assert_array_equal(colours([6.0], band=2.0), colours([60.0], band=2.0))


def test_medians_ignore_what_is_not_measured_not_finite_or_zero() -> None:
    rows = np.array([[1, 2, 9], [1, NAN, 3], [INF, 5, -INF], [NAN, NAN, NAN], [INF, -INF, NAN]], float)
    np.testing.assert_equal(medians(rows), [2, 2, 5, NAN, NAN])


@pytest.mark.parametrize("seed", range(5))
def test_pooling_agrees_with_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    offset = random.normal(0, 2, random.integers(1, 40, 2))
    for special, share in ((NAN, 0.4), (INF, 0.03), (-INF, 0.03)):
        offset[random.random(offset.shape) < share] = special
    cells = pooled(offset, 3, 4)
    for (i, j), value in np.ndenumerate(cells):
        block = offset[i * 3 : i * 3 + 3, j * 4 : j * 4 + 4].ravel()
        measured = block[~np.isnan(block)]
        if not measured.size:
            assert np.isnan(value)
        elif np.isposinf(measured).any():
            assert value == INF
        elif np.isneginf(measured).any():
            assert value == -INF
        else:
            assert value == measured[np.abs(measured).argmax()]


@pytest.mark.parametrize("width", [640, 415])
def test_one_step_of_nan_in_one_layer_is_seen_even_when_scaled_down(width: int) -> None:
    log_rms = _quiet()
    assert not (_heat(_report(log_rms), width) == 0).all(axis=-1).any()
    log_rms[1301, 77] = INF
    assert (_heat(_report(log_rms), width) == 0).all(axis=-1).any()


@pytest.mark.parametrize("width", [640, 415])
@pytest.mark.parametrize(("away", "far"), [(-9.0, _paper.LOWEST), (9.0, _paper.HIGHEST)])
def test_one_outlier_is_seen_even_when_scaled_down(away: float, far: str, width: int) -> None:
    log_rms = _quiet()
    log_rms[640, 31] += away
    heat = _heat(_report(log_rms), width)
    assert (np.abs(heat - np.array(to_rgb(far)) * 255) < 2).all(axis=-1).any()


def test_last_step_of_nan_is_seen_when_it_is_alone_in_its_cell() -> None:
    log_rms = _quiet(steps=1 + 17 * 100, layers=54)
    assert not (_pixels(_report(log_rms), 415) == 0).all(axis=-1).any()
    log_rms[-1, -1] = INF
    assert (_pixels(_report(log_rms), 415) == 0).all(axis=-1).any()


def test_step_without_any_finite_layer_is_black_not_unmeasured() -> None:
    heat = _heat(_report([[-2, -2], [INF, INF], [-2, -2]]), 640)
    assert (heat[:, 150:200] == 0).all()


def test_healthy_is_quiet() -> None:
    heat = _heat(_report(_quiet()), 640)
    assert (np.abs(heat - np.array(to_rgb(_paper.PALE)) * 255) < 2).all()


@pytest.mark.parametrize("count", [1, 3, 10, 54, 120, 300])
def test_labels_stand_at_the_layers_they_name(count: int) -> None:
    figure = _report(_quiet(5, count), layers=[f"layer{i}" for i in range(count)])
    group = -(-count // 53)  # layers that share a row of cells
    high = 159 / (group * -(-count // group))
    ticks = np.flatnonzero((figure.pixels[94:253, 123, :3] < 200).all(axis=-1)) + 94
    labels = _names(figure)
    assert [label.text for label in labels[:1]] == ["layer0"]  # the first layer is at the top
    assert len(ticks) == len(labels)
    for tick, label in zip(ticks, labels, strict=True):
        place = 94 + (int(label.text.removeprefix("layer")) + 0.5) * high
        assert tick + 0.5 == pytest.approx(place, abs=0.6)
        assert label.top < place < label.bottom


def test_step_ticks_stand_at_their_read_outs_also_where_these_lie_unevenly() -> None:
    steps = [*range(0, 100, 10), *range(100, 2000, 100)]
    labels = _steps(_report(_quiet(len(steps), 3), steps=steps))
    assert len(labels) >= 3
    for label in labels:
        step = int(label.text.removeprefix("step ").replace(",", ""))
        place = 126 + (steps.index(step) + 0.5) * 363 / len(steps)
        assert (label.left + label.right) / 2 == pytest.approx(place, abs=2)


def test_endings_all_share_are_left_out() -> None:
    labels = _names(_report(_quiet(2, 2), layers=["conv.weight", "fc.weight"]))
    assert [label.text for label in labels] == ["conv", "fc"]
    labels = _names(_report(_quiet(2, 2), layers=["conv.weight", "scale"]))
    assert [label.text for label in labels] == ["conv.weight", "scale"]


def test_now_shows_the_last_read_out_with_anything_measured() -> None:
    figure = _report([[-1, -2], [-3, INF], [NAN, NAN]], steps=[0, 50, 100])
    assert "rms at 50" in _texts(figure)
    finite, zeros, broken = (dots.points for dots in figure.findobj(_Dots))
    assert finite.tolist() == [[502 + 64, 94 + 0.25 * 159]]  # the median layer, in the middle
    assert zeros.size == 0
    assert broken[:, 1].tolist() == [94 + 0.75 * 159]


def test_legend_names_rare_colours_only_where_they_occur() -> None:
    assert not {"zero", "NaN/Inf", "not seen"} & set(_texts(_report(_quiet(3, 3))))
    assert {"zero", "NaN/Inf", "not seen"} <= set(_texts(_report([[-INF, INF, NAN, 0]])))
    assert "< 1/1,000" in _texts(_report(_quiet(3, 3), band=3.0))


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([NAN, NAN], "not known"),
        ([1.0, INF], "NaN or Inf"),
        ([INF, 0.5], "0.5"),
        ([0.5, NAN], "0.5"),
        ([1000.0, 0.01], "0.01 (log)"),
        ([1000.0, -0.01], "-0.01"),
    ],
)
def test_loss_is_said_beside_its_line(losses: list[float], said: str) -> None:
    assert said in _texts(_report(_quiet(2, 3), losses=np.array(losses)))


def test_gradient_level_too_small_for_a_float_is_still_said() -> None:
    assert "grad rms 1e-350" in _texts(_report([[-350.0]]))
