"""How a training is set up, read from its module and its optimizers without measuring anything."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FunctionType

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_weightwatch.evidence import Setup
from lightning_weightwatch.meters import owned
from lightning_weightwatch.parameters import clean, named_tensors

_HALF = {torch.float16, torch.bfloat16}


def setup_of(pl_module: pl.LightningModule, optimizers: Sequence[Optimizer], processes: int) -> Setup:
    """Return what rules need to know of a training."""
    trained = {id(p) for optimizer in optimizers for p in owned(optimizer)}
    held = named_tensors(pl_module)
    tensors = {name: p for name, p in held.items() if p.requires_grad}
    return Setup(
        optimizers=tuple(type(optimizer).__name__ for optimizer in optimizers),
        automatic=pl_module.automatic_optimization,
        outside=tuple(name for name, p in tensors.items() if id(p) not in trained),
        frozen=tuple(name for name in held if name not in tensors),
        half=tuple(name for name, p in tensors.items() if p.dtype in _HALF),
        dropout=dropout_of(pl_module),
        compiled=is_compiled(pl_module, optimizers),
        processes=processes,
    )


def dropout_of(module: nn.Module) -> dict[str, float]:
    """Return the probability of every dropout that trains, by the name of its module."""
    found = {}
    for name, part in module.named_modules():
        p = _dropped(part)
        if isinstance(p, (int, float)) and p > 0 and part.training:
            found[clean(name + ".")[:-1]] = float(p)
    return found


def _dropped(part: nn.Module) -> object:
    if isinstance(part, nn.RNNBase):
        return part.dropout if part.num_layers > 1 else 0.0  # it comes between layers
    if isinstance(part, nn.MultiheadAttention):
        return part.dropout
    return part.p if isinstance(part, nn.modules.dropout._DropoutNd) else 0.0  # noqa: SLF001 - their only ancestor


def is_compiled(module: nn.Module, optimizers: Sequence[Optimizer] = ()) -> bool:
    """Whether any part of a module was compiled, a function of it or beside its class, or the step of an optimizer."""
    parts = any(
        type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )
    beside = vars(sys.modules.get(type(module).__module__, nn))
    classes = (vars(c) for c in type(module).__mro__ if not issubclass(pl.LightningModule, c))
    owners = (vars(module), *classes, beside, *map(vars, optimizers))
    functions = (thing for owner in owners for thing in list(owner.values()) if isinstance(thing, FunctionType))
    return parts or any("_torchdynamo_orig_callable" in vars(function) for function in functions)


def why_unheard(module: nn.Module, optimizers: Sequence[Optimizer] = ()) -> str:
    """Say why a forward pass would not be the same while a function mode is entered; nothing, if it would.

    What is compiled would be compiled anew, and attention of torch that does not train leaves its fast path.
    """
    fast = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    if any(isinstance(part, fast) and not part.training for part in module.modules()):
        return "attention that does not train would leave its fast path"
    return "it is compiled" if is_compiled(module, optimizers) else ""
