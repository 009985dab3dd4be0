"""What one batch shows of an untrained model; the model and every random stream are left as they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_weightwatch import stats
from lightning_weightwatch.parameters import describe, values
from lightning_weightwatch.replay import random_streams_kept


def probe(model: nn.Module, batch: Any, loss_fn: Callable[[Any, Any], Tensor] | None) -> dict[str, Any]:
    """Send one batch through the model, in the mode it is in, and say what came out.

    The model computes with copies of its parameters and buffers: a forward pass may change both (batch norm its
    statistics, an embedding with ``max_norm`` its rows).
    """
    if loss_fn is not None and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise TypeError(
            f"audit_init(batch={type(batch).__name__}): expected a pair (input, target), because loss_fn is given. "
            "Pass both, or leave loss_fn out."
        )
    inputs, target = batch if loss_fn is not None else (batch, None)
    without = [p for p in describe(model) if p.unmeasurable not in (None, "empty")]
    if without:
        return {"skipped": f"{without[0].name}: {without[0].unmeasurable}"}
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    args, named = _as_arguments(inputs)
    with torch.no_grad(), random_streams_kept(model):
        copies = {name: tensor.detach().clone() for name, tensor in held.items()}
        output = functional_call(model, copies, args, named)
        told = _output_numbers(output)
        if loss_fn is not None:
            told["loss"] = float(loss_fn(output, target))
    return told


def _as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _output_numbers(output: Any) -> dict[str, Any]:
    tensors = [values(t) for t in _tensors_in(output) if t.numel()]
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
