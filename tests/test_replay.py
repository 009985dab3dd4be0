"""A step done again: it says where the first number that is not finite appears, and leaves no trace."""

import contextlib
import copy
import math
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lightning_weightwatch import replay as package
from lightning_weightwatch.replay import Kept, RandomStates, Replayed, all_finite, looked_at, replay, why_not

NAN, INF = math.nan, math.inf


class Apply(nn.Module):
    """A module that does what it is told."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mlp(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), *between, nn.Linear(8, 1))


def data(seed: int = 0) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))


def again(run: Callable[[], Any], model: nn.Module, **options: Any) -> Replayed:
    return replay(run, model, rng=RandomStates.now(), **options)


# --- what the numbers are --------------------------------------------------------------------------------------------


def test_large_numbers_whose_squares_overflow_are_finite() -> None:
    assert all_finite(
        [torch.full((4,), 1e38), torch.tensor([6e4], dtype=torch.half), torch.tensor([1e300], dtype=torch.float64)]
    )


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.half, torch.bfloat16, torch.complex64])
def test_one_number_among_many_tensors_is_seen(number: float, dtype: torch.dtype) -> None:
    tensors = [torch.ones(3, 2), None, torch.empty(0), torch.arange(3), torch.ones(5, dtype=dtype)]
    assert all_finite(tensors)
    tensors[-1][2] = number
    assert not all_finite(tensors)


def test_nothing_is_finite() -> None:
    assert all_finite([])
    assert all_finite([nn.parameter.UninitializedParameter(), torch.empty(2, device="meta")])


def test_numbers_of_sparse_tensors_are_seen() -> None:
    def sparse(number: float) -> Tensor:
        return torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.tensor([1.0, number]), (3,), check_invariants=True)

    assert all_finite([sparse(2.0)])
    assert not all_finite([sparse(NAN)])


# --- where they appear -----------------------------------------------------------------------------------------------


def told(phase: str, place: str, detail: str) -> Replayed:
    return Replayed(True, phase, place, detail)


def test_a_healthy_step_is_transient() -> None:
    model, x = mlp(nn.ReLU()), data()
    found = again(lambda: model(x).mean(), model)
    assert found == Replayed(False, detail="the same batch gave finite numbers the second time.")
    assert str(found) == "Transient: the same batch gave finite numbers the second time."


@pytest.mark.parametrize(("number", "name"), [(NAN, "NaN"), (INF, "Inf")])
def test_a_sick_batch_is_named_with_its_part(number: float, name: str) -> None:
    model, x = mlp(nn.ReLU()), data()
    x[1, :3] = number
    found = again(lambda: model(x).square().mean(), model, batch=[("batch['y']", data(1)), ("batch['x']", x)])
    assert found == told("inputs", "batch['x']", f"batch['x'] holds {name} (3 of 32 numbers).")
    assert str(found) == f"Reproducible: batch['x'] holds {name} (3 of 32 numbers)."


def test_a_batch_with_minus_infinity_is_named_though_a_mask_might_hold_it() -> None:
    model, x = mlp(), data()
    x[1, :3] = -INF
    found = again(lambda: model(x).square().mean(), model, batch=[("batch", x)])
    assert (found.phase, found.place) == ("inputs", "batch")
    assert found.detail.startswith("batch holds -Inf (3 of 32 numbers); the first ")
    assert found.detail.endswith(" is in the output of 0 (Linear), forward; its inputs hold -Inf, as masks do.")


def test_a_sick_target_is_found_though_no_module_saw_it() -> None:
    model, x, y = mlp(), data(), torch.full((4, 1), NAN)
    found = again(lambda: nn.functional.mse_loss(model(x), y), model, batch=[("batch[0]", x), ("batch[1]", y)])
    assert (found.phase, found.place) == ("inputs", "batch[1]")


def test_a_sick_weight_is_named() -> None:
    model, x = mlp(nn.ReLU()), data()
    with torch.no_grad():
        model[2].weight[0, 3] = NAN
    found = again(lambda: model(x).mean(), model)
    assert found == told("weights", "2.weight", "2.weight holds NaN (1 of 8 numbers) already as the step begins.")


def test_a_sick_weight_that_no_module_was_called_for_is_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.body = nn.Parameter(torch.tensor(INF)), mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x * self.scale)

    model, x = Scaled(), data()
    found = again(lambda: model(x).mean(), model)
    assert (found.phase, found.place) == ("weights", "scale")


def test_a_sick_buffer_is_named_in_evaluation_only() -> None:
    """In training batch norm has written what it saw into its statistics since the step went wrong."""

    class Ill(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (NAN if self.training else 1.0)

    model, x = mlp(Ill(8)).eval(), data()
    model[1].running_mean[2] = NAN
    found = again(lambda: model(x).mean(), model)
    assert (found.phase, found.place) == ("weights", "1.running_mean")
    model.train()
    found = again(lambda: model(x).mean(), model)
    assert (found.phase, found.place) == ("forward", "1")


def test_the_module_that_makes_it_is_named() -> None:
    model, x = mlp(nn.ReLU(), Apply(torch.log), nn.LayerNorm(8)), data()
    words = "the first -Inf is in the output of 2 (Apply), forward; its inputs are finite."
    assert again(lambda: model(x).mean(), model) == told("forward", "2", words)


def test_an_infinity_that_the_next_module_swallows_is_looked_for_on_the_way_back() -> None:
    model, x = mlp(nn.ReLU(), Apply(torch.log), nn.Tanh()), data()
    found = again(lambda: model(x).mean(), model)
    assert (found.phase, found.place) == ("backward", "2")


def test_the_innermost_module_is_named() -> None:
    inner = nn.Sequential(nn.Linear(8, 8), Apply(lambda x: x * NAN))
    model, x = mlp(nn.Sequential(nn.ReLU(), inner)), data()
    found = again(lambda: model(x).mean(), model)
    words = "the first NaN is in the output of 1.1.1 (Apply), forward; its inputs are finite."
    assert found == told("forward", "1.1.1", words)


def test_what_overflows_is_named_rather_than_what_makes_nan_of_it() -> None:
    model, x = mlp(Apply(lambda x: x * 1e38 * 1e38), nn.Softmax(1)), data()
    assert again(lambda: model(x).mean(), model).place == "1"


def test_numbers_made_between_modules_are_told_as_such() -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) / 0 * 0)

    model, x = Between(), data()
    words = "the first NaN is in the inputs of last (Linear), forward; it is made before them, between modules."
    assert again(lambda: model(x).mean(), model) == told("forward", "last", words)


def test_the_whole_model_is_named_where_its_own_forward_makes_it() -> None:
    class Whole(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * NAN

    model, x = Whole(8, 1), data()
    found = again(lambda: model(x).mean(), model)
    assert (found.phase, found.place) == ("forward", "Whole")
    assert "Whole itself" in found.detail


def test_a_loss_that_makes_it_is_blamed_on_its_formula() -> None:
    model, x = mlp(), data()

    def run() -> Tensor:
        return (model(x).mean() - 1e3).log()

    words = "the loss is NaN, though the output of every module is finite: its formula makes it."
    assert again(run, model) == told("loss", "", words)


def test_a_loss_module_is_a_module() -> None:
    model, x, y = mlp(), data(), torch.zeros(4, 1)
    model.add_module("criterion", Apply(lambda pair: (pair[0] - pair[1]).sum() / 0))
    found = again(lambda: model.criterion((model[1](model[0](x)), y)), model)
    assert (found.phase, found.place) == ("forward", "criterion")


def test_a_square_root_at_zero_is_found_on_the_way_back() -> None:
    model, x = mlp(nn.ReLU(), Apply(lambda x: (x * 0).sqrt() + x)), data()
    found = again(lambda: model(x).mean(), model)
    words = "the loss is finite; the first NaN of its gradient is made in 2 (Apply), backward."
    assert found == told("backward", "2", words)


def test_a_gradient_that_the_loss_makes_is_told_as_such() -> None:
    model, x = mlp(), data()
    found = again(lambda: ((model(x) * 0).sum()).sqrt(), model)
    where = "made between the output of 1 (Linear) and the loss"
    words = f"the loss is finite; the first NaN of its gradient is {where}, backward."
    assert found == told("backward", "1", words)


def test_a_gradient_that_only_a_parameter_gets_is_told_by_its_name() -> None:
    model, x = mlp(), data()
    model[0].register_parameter("gate", nn.Parameter(torch.zeros(1)))
    found = again(lambda: model(x).mean() + model[0].gate.sqrt().sum(), model)
    words = "the loss is finite; the first Inf of its gradient is in the gradient of 0.gate, backward."
    assert found == told("backward", "0.gate", words)


def test_numbers_that_a_where_hides_come_out_on_the_way_back() -> None:
    model, x, y = mlp(), data(), torch.tensor([[1.0], [NAN], [2.0], [3.0]])

    def run() -> Tensor:
        error = (model(x) - y) ** 2
        return torch.where(y.isnan(), 0.0, error * y.isnan().logical_not()).sum()

    found = again(run, model, batch=[("batch[1]", y)])
    assert found.phase == "backward"
    assert found.detail.endswith("; batch[1] holds NaN (1 of 4 numbers).")


def test_an_operation_in_place_does_not_move_the_blame() -> None:
    model, x = mlp(nn.ReLU(inplace=True), Apply(lambda x: (x * 0).sqrt() + x), nn.ReLU(inplace=True)), data()
    assert again(lambda: model(x).mean(), model).place == "2"


def test_a_scaled_loss_overflows_as_it_did() -> None:
    model, x = mlp(), data()
    assert again(lambda: model(x).mean(), model).reproducible is False
    found = again(lambda: model(x).mean() * 1e10, model, scale=torch.tensor(2.0**120))
    assert found.phase == "backward"
    assert found.detail.endswith(", with the loss scaled by 1.32923e+36.")


# --- infinities that are meant ---------------------------------------------------------------------------------------


def encoder(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def masked() -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    return x, nn.Transformer.generate_square_subsequent_mask(5)


def test_a_mask_is_no_illness_of_the_modules_that_swallow_it() -> None:
    model, (x, mask) = encoder(), masked()
    found = again(lambda: model(x, mask=mask).mean().log() - INF, model)
    assert found.phase == "loss"


def test_behind_a_mask_the_module_that_makes_nan_is_named() -> None:
    model, (x, mask) = encoder(), masked()
    model.layers[1].linear1 = nn.Sequential(nn.Linear(8, 16), Apply(lambda x: x / 0 * 0))
    assert again(lambda: model(x, mask=mask).mean(), model).place == "layers.1.linear1.1"


class Attention(nn.Module):
    """Softmax of masked scores; a row that is masked whole is NaN."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.softmax(x @ x.mT + mask, -1) @ x


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(8, 8), Attention(), nn.Linear(8, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.last(self.attention(self.first(x), mask))


def test_a_row_that_is_masked_whole_is_blamed_on_the_attention() -> None:
    model, (x, mask) = Attends(), masked()
    mask[2] = -INF
    words = "the first NaN is in the output of attention (Attention), forward; its inputs hold -Inf, as masks do."
    assert again(lambda: model(x, mask).mean(), model) == told("forward", "attention", words)


def test_scores_that_a_module_masks_are_not_blamed_for_what_another_makes() -> None:
    class Masking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mask = Apply(lambda x: x.masked_fill(torch.eye(8, dtype=torch.bool)[:4], -INF))
            self.ill, self.last = Apply(lambda x: x * NAN), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.ill(torch.softmax(self.mask(x), -1)))

    model, x = Masking(), data()
    assert again(lambda: model(x).mean(), model).place == "ill"


def clamp(x: Tensor) -> Tensor:
    return x.clamp(max=5)


@pytest.mark.parametrize("way", [[Apply(clamp)], [Apply(lambda x: x * 2), nn.Identity(), Apply(clamp)]])
def test_an_infinity_that_another_module_swallows_is_not_blamed(way: list[nn.Module]) -> None:
    model, x = mlp(Apply(lambda x: x.masked_fill(x > 0, INF)), *way, Apply(lambda x: x * NAN)), data()
    assert again(lambda: model(x).mean(), model).place == str(len(way) + 2)


class Hides(nn.Module):
    """Makes infinities and swallows them, all by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.last = Apply(lambda x: x.masked_fill(x > 0, -INF)), nn.Linear(8, 1)
        self.raises = Apply(lambda x: x / None)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(self.mask(x), -1)
        with contextlib.suppress(TypeError):
            self.raises(x)
        return self.last(x)


def test_an_infinity_that_does_not_leave_its_parent_is_not_blamed() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), Hides()), data()
    assert again(lambda: model(x).mean() * NAN, model).phase == "loss"


def test_an_infinity_that_is_computed_anew_on_the_way_back_is_not_blamed() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), Hides()), data()

    def run() -> None:
        checkpoint(model[1], model[0](x), use_reentrant=False).mean().backward()
        (model(x).mean() * NAN).backward()

    assert again(run, model).phase == "loss"


def test_a_metric_without_a_value_is_not_blamed() -> None:
    class Undefined(torchmetrics.MeanMetric):
        def compute(self) -> Tensor:
            return super().compute() * NAN

    model, x = mlp(), data()
    model.add_module("metric", Undefined())

    def run() -> Tensor:
        y = model[1](model[0](x))
        model.metric(y.detach())
        return y.mean() / 0

    assert again(run, model).phase == "loss"


# --- reproducible or not ---------------------------------------------------------------------------------------------


def test_what_depends_on_something_else_is_transient() -> None:
    model, x, calls = mlp(), data(), []

    def run() -> Tensor:
        calls.append(None)
        return model(x).mean() * (NAN if len(calls) == 1 else 1.0)

    assert run().isnan()
    assert again(run, model).reproducible is False


def test_random_numbers_are_drawn_as_the_first_time() -> None:
    """With few elements and little dropout some draws are well and some ill."""
    model, x, answers = nn.Sequential(nn.Dropout(0.1), Apply(torch.log), nn.Linear(8, 1)), data()[:1].abs(), []
    for seed in range(20):
        torch.manual_seed(seed)
        rng = RandomStates.now()
        went_wrong = not model(x).isfinite()
        torch.rand(7)
        answers.append(replay(lambda: model(x).mean(), model, rng=rng).reproducible)
        assert answers[-1] is went_wrong
    assert set(answers) == {True, False}


def test_all_streams_start_again_and_are_left_where_they_were() -> None:
    model, x, drawn = mlp(), data(), []

    def run() -> Tensor:
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
        return model(x).mean()

    rng = RandomStates.now()
    run()
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    replay(run, model, rng=rng)
    assert drawn[0] == drawn[1]
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


# --- no trace --------------------------------------------------------------------------------------------------------


class Average:
    """A running average as people write it."""

    def __init__(self) -> None:
        self.total, self.history, self.tensor = 0.0, [], torch.zeros(1)

    def update(self, value: float) -> None:
        self.total += value
        self.history.append(value)
        self.tensor += value


class Busy(nn.Module):
    """Everything that a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.words = nn.Embedding(5, 8, max_norm=0.5)
        self.teacher = nn.Linear(8, 8).requires_grad_(False)
        self.hidden = [nn.BatchNorm1d(8)]  # registered nowhere
        self.head = nn.Linear(8, 1)
        self.metric, self.average = torchmetrics.MeanMetric(), Average()
        self.register_buffer("moving", torch.zeros(()))
        self.register_buffer("wide", torch.zeros(1).expand(3))
        self.register_buffer("late", None)
        self.count, self.outputs, self.seen, self.last = 0, [], {"x": []}, deque(maxlen=2)
        self.confusion, self.names = np.zeros((2, 2)), {"a"}
        self.own, self.numpy_own, self.python_own = torch.Generator(), np.random.default_rng(1), random.Random(1)
        self.example = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for new, old in zip(self.teacher.parameters(), self.head.parameters(), strict=True):
                new.data = new.data * 0.9 + old.mean() * 0.1
            self.head.weight.copy_(nn.functional.normalize(self.head.weight))
        self.moving = self.moving * 0.9 + x.mean() * 0.1
        self.late, self.new = torch.ones(1), torch.ones(1)
        self.count += 1
        self.outputs.append(x)
        self.seen["x"].append(x.mean().item())
        self.last.append(self.count)
        self.names.add(str(self.count))
        self.confusion += 1
        self.example.mul_(2).add_(1)
        self.average.update(x.mean().item())
        self.metric(x.mean())
        drawn = torch.rand((), generator=self.own).item() + self.numpy_own.random() + self.python_own.random()
        self.teacher.eval()
        self.body[0].requires_grad_(False)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        y = self.hidden[0](self.body(x) + self.words(torch.arange(4)) + self.teacher(x))
        return self.head(y) * drawn


def trace(model: Busy) -> dict[str, Any]:
    """Return all that can be known of a model, by value."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    held |= {f"hidden.{name}": t for name, t in model.hidden[0].named_buffers()}
    plain = (model.count, model.outputs, model.seen, model.last, model.names, model.confusion, model.example)
    average, metric = vars(model.average), (model.metric._update_count, model.metric._computed, model.metric.mean_value)
    own = (model.own.get_state(), model.numpy_own.bit_generator.state, model.python_own.getstate())
    return copy.deepcopy(
        {
            "bits": {name: (t.detach().clone(), t.dtype) for name, t in held.items()},
            "grads": {name: None if t.grad is None else t.grad.clone() for name, t in model.named_parameters()},
            "asks": {name: t.requires_grad for name, t in model.named_parameters()},
            "modes": [m.training for m in model.modules()],
            "plain": plain,
            "average": average,
            "metric": metric,
            "own": own,
            "names": [sorted(vars(m)) for m in model.modules()],
        }
    )


def same(now: Any, before: Any) -> None:
    torch.testing.assert_close(now, before, rtol=0, atol=0, equal_nan=True) if isinstance(now, Tensor) else None
    if isinstance(now, np.ndarray):
        np.testing.assert_array_equal(now, before)
    elif isinstance(now, dict):
        assert list(now) == list(before)
        for key in now:
            same(now[key], before[key])
    elif isinstance(now, (list, tuple, deque)):
        assert len(now) == len(before)
        for a, b in zip(now, before, strict=True):
            same(a, b)
    elif not isinstance(now, Tensor):
        assert now == before


def objects(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return who is who: of tensors, of gradients, of storages, and autograd's count of what was written to."""
    return {
        name: (id(t), t.data_ptr(), t._version, id(t.grad) if t.is_leaf else 0) for name, t in model.named_parameters()
    }


@pytest.mark.parametrize("ends", ["well", "ill", "raises", "ill on the way back"])
def test_nothing_of_the_model_is_changed(ends: str) -> None:
    torch.manual_seed(0)
    model, x = Busy(), data()
    model(x)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = torch.randn_like(parameter)
    model.head.bias.grad.fill_(NAN)
    model.teacher.weight.grad = None
    before, who, lists = trace(model), objects(model), (id(model.outputs), id(model.seen["x"]), id(model.average))

    def run() -> Tensor:
        y = model(x)
        if ends == "raises":
            raise ValueError("the user's own")
        return {"ill": y * NAN, "ill on the way back": (y * 0).sqrt()}.get(ends, y).mean()

    found = again(run, model)
    assert found.reproducible is {"well": False, "raises": None}.get(ends, True)
    same(trace(model), before)
    assert objects(model) == who
    assert (id(model.outputs), id(model.seen["x"]), id(model.average)) == lists
    assert not any(hooks_of(m) for m in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def hooks_of(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._forward_hooks_with_kwargs)


def test_the_trace_is_what_this_model_leaves() -> None:
    """Otherwise the test above could not fail."""
    torch.manual_seed(0)
    model, x = Busy(), data()
    model(x)
    before = trace(model)
    for part in before:
        if part in ("grads", "modes", "names", "asks"):  # the same after every call
            continue
        model(x)
        with pytest.raises(AssertionError):
            same(trace(model)[part], before[part])


def test_of_very_many_parameters_all_are_put_back() -> None:
    model = nn.ParameterList(nn.Parameter(torch.tensor(float(i))) for i in range(1100))
    model[1099].grad = torch.ones(())

    def run() -> Tensor:
        assert model[1099].grad is None
        for parameter in model:
            parameter.data.add_(1)
        return torch.stack(list(model)).sum()

    assert again(run, model).reproducible is False
    assert [p.item() for p in model] == list(range(1100))
    assert model[1099].grad.item() == 1


def test_a_container_that_refuses_to_be_written_to_is_left_alone() -> None:
    class Refuses(dict):
        def clear(self) -> None:
            raise TypeError

        update = clear

    model, x = mlp(), data()
    model.output = Refuses(x=1)
    assert again(lambda: model(x).mean(), model).reproducible is False


def test_a_graph_that_is_still_needed_stays_good() -> None:
    """Autograd counts writes into what it saved; a weight that is put back must not count as written."""
    model, x = mlp(nn.Tanh()), data()
    loss = model(x).square().mean()
    assert again(lambda: model(x).mean(), model).reproducible is False
    loss.backward()


def test_hooks_of_others_stay_and_those_for_added_up_gradients_are_not_called() -> None:
    """An optimizer may step in them, and other processes may be waited for."""
    model, x, calls = mlp(), data(), []
    model[0].weight.register_post_accumulate_grad_hook(calls.append)
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    again(lambda: model(x).mean(), model)
    model[0].weight.grad = None
    assert calls == ["forward"]
    assert len(model[0]._forward_hooks) == 1


def test_a_step_that_sends_back_itself_is_followed_without_touching_gradients() -> None:
    model, x = mlp(), data()
    kept = torch.ones(1)
    model[1].bias.grad = kept

    def run() -> None:
        model(x).mean().backward()
        torch.autograd.backward([model(x).mean(), model(x).std()], retain_graph=True)
        assert model[1].bias.grad.item() == pytest.approx(2.0)  # it sees its own
        (model(x).mean() * NAN).backward()

    found = again(run, model)
    assert found.phase == "loss"
    assert model[1].bias.grad is kept
    assert kept.item() == 1
    assert model[0].weight.grad is None


def test_another_thread_may_send_back_meanwhile() -> None:
    model, x, other = mlp(), data(), nn.Linear(8, 1)

    def run() -> Tensor:
        thread = threading.Thread(target=lambda: other(x).mean().backward())
        thread.start()
        thread.join()
        return model(x).mean()

    assert again(run, model).reproducible is False
    assert other.weight.grad is not None


def test_a_step_that_catches_every_error_is_still_ended() -> None:
    model, x, reached = mlp(), data(), []

    def run() -> None:
        try:
            (model(x).mean() * NAN).backward()
        except Exception:  # noqa: BLE001 - as people write it
            reached.append("caught")
        reached.append("went on")

    assert again(run, model).phase == "loss"
    assert reached == []


def test_gradients_are_sent_back_where_the_optimizer_has_switched_them_off() -> None:
    model, x = mlp(), data()
    with torch.no_grad():
        assert again(lambda: model(x).mean(), model).reproducible is False
        assert not torch.is_grad_enabled()


def test_an_interrupt_passes_and_leaves_everything_in_place() -> None:
    model, x, backward = mlp(nn.BatchNorm1d(8)), data(), torch.autograd.backward
    before = copy.deepcopy(model.state_dict())

    def run() -> None:
        model(x)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(run, model)
    same(model.state_dict(), before)
    assert torch.autograd.backward is backward
    assert not any(hooks_of(m) for m in model.modules())


# --- odd models ------------------------------------------------------------------------------------------------------


def test_what_is_computed_anew_on_the_way_back_is_not_taken_for_another_forward_pass() -> None:
    model, x = mlp(nn.Sequential(nn.Linear(8, 8), Apply(lambda x: (x * 0).sqrt() + x))), data()

    def run() -> Tensor:
        return model[2](checkpoint(model[1], model[0](x), use_reentrant=False)).mean()

    assert again(run, model).phase == "backward"


def test_lazy_and_frozen_and_tied_and_complex_parameters_are_no_obstacle() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.tied, self.frozen, self.unused = self.first, nn.Linear(8, 8).requires_grad_(False), nn.LazyLinear(3)
            self.wave, self.empty = nn.Parameter(torch.ones(2, dtype=torch.complex64)), nn.Parameter(torch.empty(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.tied(self.frozen(self.first(x))) * self.wave.abs().sum()

    model, x = Odd(), data()
    assert again(lambda: model(x).mean(), model).reproducible is False
    assert again(lambda: model(x).mean() * NAN, model).phase == "loss"


def test_outputs_in_containers_are_looked_into() -> None:
    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"features": [self.body(x)], "logits": (self.body(x) * NAN, None)}

    model, x = nn.Sequential(Gives()), data()

    def run() -> Tensor:
        return model(x)["logits"][0].mean()

    assert again(run, model).place == "0"


# --- what cannot be replayed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: None, "it gave no loss"),
        (lambda: torch.ones(()), "RuntimeError: element 0 of tensors does not require grad"),
    ],
)
def test_a_step_that_cannot_be_done_again_says_why(run: Callable[[], Any], reason: str) -> None:
    found = again(run, mlp())
    assert (found.reproducible, found.phase, found.place) == (None, None, "")
    assert str(found).startswith(f"Not known whether reproducible: the step could not be replayed ({reason}")


def test_compiled_modules_are_refused() -> None:
    reason = "compiled modules do not tell what passes through them"
    whole, inner, forward = torch.compile(mlp(), backend="eager"), mlp(), mlp()
    inner[0].compile(backend="eager")
    forward[0].forward = torch.compile(forward[0].forward, backend="eager")
    kept = mlp()
    kept[0].forward = torch.compiler.disable(kept[0].forward)
    assert [why_not(model) for model in (whole, inner, forward, mlp(), kept)] == [reason] * 3 + [None] * 2


def test_sync_batch_norm_is_refused_only_among_several_processes() -> None:
    model = mlp(nn.SyncBatchNorm(8))
    assert why_not(model) is None
    assert why_not(model, alone=False) == "SyncBatchNorm waits for the other processes"


def test_what_is_not_replayed_is_still_looked_at() -> None:
    model, x = mlp(), data()
    words = "the step was not replayed: shards."
    assert looked_at(model, [("batch", x)], "shards") == Replayed(None, detail=words)
    x[0] = NAN
    found = looked_at(model, [("batch", x)], "shards")
    assert found == Replayed(None, "inputs", "batch", f"batch holds NaN (8 of 32 numbers); {words}")
    with torch.no_grad():
        model[0].bias.fill_(INF)
    assert looked_at(model, [("batch", x)], "shards").place == "0.bias"


# --- batches ---------------------------------------------------------------------------------------------------------


def test_what_a_step_takes_out_of_its_batch_is_still_there() -> None:
    class Encoding(dict):
        """A dict of somebody else's."""

    x = data()
    batch = {"x": x, "more": [1, {"y": 2}], "theirs": Encoding(z=3)}
    kept = Kept(batch)
    for given in (batch, kept.again(), kept.again()):
        assert given.pop("x") is x
        given["more"].pop()["y"] = 5
        given["theirs"].clear()
    assert kept.again()["x"] is x
    assert (kept.again()["more"], kept.again()["theirs"]) == ([1, {"y": 2}], {"z": 3})


def test_a_batch_that_was_written_into_is_known_as_such() -> None:
    x, seen = data(), torch.ones(2)
    kept = Kept([x, {"seen": seen}])
    assert not kept.is_changed()
    seen.add_(1)
    assert kept.is_changed()


def test_batches_of_any_make_can_be_kept() -> None:
    class Graph:
        def __init__(self) -> None:
            self.x, self.me = data(), self

    with torch.inference_mode():
        inferred = torch.ones(1)
    kept = Kept([Graph(), inferred, None, "text", np.ones(2)])
    assert not kept.is_changed()
    assert kept.tensors()[0][0] == "batch[0].x"


def test_the_answer_is_plain_enough_to_be_sent_and_saved() -> None:
    model, x = mlp(), data()
    found = again(lambda: model(x).mean() * NAN, model)
    assert all(isinstance(value, (str, bool, type(None))) for value in vars(found).values())
    assert package.replay is replay
