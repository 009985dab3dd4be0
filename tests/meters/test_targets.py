"""What is known of targets, against the least loss that a constant prediction can have."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own short name

from lightning_weightwatch.meters.targets import Targets


def of(name, output, target, options=None, targets=None, place=""):
    facts, numbers = (targets or Targets()).of(name, output, target, options or {}, place)
    return facts | {key: number.item() for key, number in numbers.items()}


def classes(*shape, high=5):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(len(shape)))


def entropy(target, **options):
    """Return the loss of the class frequencies as a prediction, computed by torch."""
    kept = target[target != options.get("ignore_index", -100)]
    shares = torch.bincount(kept, minlength=5).double() / len(kept)
    logits = shares.log().clamp(min=-1e9).expand(len(kept), 5)
    return F.cross_entropy(logits, kept).item()


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize(
    ("output", "target"),
    [
        (torch.zeros(40, 5), classes(40)),
        (torch.zeros(40, 5), classes(40).int()),
        (torch.zeros(8, 5, 6), classes(8, 6)),
        (torch.zeros(2, 5, 3, 4), classes(2, 3, 4)),
        (torch.zeros(5), torch.tensor(3)),
    ],
    ids=["labels", "int32", "sequences", "pictures", "one sample"],
)
def test_of_classes_the_chance_is_the_entropy_of_their_frequencies(name, output, target):
    seen, flat = of(name, output, target), target.reshape(-1).long()
    assert seen["classes"] == 5
    assert seen["chance"] == pytest.approx(entropy(flat), abs=1e-6)
    assert seen["same"] == pytest.approx(np.bincount(flat).max() / len(flat))
    assert (seen["target_least"], seen["target_greatest"]) == (flat.min().item(), flat.max().item())


@pytest.mark.parametrize("ignored", [-100, 0, 4, 255])
def test_what_the_loss_ignores_is_not_counted(ignored):
    """Padding with a class of its own counted as the most frequent class, and -100 as the least target."""
    target = classes(40)
    target[::2] = ignored
    seen, kept = of("cross_entropy", torch.zeros(40, 5), target, {"ignore_index": ignored}), target[target != ignored]
    assert seen["chance"] == pytest.approx(entropy(target, ignore_index=ignored), abs=1e-6)
    assert seen["same"] == pytest.approx(np.bincount(kept).max() / len(kept))
    assert (seen["target_least"], seen["target_greatest"]) == (kept.min().item(), kept.max().item())


def test_where_all_is_ignored_nothing_is_known():
    seen = of("cross_entropy", torch.zeros(3, 5), torch.full((3,), -100))
    assert seen.pop("classes") == 5
    assert seen.keys() == {"chance", "same", "target_least", "target_greatest"}
    assert np.isnan(list(seen.values())).all()


def test_classes_that_do_not_exist_are_told_and_not_counted():
    seen = of("cross_entropy", torch.zeros(4, 3), torch.tensor([1, 2, 3, 3]))
    assert (seen["target_least"], seen["target_greatest"], seen["same"]) == (1, 3, 0.5)


WEIGHTED = {
    "weights": {"weight": torch.ones(5)},
    "smoothing": {"label_smoothing": 0.1},
    "a sum": {"reduction": "sum"},
    "one loss each": {"reduction": "none"},
    "a sum as it was asked for once": {"size_average": False},
}


@pytest.mark.parametrize("options", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy_with_logits", "mse_loss"])
def test_what_is_no_plain_mean_has_no_chance(name, options):
    output = torch.zeros(4, 5) if name == "cross_entropy" else torch.zeros(4)
    target = torch.tensor([0, 1, 1, 0]) if name == "cross_entropy" else torch.tensor([0.0, 1, 1, 0])
    assert "chance" in of(name, output, target)
    seen = of(name, output, target, options)
    assert "chance" not in seen
    assert "target_least" in seen


def test_soft_targets_have_classes_and_no_more():
    assert of("cross_entropy", torch.zeros(4, 5), torch.full((4, 5), 0.2)) == {"classes": 5}


@pytest.mark.parametrize("shape", [(40,), (40, 1), ()], ids=str)
@pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft labels"])
def test_of_two_classes_the_chance_is_the_loss_of_their_mean(name, shape, soft):
    """A single prediction without a dimension ended the listening."""
    target = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    target = target if soft else (target > 0.7).float()
    seen, mean = of(name, torch.zeros(shape), target), target.mean()
    assert seen["classes"] == 1
    assert seen["chance"] == pytest.approx(F.binary_cross_entropy(mean.expand(shape), target).item(), abs=1e-5)
    assert seen["same"] == pytest.approx(max(mean.item(), 1 - mean.item()))


def test_several_labels_have_no_chance_in_common():
    seen = of("binary_cross_entropy_with_logits", torch.zeros(4, 3), torch.ones(4, 3))
    assert seen == {"classes": 1, "target_least": 1.0, "target_greatest": 1.0}


def test_targets_that_are_no_shares_have_no_chance_and_spoil_no_later_one():
    """Labels of -1 and 1 made frequencies below zero."""
    targets, output = Targets(), torch.zeros(4)
    seen = of("binary_cross_entropy_with_logits", output, torch.tensor([-1.0, 1, 1, 1]), targets=targets)
    assert (seen["target_least"], seen["target_greatest"]) == (-1, 1)
    assert np.isnan([seen["chance"], seen["same"]]).all()
    seen = of("binary_cross_entropy_with_logits", output, torch.tensor([0.0, 1, 1, 0]), targets=targets)
    assert seen["chance"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(50,), (50, 1)], ids=str)
def test_of_a_regression_the_chance_is_the_variance(shape, dtype):
    target = (3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    seen, truth = of("mse_loss", torch.zeros(shape), target), target.double().numpy()
    assert seen["chance"] == pytest.approx(truth.var(), rel=1e-5)
    assert seen["target_mean"] == pytest.approx(truth.mean(), rel=1e-5)
    assert seen["target_std"] == pytest.approx(truth.std(), rel=1e-5)
    assert (seen["target_least"], seen["target_greatest"]) == (truth.min(), truth.max())


def test_a_spread_far_from_zero_is_not_lost():
    target = 1e4 + torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert of("mse_loss", torch.zeros(4), target)["chance"] == pytest.approx(1.25, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "target"), [("mse_loss", torch.ones(4, 3)), ("l1_loss", torch.ones(4)), ("huber_loss", torch.ones(4))]
)
def test_other_regressions_have_targets_and_no_chance(name, target):
    seen = of(name, torch.zeros_like(target), target)
    assert seen == {"target_mean": 1.0, "target_std": 0.0, "target_least": 1.0, "target_greatest": 1.0}


def test_frequencies_and_moments_are_those_of_all_passes_so_far():
    targets, parts = Targets(), classes(6, 7)
    for part in parts:
        seen = of("cross_entropy", torch.zeros(7, 5), part, targets=targets)
    assert seen["chance"] == pytest.approx(entropy(parts.reshape(-1)), abs=1e-6)
    assert seen["same"] == pytest.approx(np.bincount(parts[-1]).max() / 7)
    for part in parts.float():
        seen = of("mse_loss", torch.zeros(7), part, targets=targets)
    assert seen["chance"] == pytest.approx(parts.numpy().var(), rel=1e-5)


def test_heads_are_counted_apart():
    """Two losses of one kind shared their frequencies."""
    targets, output = Targets(), torch.zeros(4)
    for _ in range(2):
        real = of("mse_loss", output, torch.ones(4), targets=targets, place="real.weight")
        other = of("mse_loss", output, torch.tensor([0.0, 0, 4, 4]), targets=targets, place="other.weight")
    assert (real["chance"], other["chance"]) == (0.0, 4.0)


def test_one_nan_does_not_blind_later_passes():
    """The sum stayed NaN for ever."""
    targets = Targets()
    seen = of("mse_loss", torch.zeros(2), torch.tensor([math.nan, 1.0]), targets=targets)
    assert np.isnan(seen["target_mean"])
    assert np.isnan(seen["chance"])
    seen = of("mse_loss", torch.zeros(2), torch.tensor([0.0, 2.0]), targets=targets)
    assert seen["chance"] == 1.0


@pytest.mark.parametrize(
    "target",
    [None, 3.0, [0, 1], torch.empty(0), torch.nn.Parameter(torch.ones(2)), torch.ones(2).as_subclass(torch.nn.Buffer)],
    ids=["nothing", "a number", "a list", "empty", "a parameter", "a subclass"],
)
def test_of_anything_but_a_plain_tensor_nothing_is_known(target):
    assert of("mse_loss", torch.zeros(2), target) == {}


def test_a_huge_vocabulary_is_counted():
    target = torch.tensor([250_000, 0, 250_000, 7])
    seen = of("cross_entropy", torch.zeros(1, 250_001).expand(4, -1), target)
    assert seen["chance"] == pytest.approx(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)), abs=1e-6)
    assert (seen["classes"], seen["same"], seen["target_greatest"]) == (250_001, 0.5, 250_000)


def test_a_default_of_half_precision_does_not_break_the_count_of_classes():
    """Lightning's bf16-true makes bfloat16 the default while a step runs."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        _, numbers = Targets().of("cross_entropy", torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), {}, "w")
    finally:
        torch.set_default_dtype(torch.float32)
    assert float(numbers["chance"]) == pytest.approx(math.log(2), rel=1e-3)
