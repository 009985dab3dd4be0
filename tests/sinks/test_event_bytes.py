"""What histograms take on disk: the same tensors through ``SummaryWriter.add_histogram`` take 15 times as much."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from lightning_weightwatch.callbacks._weight_pages import WeightPages
from lightning_weightwatch.sinks import Sinks
from lightning_weightwatch.sinks.tensorboard import TensorBoardSink
from lightning_weightwatch.stats import histogram
from tests.helpers.events import read

SHAPES = {
    "layer1.0.conv1.weight": (64, 64, 1, 1),
    "layer1.0.bn1.bias": (64,),
    "layer1.0.conv2.weight": (64, 64, 3, 3),
    "transformer.h.0.attn.c_attn.weight": (768, 2304),
    "transformer.h.0.attn.c_attn.bias": (2304,),
}
STEPS = 2


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def counts(values):
    return {name: histogram.measure([t])["counts"][0].double().numpy() for name, t in values.items()}


def size(folder):
    return sum(file.stat().st_size for file in folder.glob("events*"))


@pytest.fixture
def written(tmp_path):
    """Return what is read back of weights and gradients, and its size over that of ``add_histogram``."""
    ours, theirs, nothing = (SummaryWriter(str(tmp_path / name)) for name in ("ours", "theirs", "nothing"))
    parameters = [SimpleNamespace(name=name, numel=int(np.prod(shape))) for name, shape in SHAPES.items()]
    pages = WeightPages(Sinks([TensorBoardSink(ours)]), "health", parameters, {})
    for step in range(STEPS):
        weights, gradients = tensors(step), tensors(100 + step)
        pages.weights(counts(weights), step)
        pages.gradients(counts(gradients), step)
        for kind, values in (("weight_hist", weights), ("grad_log10_hist", gradients)):
            for i, (name, tensor) in enumerate(values.items()):
                theirs.add_histogram(f"health.{kind}/{i:02d} {name}", tensor, step)
    for writer in (ours, theirs, nothing):
        writer.close()
    sizes = [size(tmp_path / name) - size(tmp_path / "nothing") for name in ("ours", "theirs")]
    return read(tmp_path / "ours"), sizes[1] / sizes[0]


def test_it_is_a_fifteenth_zero_shares_included(written):
    assert written[1] >= 15


@pytest.mark.parametrize(("kind", "seed"), [("weight_hist", 0), ("grad_log10_hist", 100)])
def test_no_element_is_lost(written, kind, seed):
    for step in range(STEPS):
        for i, (name, tensor) in enumerate(tensors(seed + step).items()):
            shown = written[0].histograms(f"health.{kind}/{i:02d} {name}")[step]
            zeros = 0 if kind == "weight_hist" else int((tensor == 0).sum())  # they have no logarithm
            assert sum(shown.bucket) == pytest.approx(tensor.numel() - zeros, rel=1e-12)
            assert shown.num == pytest.approx(tensor.numel() - zeros, rel=1e-12)
            if kind == "grad_log10_hist":
                share = written[0].scalars(f"health.grad_zero_share/{i:02d} {name}")[step]
                assert share == pytest.approx(zeros / tensor.numel())
