"""Where the first number that is not finite appears in one forward and one backward pass.

Not every infinity is an illness: a mask of -Inf is made to be swallowed by a softmax. So what a module took in and did
not give out again is forgotten, and a mask is only suspected where nothing else is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_weightwatch.parameters import clean
from lightning_weightwatch.replay._numbers import Number, number_in, tensors_in, worst

_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional")  # where torch keeps what processes do together


@dataclass(eq=False)
class Seen:
    """Numbers that are not finite, at a module.

    Attributes:
        name: The module's name.
        module: The module.
        side: Whether they were given to it, from outside all modules, or came out of it.
        number: The worst of them.
        given: The worst number among its inputs.
        tensors: Where they are, and where they have got to since.
        swallowed: Whether a module took them in and gave finite numbers.
    """

    name: str
    module: nn.Module
    side: Literal["input", "output"]
    number: Number
    given: Number | None = None
    tensors: list[Tensor] = field(default_factory=list)
    swallowed: bool = False

    @property
    def is_like_a_mask(self) -> bool:
        """Whether it may be meant: -Inf, and made by no module."""
        return self.side == "input" and self.number == "-Inf"

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of these tensors is among its own."""
        return any(tensor is mine for tensor in tensors for mine in self.tensors)


@dataclass
class Turn:
    """The first place of a backward pass whose gradient is not finite.

    Attributes:
        name: The name of the module or parameter.
        module: The module, unless it is a parameter.
        side: The gradient of its ``"input"`` was made in the module, that of its ``"output"`` came to it.
        number: The worst number.
        where: Tells tensors apart.
    """

    name: str
    module: nn.Module | None
    side: Literal["input", "output", "parameter"]
    number: Number
    where: tuple[int, int]


@dataclass
class _Call:
    module: nn.Module
    begin: int
    sick: list[Tensor]
    given: Number | None


class Watch:
    """Checks every module of a model until it is removed."""

    def __init__(self) -> None:
        self.turn: Turn | None = None
        self._seen: list[Seen] = []
        self._calls: list[_Call] = []
        self._handles: list[Any] = []
        self._forward = True

    def listen(self, model: nn.Module) -> None:
        """Hook every module, and every parameter that asks for a gradient."""
        for name, module in model.named_modules():
            if _is_metric(module):  # a metric may be NaN, and none of a loss goes through it
                continue
            short = clean(f"{name}.")[:-1]
            before, after = partial(self._enter, short), partial(self._leave, short)
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(after, with_kwargs=True))
        for name, parameter in trainable(model):
            self._hook(parameter, clean(name), None, "parameter")

    def remove(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def backward(self, losses: Sequence[Tensor], parameters: Sequence[Tensor], **options: Any) -> None:
        """Send gradients back, and add them to ``parameters``; modules that compute anew for it are not checked."""
        self._forward = False
        # Not ``backward``: what others have hooked to the adding up of gradients, such as DDP, must not see these.
        gradients = torch.autograd.grad(losses, parameters, allow_unused=True, **options)
        self._forward = True
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def first(self) -> Seen | None:
        """Return where the forward pass went wrong, as far as modules can tell."""
        left = [seen for seen in self._seen if not seen.swallowed]
        causes = [seen for seen in left if not seen.is_like_a_mask] or left
        if causes and causes[0].number == "-Inf":  # meant perhaps, if another module makes NaN of finite numbers
            born = (seen for seen in causes if seen.side == "output" and seen.number == "NaN" and seen.given is None)
            return next(born, causes[0])
        return causes[0] if causes else None

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._forward:
            return
        given = [(t, number_in(t)) for _, t in tensors_in([args, kwargs])]
        sick = [(t, number) for t, number in given if number]
        self._calls.append(_Call(module, len(self._seen), [t for t, _ in sick], worst(number for _, number in sick)))
        new = [(t, number) for t, number in sick if not any(seen.holds([t]) for seen in self._live())]
        if number := worst(number for _, number in new):
            self._seen.append(Seen(name, module, "input", number, tensors=[t for t, _ in new]))
        for tensor, _ in given:
            self._hook(tensor, name, module, "input")

    def _leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._forward:
            return
        call = self._calls.pop()
        while call.module is not module:  # one that raised, and was not let through
            call = self._calls.pop()
        made = [(t, number_in(t)) for _, t in tensors_in(output)]
        sick = [t for t, number in made if number]
        if number := worst(number for _, number in made):
            self._blame(name, call, number, sick)
        elif any(t.is_floating_point() for t, _ in made):
            for seen in self._seen:
                seen.swallowed |= seen in self._seen[call.begin :] or seen.holds(call.sick)
        for tensor, _ in made:
            self._hook(tensor, name, module, "output")

    def _blame(self, name: str, call: _Call, number: Number, sick: list[Tensor]) -> None:
        """Note that a module gave numbers that are not finite, unless they only pass through it."""
        inside = self._seen[call.begin :]
        causes = [s for s in self._live() if not s.is_like_a_mask and (s in inside or s.holds(call.sick))]
        if causes:
            causes[0].tensors.extend(sick)
        else:
            self._seen.append(Seen(name, call.module, "output", number, given=call.given, tensors=sick))

    def _live(self) -> list[Seen]:
        return [seen for seen in self._seen if not seen.swallowed]

    def _hook(
        self, tensor: Tensor, name: str, module: nn.Module | None, side: Literal["input", "output", "parameter"]
    ) -> None:
        if tensor.requires_grad:
            where = (id(tensor), tensor._version)  # noqa: SLF001 - an operation in place makes another tensor of it
            self._handles.append(tensor.register_hook(partial(self._pass, where, name, module, side)))

    def _pass(
        self,
        where: tuple[int, int],
        name: str,
        module: nn.Module | None,
        side: Literal["input", "output", "parameter"],
        gradient: Tensor,
    ) -> None:
        """Note the first gradient that is not finite; of all modules that take its tensor in, the innermost."""
        if self.turn is None:
            if number := number_in(gradient):
                self.turn = Turn(name, module, side, number, where)
        elif side == "input" and self.turn.where == where:
            self.turn.name, self.turn.module, self.turn.side = name, module, side


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that a gradient can be sent back to."""
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad and not nn.parameter.is_lazy(p)]


class NoCollectives(TorchDispatchMode):
    """Refuses what several processes would have to do together: the others do not take part."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # parts of torch carry no annotations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let every other operation through."""
        if func.namespace in _COLLECTIVES:
            raise RuntimeError("the step waits for other processes")
        return func(*args, **(kwargs or {}))


def _is_metric(module: nn.Module) -> bool:
    return any(kind.__module__.partition(".")[0] == "torchmetrics" for kind in type(module).__mro__)
