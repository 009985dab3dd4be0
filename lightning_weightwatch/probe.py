"""What one batch shows of an untrained model; the model and every random stream are left as they were."""

from __future__ import annotations

import copy
import math
import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_weightwatch import stats
from lightning_weightwatch.evidence import Signal
from lightning_weightwatch.parameters import clean, describe, values
from lightning_weightwatch.propagation import Propagation
from lightning_weightwatch.replay import random_streams_kept, remember_the_rest

_STEP = 1e-3  # of an imagined step, relative to a matrix of root mean square 1: it only has to leave zero
Loss = Callable[[Any, Any], Tensor]


def probe(model: nn.Module, batch: Any, loss_fn: Loss | None) -> tuple[dict[str, Any], Signal | None]:
    """Send one batch through the model, in the mode it is in, and say what came out, and how it passed.

    The model computes with copies of its parameters and buffers, and of the batch: a forward pass may change them
    (batch norm its statistics, an embedding with ``max_norm`` its rows). With a loss there is a backward pass as well;
    where a matrix gets no gradient from it, those after one step and two are taken, in which only what is all zeros is
    moved.

    Raises:
        TypeError: If ``loss_fn`` is given and ``batch`` is not a pair, or if it gives several numbers.
    """
    if loss_fn is not None and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise TypeError(
            f"audit_init(batch={type(batch).__name__}): expected a pair (input, target), because loss_fn is given. "
            "Pass both, or leave loss_fn out."
        )
    without = [p for p in describe(model) if p.unmeasurable not in (None, "empty")]
    if without:
        return {"skipped": f"{without[0].name}: {without[0].unmeasurable}"}, None
    with ExitStack() as undo, torch.inference_mode(mode=False), torch.enable_grad(), _not_compiled():
        undo.enter_context(random_streams_kept(model))
        remember_the_rest(model, undo)
        return _Probe(model, batch, loss_fn).run()


class _Probe:
    """A model's copies, and the batch that is sent through."""

    def __init__(self, model: nn.Module, batch: Any, loss_fn: Loss | None) -> None:
        self._model, self._loss_fn, self._batch = model, loss_fn, batch
        self._weights = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in model.named_parameters()}
        self._buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
        named = {clean(name): copy for name, copy in self._weights.items()}
        self._passing = Propagation(describe(model), named, batch if loss_fn is None else batch[0])
        self._told: dict[str, Any] = {}

    def run(self) -> tuple[dict[str, Any], Signal | None]:
        """Let the batch pass, up to three times."""
        copies = {f"model.{name}": copy for name, copy in (self._weights | self._buffers).items()}
        functional_call(_Around(self._model), copies, (self._pass_first,))
        while self._passing.wants_more:
            functional_call(_Around(self._model), copies, (self._pass_again,))
        return self._told, self._passing.read()

    def _pass_first(self) -> None:
        with self._passing.listener:
            output, loss = self._forward()
        self._told = _output_numbers(output)
        del output
        if self._loss_fn is not None:
            self._told["loss"] = self._passing.loss = _number(loss)
        if isinstance(loss, Tensor) and loss.requires_grad:
            self._backward(loss)

    def _pass_again(self) -> None:
        self._backward(self._forward()[1])

    def _forward(self) -> tuple[Any, Any]:
        given = _copied(self._batch)  # a model may write into its input
        if self._loss_fn is None:
            return _called(self._model, given), None
        output = _called(self._model, given[0])
        return output, self._loss_fn(output, given[1])

    def _backward(self, loss: Tensor) -> None:
        trained = {name: w for name, w in self._weights.items() if w.requires_grad}
        try:
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        except RuntimeError as error:  # reentrant checkpointing refuses, and so may functions of the user's
            self._passing.not_measured.add(f"gradients: {error}")
            found = ()
        gradients = {name: g if g is not None else trained[name].grad for name, g in zip(trained, found, strict=False)}
        for weight in trained.values():
            weight.grad = None  # a function of the user's may have put one there itself
        self._passing.add({clean(name): g for name, g in gradients.items()})
        for name, gradient in gradients.items():
            if gradient is not None and not trained[name].any():  # as a first step would
                size = gradient.square().mean().sqrt()
                self._weights[name].data.sub_(torch.where(size > 0, _STEP * gradient / size, gradient))


class _Around(nn.Module):
    """Holds a model, so that it has its copies for as long as ``work`` lasts.

    The backward pass needs them too: under checkpointing it runs the forward pass again.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], None]) -> None:
        """Do the work."""
        work()


def _not_compiled() -> AbstractContextManager[Any]:
    """Let compiled modules run as they were written: nothing is compiled for a pass that is not repeated."""
    stance: Any = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    is_needed = stance is not None and "torch._dynamo" in sys.modules  # it would be imported, which takes seconds
    context: AbstractContextManager[Any] = stance("force_eager") if is_needed else nullcontext()
    return context


def _called(model: nn.Module, inputs: Any) -> Any:
    args, named = _as_arguments(inputs)
    return model(*args, **named)


def _copied(value: Any) -> Any:
    """Return the same containers with copies of the tensors in them."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    if isinstance(value, (dict, UserDict)):
        copied = copy.copy(value)
        for key, item in value.items():
            copied[key] = _copied(item)
        return copied
    return value


def _number(loss: Any) -> float:
    """Return a loss as a number; NaN where it is no tensor.

    Raises:
        TypeError: If it is a tensor of several.
    """
    if not isinstance(loss, Tensor):
        return math.nan
    if loss.numel() != 1:
        raise TypeError(
            f"audit_init(loss_fn=...): expected one number, not a tensor of shape {tuple(loss.shape)}. "
            "Let it take the mean over the batch."
        )
    return float(loss.detach())


def _as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _output_numbers(output: Any) -> dict[str, Any]:
    tensors = [values(t.detach()) for t in _tensors_in(output) if t.numel()]
    sums = {key: part.sum().item() for key, part in stats.measure(["moments"], tensors).items()}
    count, square = sums["moments/count"], sums["moments/sum_sq"]
    rms = math.sqrt(square / count) if count else None
    return {"output_rms": rms, "output_nonfinite": int(sums["moments/nonfinite"])}


def _tensors_in(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for item in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors_in(item)
