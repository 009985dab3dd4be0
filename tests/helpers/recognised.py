"""What is recognised of every parameter of a model, alternatives and all; a report tells names only."""

from torch import nn

from lightning_weightwatch.audit import measure, readouts
from lightning_weightwatch.parameters import describe, named_tensors
from lightning_weightwatch.places import places
from lightning_weightwatch.theory import Recognition, origin


def recognised(model: nn.Module, *, merged: bool = False) -> dict[str, Recognition]:
    """Recognise as ``audit`` does; ``merged`` leaves behind what no merging of shards brings along."""
    parameters = describe(model)
    measured = measure(parameters, named_tensors(model))
    where, numbers = places(parameters), readouts(parameters, dict(measured) if merged else measured)
    blocks = {
        name: [numbers[key] for i in range(len(place.blocks)) if (key := f"{name}[{i}]") in numbers]
        for name, place in where.items()
    }
    return {p.name: origin(where[p.name], numbers[p.name], blocks[p.name]) for p in parameters}
