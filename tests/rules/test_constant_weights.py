"""Matrices whose units all compute the same: silent cases first, then the training that shows why."""

from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_weightwatch.rules.constant_weights import RULE


def verdict(name, constant, shape=(8, 8), kind="linear", trainable=True):
    return SimpleNamespace(name=name, constant=constant, shape=shape, kind=kind, trainable=trainable)


RANDOM = verdict("random.weight", None)


@pytest.mark.parametrize(
    "verdicts",
    [
        pytest.param([], id="no parameters"),
        pytest.param([RANDOM, RANDOM], id="drawn at random"),
        pytest.param([RANDOM, verdict("head", 0.0)], id="zero head (muP, ViT, detectors)"),
        pytest.param([RANDOM, verdict("last", 0.0), RANDOM], id="zero last layer of a residual branch (Fixup)"),
        pytest.param([verdict("lora_B", 0.0), verdict("lora_B2", 0.0)], id="zeros in a row, parted by gradients"),
        pytest.param([verdict("bn", 1.0, (16,), "norm"), verdict("b", 0.0, (16,), "bias")], id="norm gains, biases"),
        pytest.param([verdict("ln", 1.0, (4, 8), "norm"), verdict("ln2", 1.0, (4, 8), "norm")], id="2-D norm gains"),
        pytest.param([verdict("alpha", 0.1, (1,), "other"), verdict("gamma", 1e-6, (8,), "other")], id="ReZero, scale"),
        pytest.param([verdict("t", 1.0, (8, 1, 1), "other"), RANDOM], id="temperature per attention head"),
        pytest.param([verdict("position", 0.5, (1, 9, 8), "other"), RANDOM], id="kind unknown"),
        pytest.param([verdict("blur", 1 / 9, (8, 1, 3, 3), "convolution", trainable=False)], id="frozen average"),
        pytest.param([verdict("g", 1.0, (8, 1)), RANDOM, verdict("g2", 1.0, (8, 1)), RANDOM], id="weight norm gains"),
        pytest.param([RANDOM, verdict("mean", 0.25, (1, 4))], id="one unit has no twin"),
        pytest.param([verdict("tiny", None, (1, 1))], id="a single weight"),
        pytest.param([verdict("a", 0.1, (1, 8)), verdict("b", 0.1, (1, 1))], id="single units in a row"),
    ],
)
def test_silent(verdicts):
    assert RULE(verdicts) == ()


@pytest.mark.parametrize(
    "verdicts",
    [
        pytest.param([RANDOM, verdict("ill", 0.1), RANDOM], id="between random ones"),
        pytest.param([verdict("ill", 0.01)], id="softmax regression"),
        pytest.param([verdict("b", 0.1, (8,), "bias"), verdict("ill", 0.1), RANDOM], id="a bias is no neighbour"),
    ],
)
def test_a_single_constant_matrix_is_only_mentioned(verdicts):
    (finding,) = RULE(verdicts)
    assert (finding.severity, finding.parameters) == ("info", ("ill",))


@pytest.mark.parametrize(
    ("verdicts", "ill"),
    [
        pytest.param([verdict("a", 0.1), verdict("b", 0.2)], ("a", "b"), id="two"),
        pytest.param([verdict("a", 0.1), verdict("b", 0.2), RANDOM], ("a", "b"), id="random head"),
        pytest.param([verdict("a", 0.1), verdict("b", 0.0)], ("a",), id="zeros after it"),
        pytest.param([verdict("a", 0.1), verdict("b", 0.1, (1, 8))], ("a",), id="one unit after it"),
        pytest.param([verdict("a", 0.1, (8, 1)), verdict("b", 0.1)], ("a", "b"), id="one input"),
        pytest.param([verdict("a", 0.1), verdict("b", 0.1, trainable=False)], ("a",), id="a frozen one after it"),
        pytest.param(
            [verdict("c", 0.1, (8, 1, 3, 3), "convolution"), verdict("f", 0.1)], ("c", "f"), id="convolution, linear"
        ),
        pytest.param(
            [verdict("i", 0.1, kind="recurrent"), verdict("h", 0.1, kind="recurrent")], ("i", "h"), id="recurrent"
        ),
        pytest.param([verdict("q", 0.1, kind="attention"), verdict("o", 0.1)], ("q", "o"), id="attention"),
    ],
)
def test_in_a_row_they_are_critical(verdicts, ill):
    (finding,) = RULE(verdicts)
    assert (finding.severity, finding.parameters, finding.value) == ("critical", ill, float(len(ill)))


def test_both_forms_in_one_model():
    critical, info = RULE([verdict("a", 0.1), verdict("b", 0.1), RANDOM, verdict("c", 0.1), RANDOM])
    assert (critical.severity, critical.parameters) == ("critical", ("a", "b"))
    assert (info.severity, info.parameters) == ("info", ("c",))


def test_what_is_said():
    (finding,) = RULE([verdict("a", 0.1), verdict("b", 0.1)])
    assert str(finding) == (
        "CRITICAL at step 0: constant_weights. 2 of 2 weight matrices are constant (limit 0) at the start, next to "
        "others that are: units that start alike stay alike: a, b. Try first: Initialise at random, such as by the "
        "layer's reset_parameters()."
    )


def test_training_bears_the_limits_out():
    """The numbers of the page: one constant matrix trains like random ones, two in a row do not."""
    images, digits = load_digits(return_X_y=True)
    images, digits = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)

    def loss_after_training(constant):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        for layer in constant:
            nn.init.constant_(model[layer].weight, 0.1)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for _ in range(300):
            some = torch.randint(len(images), (64,))
            loss = nn.functional.cross_entropy(model(images[some]), digits[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return nn.functional.cross_entropy(model(images), digits).item()

    assert all(loss_after_training(constant) < 0.2 for constant in ([], [0], [2], [4]))
    assert all(loss_after_training(constant) > 0.4 for constant in ([0, 2], [2, 4], [0, 2, 4]))
