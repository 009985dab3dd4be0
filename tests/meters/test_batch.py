"""The scale of inputs, against NumPy."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weightwatch.meters.batch import float_tensors, input_numbers

X, Y = torch.zeros(2, 3), torch.ones(4)
Pair = collections.namedtuple("Pair", ["a", "b"])


@dataclasses.dataclass
class Batch:
    x: torch.Tensor


class Strange(torch.Tensor):
    """A subclass, which may do anything when it is read."""

    def __torch_function__(self, *_, **__):
        raise AssertionError("it was read")


def endless():
    inner = []
    inner.append(inner)
    return inner


CASES = {
    "one tensor": (X, ["batch"]),
    "a pair": ([X, torch.tensor([1, 2])], ["batch[0]"]),
    "nested": ({"a": [X, {"b": (Y,)}], "c": "text"}, ["batch['a'][0]", "batch['a'][1]['b'][0]"]),
    "named": (Pair(X, Y), ["batch[0]", "batch[1]"]),
    "a dict of another make": (collections.UserDict({"x": X}), ["batch['x']"]),
    "more than are looked at": ([X] * 9, [f"batch[{i}]" for i in range(4)]),
    "behind much else": ({**{f"id{i}": 0 for i in range(12)}, "x": X}, ["batch['x']"]),
    "a class of the user's": (Batch(X), []),
    "nothing": (None, []),
    "text": ("text", []),
    "integers and truth values": ([torch.ones(3).long(), torch.ones(3).bool()], []),
    "one number": ([torch.ones(1), torch.tensor(2.0), torch.empty(0)], []),
    "complex numbers": (torch.ones(3, dtype=torch.complex64), []),
    "eight bits": (torch.ones(3).to(torch.float8_e4m3fn), []),
    "sparse": (torch.eye(3).to_sparse(), []),
    "without values": (torch.ones(3, device="meta"), []),
    "a subclass": (torch.ones(3).as_subclass(Strange), []),
    "a parameter": (nn.Parameter(torch.ones(3)), ["batch"]),
    "a list that holds itself": (endless(), []),
    "a list that holds itself and a tensor": ([endless(), X], ["batch[1]"]),
}


@pytest.mark.parametrize("case", CASES)
def test_plain_tensors_of_real_numbers_are_found_with_their_places(case):
    batch, places = CASES[case]
    found = float_tensors(batch)
    assert [name for name, _ in found] == places
    assert all(any(tensor is known for known in (X, Y, batch)) for _, tensor in found)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_passed_over(layout):
    """One ended the listening."""
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    assert [name for name, _ in float_tensors([nested, X])] == ["batch[1]"]


def test_what_a_batch_holds_behind_the_first_tensors_is_not_fetched():
    """A batch may read each of its parts from a disk."""

    class Lazy(dict):
        def items(self):
            for key in range(100):
                assert key < 4, "it was fetched"
                yield key, X

    assert len(float_tensors(Lazy())) == 4


def truth(x):
    """Return the same by NumPy, feature by feature, in float64."""
    x = x.double().numpy()
    axis = 1 if x.ndim > 3 else x.ndim - 1
    rows = x.reshape(1, -1) if x.ndim < 2 else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    kept = [row[np.isfinite(row)] for row in rows]
    stds = np.array([row.std() if len(row) else 0.0 for row in kept])
    means = np.array([row.mean() if len(row) else 0.0 for row in kept])
    greatest = np.array([np.abs(row).max(initial=0.0) for row in kept])
    varies, every = stds > 1e-6 * greatest, np.concatenate(kept)
    return {
        "mean": every.mean(),
        "std": every.std(),
        "abs_max": np.abs(every).max(),
        "largest_std": stds.max(),
        "spread": stds.max() / stds[varies].min() if varies.any() else np.nan,
        "offset": (np.abs(means[varies]) / stds[varies]).max(initial=0.0),
        "nonfinite": float((~np.isfinite(x)).sum()),
    }


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


FEATURES = torch.tensor([1.0, 100.0, 0.01, 0.0])
TENSORS = {
    "a table": (normal(50, 4), 4),
    "features of many scales": (normal(50, 4) * FEATURES + 3 * FEATURES, 4),
    "a vector": (normal(50) + 5, 1),
    "sequences": (normal(5, 6, 4) * FEATURES, 4),
    "pictures": (normal(5, 3, 7, 8) * torch.tensor([1.0, 9.0, 2.0])[:, None, None], 3),
    "volumes": (normal(2, 3, 4, 5, 6), 3),
    "raw pixels": ((normal(5, 3, 7, 8).abs() * 60).clamp(max=255), 3),
    "a constant feature": (torch.stack([normal(9), torch.full((9,), 7.3)], 1), 2),
    "all constant": (torch.full((9, 2), 7.3), 2),
    "one sample": (normal(1, 4), 4),
    "half precision": (normal(50, 4).half(), 4),
    "bfloat16": (normal(50, 4).bfloat16(), 4),
    "double precision": (normal(50, 4).double() * 1e60, 4),
    "some NaN": (normal(50, 4).masked_fill(normal(50, 4) > 1, torch.nan), 4),
    "a feature of NaN": (torch.stack([normal(9), torch.full((9,), torch.nan)], 1), 2),
}


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
@pytest.mark.parametrize("case", TENSORS)
def test_numbers_are_those_of_numpy(case):
    tensor, features = TENSORS[case]
    found = input_numbers(tensor)
    seen = dict(zip(found.names, (value.item() for value in found.values), strict=True))
    assert found.features == features
    assert seen == {
        key: pytest.approx(value, rel=1e-4, abs=1e-6 * seen["abs_max"], nan_ok=True)
        for key, value in truth(tensor).items()
    }


def test_where_nothing_is_finite_all_is_counted():
    found = input_numbers(torch.full((3, 2), torch.inf))
    seen = dict(zip(found.names, (value.item() for value in found.values), strict=True))
    assert (seen["nonfinite"], seen["abs_max"], seen["std"]) == (6.0, 0.0, 0.0)
    assert np.isnan(seen["spread"])


def test_a_tensor_that_is_measured_stays_as_it_is():
    x = normal(5, 4).requires_grad_()
    before = x.detach().clone()
    assert not any(value.requires_grad for value in input_numbers(x).values)
    assert torch.equal(x, before)
