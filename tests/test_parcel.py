"""Numbers on their way between device and host, against NumPy."""

import math

import numpy as np
import pytest
import torch

from lightning_weightwatch.parcel import Parcel, upload
from tests.helpers.tensors import HOSTILE

SENT = {
    "one tensor": [torch.tensor([1.5, -2.0])],
    "scalars": [torch.tensor(3.0), torch.tensor(7), torch.tensor(True)],
    "integers, halves and doubles": [
        torch.arange(6).reshape(2, 3),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(3).double(),
    ],
    "empty at the front, in the middle and at the end": [
        torch.empty(0),
        torch.ones(2),
        torch.empty(3, 0),
        torch.empty(0, 2),
    ],
    "nothing but empty": [torch.empty(0), torch.empty(2, 0)],
    "many dimensions": [torch.arange(24.0).reshape(2, 3, 4), torch.ones(1, 1, 1)],
    "transposed, strided, broadcast": [
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(9.0)[::3],
        torch.ones(2).expand(3, 2),
    ],
    "not finite": [torch.tensor([math.nan, math.inf, -math.inf]), torch.tensor(math.nan)],
    "counts that float32 cannot hold": [torch.tensor([2**24 + 1, 2**53 - 1])],
    "asking for gradients": [torch.ones(2, requires_grad=True) * 2],
    "hostile": list(HOSTILE.values()),
}


def named(tensors):
    return {f"tensor {i}": tensor for i, tensor in enumerate(tensors)}


@pytest.mark.parametrize("sent", SENT)
def test_what_arrives_is_what_was_sent_by_name_and_in_its_shape(sent):
    tensors = named(SENT[sent])
    found = Parcel(tensors, torch.float64).read()
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), np.float64)
        np.testing.assert_array_equal(found[name], tensor.detach().double().numpy())


def test_what_travels_in_single_precision_is_read_in_double():
    found = Parcel({"a": torch.tensor([0.1, 1e30]), "b": torch.tensor(3)}, torch.float32).read()
    assert (found["a"].dtype, found["a"].tolist(), float(found["b"])) == (
        np.float64,
        [float(np.float32(0.1)), float(np.float32(1e30))],
        3.0,
    )


@pytest.mark.parametrize("others", [{}, {"b": torch.zeros(2)}], ids=["alone", "with others"])
def test_what_happens_to_a_tensor_after_it_was_sent_does_not_reach_the_parcel(others):
    sent = torch.ones(3, dtype=torch.float64)
    parcel = Parcel({"a": sent, **others}, torch.float64)
    sent.zero_()
    assert parcel.read()["a"].tolist() == [1.0, 1.0, 1.0]


def test_it_can_be_read_twice():
    parcel = Parcel({"a": torch.ones(2), "b": torch.tensor(7)}, torch.float64)
    first, second = parcel.read(), parcel.read()
    assert {k: v.tolist() for k, v in first.items()} == {k: v.tolist() for k, v in second.items()}


def test_on_a_cpu_it_is_there_at_once():
    parcel = Parcel({"a": torch.ones(2)}, torch.float64)
    parcel.wait()
    assert parcel.at_once
    assert parcel.landed


class Event:
    """Stands in for an event of CUDA that has not come yet."""

    def __init__(self):
        self.came, self.asked = False, []

    def query(self):
        self.asked.append("query")
        return self.came

    def synchronize(self):
        self.asked.append("synchronize")
        self.came = True


def test_what_is_under_way_is_asked_for_without_waiting_and_waited_for_when_read():
    parcel, event = Parcel({"a": torch.ones(2)}, torch.float64), Event()
    parcel._event = event
    assert (parcel.at_once, parcel.landed, event.asked) == (False, False, ["query"])
    assert parcel.read()["a"].tolist() == [1.0, 1.0]
    assert event.asked == ["query", "synchronize"]
    assert (parcel.at_once, parcel.landed) == (False, True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
@pytest.mark.parametrize("numbers", [[1, 2], 3.0, [[1.0, 2.0], [3.0, 4.0]], [], np.arange(3), np.float64(2)], ids=str)
def test_numbers_go_up_in_the_type_and_shape_that_are_asked_for(numbers, dtype):
    there = upload(numbers, torch.zeros(5, dtype=dtype))
    assert (there.dtype, tuple(there.shape)) == (dtype, np.shape(numbers))
    np.testing.assert_array_equal(there.numpy(), np.asarray(numbers))


def test_large_column_numbers_go_up_unrounded():
    assert upload(np.array([2**53 + 1]), torch.zeros(0, dtype=torch.int64)).tolist() == [2**53 + 1]
