"""What one batch shows of an untrained model; the model and every random stream are left as they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_weightwatch import stats
from lightning_weightwatch.evidence import Signal
from lightning_weightwatch.parameters import clean, describe, values
from lightning_weightwatch.propagation import Propagation
from lightning_weightwatch.replay import random_streams_kept, remember_all_but_tensors

_STEP = 1e-3  # of an imagined step, relative to a matrix of root mean square 1: it only has to leave zero
Loss = Callable[[Any, Any], Tensor]


def probe(model: nn.Module, batch: Any, loss_fn: Loss | None) -> tuple[dict[str, Any], Signal | None]:
    """Send one batch through the model, in the mode it is in, and say what came out, and how it passed.

    The model computes with copies of its parameters and buffers: a forward pass may change both (batch norm its
    statistics, an embedding with ``max_norm`` its rows). With a loss there is a backward pass as well; where a matrix
    gets no gradient from it, those after one step and two are taken, in which only matrices of zeros are moved.

    Raises:
        TypeError: If ``loss_fn`` is given and ``batch`` is not a pair.
    """
    if loss_fn is not None and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise TypeError(
            f"audit_init(batch={type(batch).__name__}): expected a pair (input, target), because loss_fn is given. "
            "Pass both, or leave loss_fn out."
        )
    without = [p for p in describe(model) if p.unmeasurable not in (None, "empty")]
    if without:
        return {"skipped": f"{without[0].name}: {without[0].unmeasurable}"}, None
    with ExitStack() as undo, torch.enable_grad():
        undo.enter_context(random_streams_kept(model))
        remember_all_but_tensors(model, undo)
        return _Probe(model, batch, loss_fn).run()


class _Probe:
    """A model's copies, and the batch that is sent through."""

    def __init__(self, model: nn.Module, batch: Any, loss_fn: Loss | None) -> None:
        self._model, self._loss_fn = model, loss_fn
        self._inputs: Any = batch if loss_fn is None else batch[0]
        self._target: Any = None if loss_fn is None else batch[1]
        self._weights = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in model.named_parameters()}
        self._buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
        named = {clean(name): copy for name, copy in self._weights.items()}
        self._passing = Propagation(describe(model), named, self._inputs)

    def run(self) -> tuple[dict[str, Any], Signal | None]:
        """Let the batch pass, up to three times."""
        output, loss = self._forward(listen=True)
        told = _output_numbers(output)
        if self._loss_fn is not None:
            told["loss"] = self._passing.loss = float(loss.detach()) if isinstance(loss, Tensor) else math.nan
        if isinstance(loss, Tensor) and loss.requires_grad:
            self._backward(loss)
            del output, loss
            while self._passing.wants_more:
                self._backward(self._forward(listen=False)[1])
        if self._passing.failure is not None:
            raise self._passing.failure
        return told, self._passing.read()

    def _forward(self, *, listen: bool) -> tuple[Any, Any]:
        args, named = _as_arguments(self._inputs)
        with self._passing.listener if listen else ExitStack():
            output = functional_call(self._model, self._weights | self._buffers, args, named)
            return output, self._loss_fn(output, self._target) if self._loss_fn is not None else None

    def _backward(self, loss: Tensor) -> None:
        trained = {name: w for name, w in self._weights.items() if w.requires_grad}
        try:
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        except RuntimeError as error:  # reentrant checkpointing refuses, and so may functions of the user's
            self._passing.not_measured.add(f"gradients: {error}")
            found = ()
        gradients = dict(zip(trained, found, strict=False))
        self._passing.add({clean(name): g for name, g in gradients.items()})
        for name, gradient in gradients.items():
            if gradient is not None and not trained[name].any():  # as a first step would
                size = gradient.square().mean().sqrt()
                self._weights[name].data.sub_(torch.where(size > 0, _STEP * gradient / size, gradient))


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
