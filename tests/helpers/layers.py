"""What passes a layer, seen by hooks on modules in a loop of plain torch, and the numbers of it in plain NumPy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_weightwatch.evidence import Layer, Signal
from lightning_weightwatch.parameters import describe, named_tensors
from lightning_weightwatch.propagation import Propagation

Array = NDArray[np.float64]
NAN = float("nan")


@dataclass
class Call:
    """What went into a layer, what it gave, and what came back to that; ``None`` where nothing did."""

    incoming: Array | None
    output: Array
    gradient: Array | None = None


def array(tensor: Tensor) -> Array:
    """Return the numbers of a tensor, as they are now."""
    return np.array(tensor.detach().double().numpy())


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def watched(model: nn.Module, run: Callable[[nn.Module], Tensor], names: Sequence[str]) -> dict[str, list[Call]]:
    """Run a model with hooks on the modules of these names, forwards and backwards; its gradients are taken off."""
    hooks = []
    calls: dict[str, list[Call]] = {name: [] for name in names}
    back: dict[str, list[Array]] = {name: [] for name in names}
    for name in names:

        def forwards(_: nn.Module, args: Any, out: Any, name: str = name) -> None:
            incoming = array(args[0]) if args and args[0].is_floating_point() else None
            calls[name].append(Call(incoming, array(_first(out))))

        def backwards(_: nn.Module, __: Any, gradients: Any, name: str = name) -> None:
            back[name].append(array(_first(gradients)))

        part = model.get_submodule(name)
        hooks += [part.register_forward_hook(forwards), part.register_full_backward_hook(backwards)]
    run(model).backward()
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    for name, own in calls.items():
        for call, gradient in zip(
            own, reversed(back[name]), strict=False
        ):  # the last call is the first on the way back
            call.gradient = gradient
    return calls


def heard(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> Signal:
    """Run a model once more, listened to; its gradients are taken off again."""
    passing = Propagation(describe(model), named_tensors(model), None)
    with passing.listener:
        loss = run(model)
    loss.backward()
    passing.add({name: p.grad for name, p in named_tensors(model).items()})
    model.zero_grad()
    assert passing.failure is None
    return passing.read()


def rows(values: Array, unit: int) -> Array:
    """Return samples by units."""
    return np.moveaxis(values, unit, -1).reshape(-1, values.shape[unit])


def _spread(values: Array, unit: int) -> float:
    own = rows(values, unit)
    return float(np.sqrt(own.var(axis=0).mean())) if len(own) > 1 else NAN


def _copies(values: Array, unit: int) -> float:
    columns = rows(values, unit).T
    if len(columns) < 2 or columns.shape[1] < 2:
        return NAN
    same = [
        any(i != k and np.allclose(one, other, rtol=1e-6, atol=0) for k, other in enumerate(columns))
        for i, one in enumerate(columns)
        if one.any()
    ]
    return sum(same) / len(columns)


def truth(calls: Sequence[Call], unit: int = -1, sample: int | None = 0, incoming: int = -1) -> dict[str, float]:
    """Return the numbers of a ``Layer``.

    Args:
        calls: Its calls.
        unit: The dimension of the units of its output.
        sample: That of its samples.
        incoming: That of the units of what went in.
    """
    sizes = np.array([call.output.size for call in calls], dtype=np.float64)

    def together(numbers: Sequence[float]) -> float:
        return float(np.average(numbers, weights=sizes))

    came = [NAN if call.incoming is None else _spread(call.incoming, incoming) for call in calls]
    felt = []
    for call in calls:
        if call.gradient is not None:
            dims = call.gradient.ndim
            kept = {unit % dims} | (set() if sample is None else {sample % dims})
            felt.append(call.gradient.sum(axis=tuple(d for d in range(dims) if d not in kept)).ravel())
    return {
        "units": calls[0].output.shape[unit],
        "samples": sum(call.output.size // call.output.shape[unit] for call in calls),
        "mean": together([call.output.mean() for call in calls]),
        "rms": together([(call.output**2).mean() for call in calls]) ** 0.5,
        "spread": together([_spread(call.output, unit) ** 2 for call in calls]) ** 0.5,
        "came_in": together([one**2 for one in came]) ** 0.5,
        "nonfinite": float(sum((~np.isfinite(call.output)).sum() for call in calls)),
        "copies": min(_copies(call.output, unit) for call in calls),
        "gradient": float(np.sqrt((np.concatenate(felt) ** 2).mean())) if felt else NAN,
    }


def same(layer: Layer, wanted: dict[str, float], rel: float = 1e-5) -> None:
    """Assert that a layer has these numbers."""
    found = {name: getattr(layer, name) for name in wanted}
    scale = max(wanted["rms"], 1e-300) if np.isfinite(wanted["rms"]) else 1.0  # a mean may cancel to nothing
    for name, number in wanted.items():
        np.testing.assert_allclose(
            found[name], number, rtol=rel, atol=rel * scale * (name == "mean"), err_msg=f"{name} of {layer.name}"
        )
