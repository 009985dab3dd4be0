"""One step, done again with every module checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_weightwatch.parameters import clean
from lightning_weightwatch.replay._intact import RandomStates, accelerators, remember, swapped
from lightning_weightwatch.replay._numbers import first_sick, number_in, worst
from lightning_weightwatch.replay._watch import NoCollectives, Seen, Turn, Watch, trainable

Phase = Literal["inputs", "weights", "forward", "loss", "backward"]
Named = Sequence[tuple[str, Tensor]]


@dataclass(frozen=True)
class Replayed:
    """What came of doing a step again.

    Attributes:
        reproducible: Whether it went wrong again; ``None`` where that is not known.
        phase: Where it went wrong: in what the step was given (``"inputs"``), in weights and buffers before it, in the
            output of a module (``"forward"``), in the formula of the loss, or on the way back.
        place: The module, the parameter or the part of the batch; ``""`` where there is none.
        detail: The words for it.

    Example:
        >>> print(Replayed(False, detail="the same batch gave finite numbers the second time."))
        Transient: the same batch gave finite numbers the second time.
    """

    reproducible: bool | None
    phase: Phase | None = None
    place: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """One sentence."""
        word = {True: "Reproducible", False: "Transient", None: "Not known whether reproducible"}[self.reproducible]
        return f"{word}: {self.detail}"


def replay(
    run: Callable[[], Tensor | None],
    module: nn.Module,
    *,
    rng: RandomStates,
    batch: Named = (),
    scale: Tensor | None = None,
    alone: bool = True,
) -> Replayed:
    """Do a step again and say where its first number that is not finite appears.

    The model is left as it was: weights, buffers, gradients, modes, attributes of modules, and the random streams. What
    a step changes elsewhere cannot be taken back.

    Args:
        run: Computes the loss; it may call ``backward`` itself instead, once or several times.
        module: The model.
        rng: Where the random streams stood as the step began.
        batch: The tensors that the step is given, with their names.
        scale: The factor by which the loss is multiplied before it is sent back, where there is one.
        alone: Whether this is the only process. Otherwise a step that waits for others is not replayed.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> x = torch.full((3, 2), torch.inf)
        >>> print(replay(lambda: model(x).sum(), model, rng=RandomStates.now(), batch=[("batch", x)]))
        Reproducible: batch holds Inf (6 of 6 numbers).
    """
    try:
        with ExitStack() as undo:
            undo.callback(RandomStates.now(accelerators(module)).restore)
            remember(module, undo)
            watch = Watch()
            undo.callback(watch.remove)
            watch.listen(module)
            undo.enter_context(torch.enable_grad())
            undo.enter_context(nullcontext() if alone else NoCollectives())
            rng.restore()
            return _Replay(module, watch, batch, scale).of(run)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer, and the training goes on
        return unknown(f"the step could not be replayed ({type(error).__name__}: {error}).")


def unknown(detail: str) -> Replayed:
    """Return the answer where nothing could be told."""
    return Replayed(None, detail=detail)


def why_not(module: nn.Module, *, alone: bool = True) -> str | None:
    """Say why a model cannot be replayed, or return ``None``."""
    for part in module.modules():
        if _is_compiled(part):
            return "compiled modules do not tell what passes through them"
        if isinstance(part, nn.SyncBatchNorm) and not alone:
            return "SyncBatchNorm waits for the other processes"
    return None


def looked_at(module: nn.Module, batch: Named, reason: str) -> Replayed:
    """Say what can be seen of a step that is not replayed: its batch and its weights."""
    looks: tuple[tuple[Phase, Any], ...] = (("weights", _parameters(module)), ("inputs", batch))
    for phase, named in looks:
        if found := first_sick(named):
            return Replayed(None, phase, found[0], f"{found[1]}; the step was not replayed: {reason}.")
    return unknown(f"the step was not replayed: {reason}.")


def _is_compiled(module: nn.Module) -> bool:
    forward = getattr(module, "forward", None)
    traced = hasattr(forward, "_torchdynamo_orig_callable") and not getattr(forward, "_torchdynamo_disable", False)
    return traced or getattr(module, "_compiled_call_impl", None) is not None


class _Found(BaseException):
    """Ends a step whose illness is known; not an ``Exception``, which the step might catch."""

    def __init__(self, told: Replayed) -> None:
        super().__init__(str(told))
        self.told = told


class _Replay:
    def __init__(self, module: nn.Module, watch: Watch, batch: Named, scale: Tensor | None) -> None:
        self._module, self._watch, self._batch, self._scale = module, watch, batch, scale
        self._thread = threading.get_ident()
        self._losses = 0

    def of(self, run: Callable[[], Tensor | None]) -> Replayed:
        """Do the step, and say what came of it."""
        original = torch.autograd.backward
        try:
            with swapped(torch.autograd, backward=partial(self._backward, original)):
                loss = run()
            if loss is not None:
                self._examine([loss])
        except _Found as found:
            return found.told
        if not self._losses:
            return unknown("the step could not be replayed (it gave no loss).")
        return Replayed(False, detail="the same batch gave finite numbers the second time.")

    def _backward(
        self, original: Callable[..., None], tensors: Any, grad_tensors: Any = None, *args: Any, **kw: Any
    ) -> None:
        """Stand in for ``torch.autograd.backward``, for this thread only."""
        if threading.get_ident() != self._thread:
            original(tensors, grad_tensors, *args, **kw)
            return
        options = dict(zip(("retain_graph", "create_graph"), args, strict=False)) | kw
        options = {key: options[key] for key in ("retain_graph", "create_graph") if options.get(key)}
        self._examine([tensors] if isinstance(tensors, Tensor) else list(tensors), grad_tensors, **options)

    def _examine(self, losses: list[Tensor], seeds: Any = None, **options: Any) -> None:
        """Look at losses, and send them back."""
        self._losses += 1
        if number := worst(number_in(loss) for loss in losses):
            raise _Found(self._forward(number))
        if self._scale is not None:
            losses = [loss * self._scale for loss in losses]
        seeds = [seeds] if isinstance(seeds, Tensor) else seeds
        parameters = [parameter for _, parameter in trainable(self._module)]
        self._watch.backward(losses, parameters, grad_outputs=seeds, **options)
        if self._watch.turn is not None:
            raise _Found(self._back(self._watch.turn))

    def _forward(self, number: str) -> Replayed:
        """Say where the loss went wrong."""
        seen = self._watch.first()
        if seen is None or seen.side == "input":
            if found := first_sick(_parameters(self._module)):
                return _of_weights(found)
            if found := first_sick(self._batch):
                return Replayed(True, "inputs", found[0], f"{found[1]}.")
        if seen is None:
            words = f"the loss is {number}, though the output of every module is finite: its formula makes it."
            return Replayed(True, "loss", detail=words)
        if found := first_sick(_state(seen.module, seen.name)):
            return _of_weights(found)
        if seen.given and (found := first_sick(self._batch)):
            return Replayed(True, "inputs", found[0], f"{found[1]}; {_of_output(seen)}")
        return Replayed(True, "forward", _place(seen.name, seen.module), _of_output(seen))

    def _back(self, turn: Turn) -> Replayed:
        """Say where the gradient went wrong."""
        if turn.module is None:
            where = f"in the gradient of {turn.name}"
        else:
            label = _label(turn.name, turn.module)
            where = f"made in {label}" if turn.side == "input" else f"made between the output of {label} and the loss"
        words = f"the loss is finite; the first {turn.number} of its gradient is {where}, backward"
        if self._scale is not None:
            words += f", with the loss scaled by {float(self._scale):g}"
        if found := first_sick(self._batch):
            words += f"; {found[1]}"
        place = turn.name if turn.module is None else _place(turn.name, turn.module)
        return Replayed(True, "backward", place, f"{words}.")


def _of_weights(found: tuple[str, str]) -> Replayed:
    return Replayed(True, "weights", found[0], f"{found[1]} already as the step begins.")


def _of_output(seen: Seen) -> str:
    label = _label(seen.name, seen.module)
    if seen.side == "input":
        return f"the first {seen.number} is in the inputs of {label}, forward; it is made before them, between modules."
    inputs = f"its inputs hold {seen.given}" if seen.given else "its inputs are finite"
    inputs += ", as masks do" if seen.given == "-Inf" else ""
    return f"the first {seen.number} is in the output of {label}, forward; {inputs}."


def _place(name: str, module: nn.Module) -> str:
    return name or type(module).__name__


def _label(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"{name} ({kind})" if name else f"{kind} itself"


def _parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(clean(name), tensor) for name, tensor in module.named_parameters()]


def _state(module: nn.Module, prefix: str) -> list[tuple[str, Tensor]]:
    """Return what a module computes with.

    Buffers count only in evaluation: a training step that went wrong has written into them since. And only with NaN: a
    mask may hold Inf.
    """
    lead = f"{prefix}." if prefix else ""
    buffers = () if module.training else module.named_buffers()
    sick = ((name, tensor) for name, tensor in buffers if number_in(tensor) == "NaN")
    return [(clean(lead + name), tensor) for name, tensor in chain(module.named_parameters(), sick)]
