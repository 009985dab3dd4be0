"""Smallest and largest finite elements against NumPy."""

import math

import numpy as np
import pytest
import torch

from lightning_weightwatch.stats import extremes
from tests.helpers.tensors import HOSTILE

FILLED = {name: t for name, t in HOSTILE.items() if t.isfinite().any()}


def read(tensor):
    return {key: value.item() for key, value in extremes.read(extremes.measure([tensor])).items()}


@pytest.mark.parametrize("tensor", FILLED.values(), ids=FILLED.keys())
def test_are_those_of_the_finite_elements(tensor):
    finite = tensor.double().numpy().ravel()
    finite = finite[np.isfinite(finite)]
    assert read(tensor) == {"min": finite.min(), "max": finite.max(), "abs_max": np.abs(finite).max()}


@pytest.mark.parametrize("tensor", [torch.empty(0), torch.full((3,), math.nan), torch.tensor([math.inf, -math.inf])])
def test_without_finite_elements_there_are_none(tensor):
    assert all(math.isnan(value) for value in read(tensor).values())


def test_an_empty_piece_changes_nothing_when_merged():
    partials = extremes.measure([torch.empty(0), torch.tensor([-3.0, 2.0])])
    assert partials["least"].min() == -3
    assert partials["greatest"].max() == 2
