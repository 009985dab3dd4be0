"""What stands in the event files is what a plain loop measures."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from lightning_weightwatch import GradientHealthMonitor, WeightHistogramLogger
from tests.helpers import events, fits, truth


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> events.Events:
    """Train the network of ``truth`` in one process and read everything that was logged."""
    folder = tmp_path_factory.mktemp("run")
    watchers = [GradientHealthMonitor(every_n_steps=1), WeightHistogramLogger(every_n_steps=4)]
    fits.trainer(watchers, max_epochs=1, logger=TensorBoardLogger(folder)).fit(truth.Model())
    return events.read(folder)


def test_the_global_norm_is_that_of_a_plain_loop(seen: events.Events) -> None:
    norms, _ = truth.gradient_norms()
    expected = np.log10(np.sqrt((norms**2).sum(axis=1)))
    logged = seen.scalars("health/grad_norm_log10")
    assert list(logged) == list(range(truth.STEPS))
    np.testing.assert_allclose(list(logged.values()), expected, atol=1e-5)


@pytest.mark.parametrize(("column", "tag"), [(0, "00 net.0.weight"), (5, "05 net.4.bias")])
def test_the_norm_of_each_parameter_is_that_of_a_plain_loop(seen: events.Events, column: int, tag: str) -> None:
    norms, _ = truth.gradient_norms()
    logged = seen.scalars(f"health.grad_log10/{tag}")
    np.testing.assert_allclose(list(logged.values()), np.log10(norms[:, column]), atol=1e-5)


def test_the_first_histogram_is_the_initialisation(seen: events.Events) -> None:
    weight = truth.network()[0].weight.detach().double().numpy()
    histogram = seen.histograms("health.weight_hist/00 net.0.weight")[0]
    assert histogram.num == weight.size
    assert histogram.sum == pytest.approx(weight.sum(), abs=0.1 * np.abs(weight).sum())
    assert histogram.min <= weight.min() + 0.05
    assert histogram.max >= weight.max() - 0.05
    counted = np.histogram(weight, bins=[histogram.min, *histogram.bucket_limit])[0]
    # Elements are taken to lie evenly in a bin of 12.5 %, so a few land next door.
    assert np.abs(np.cumsum(counted) - np.cumsum(histogram.bucket)).max() <= 4


def test_the_axis_of_a_weight_stays_put(seen: events.Events) -> None:
    shown = seen.histograms("health.weight_hist/02 net.2.weight")
    widths = {round(float(np.diff(h.bucket_limit).mean()), 9) for h in shown.values()}
    assert len(shown) == 4  # steps 0, 4 and 8, and the weights as they are left
    assert len(widths) == 1


def test_gradients_are_shown_by_their_magnitude(seen: events.Events) -> None:
    model = truth.network()
    x, y = (part.chunk(truth.STEPS)[0] for part in truth.data())
    torch.nn.functional.mse_loss(model(x), y).backward()
    logs = np.log10(np.abs(model[2].weight.grad.double().numpy()))
    histogram = seen.histograms("health.grad_log10_hist/02 net.2.weight")[0]
    assert histogram.num == logs.size
    assert histogram.min <= logs.min()
    assert histogram.max >= logs.max()


def test_pictures_are_pictures(seen: events.Events) -> None:
    tags = seen.tags("images")
    assert "health/0 report" in tags
    assert "health.fig_weight/00 net.0.weight" in tags
    for tag in tags:
        for png in seen.images(tag).values():
            assert Image.open(io.BytesIO(png)).size == (640, 310)


def test_no_tag_gets_more_than_tensorboard_keeps(tmp_path: Path) -> None:
    watchers = [GradientHealthMonitor(every_n_steps=1), WeightHistogramLogger(figures=1)]
    fits.trainer(watchers, max_epochs=40, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1).fit(truth.Model())
    seen = events.read(tmp_path)
    assert max(len(seen.scalars(tag)) for tag in seen.tags("scalars")) <= 1000
    assert max(len(seen.histograms(tag)) for tag in seen.tags("histograms")) <= 51
    assert max(len(seen.images(tag)) for tag in seen.tags("images")) <= 11
