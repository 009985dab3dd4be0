"""What is read now and then, in full: one frozen value per reading. NaN means that something was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Watched:
    """A parameter as far as rules need to know it.

    Attributes:
        name: Its name.
        numel: The number of its elements.
        is_matrix: Whether it mixes inputs into outputs: these, in forward order, make the depth profile.
        place: Its place in the forward pass; where places are the same, the order of the parameters counts.
        kind: What it is for, as ``parameters.Kind``.
        shape: Its whole shape.
    """

    name: str
    numel: int
    is_matrix: bool
    place: int = 0
    kind: str = "linear"
    shape: tuple[int, ...] = ()

    @property
    def layer(self) -> str:
        """The name of the module that owns it."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Setup:
    """How a training is set up, read from its objects without measuring anything.

    Attributes:
        optimizers: The names of the optimizers' classes. Several that play against each other have losses that need
            not fall.
        automatic: Lightning steps the optimizers.
        outside: Trainable parameters that no optimizer holds, in forward order.
        frozen: Parameters that ask for no gradient, in forward order.
        half: Parameters kept in half precision (float16, bfloat16), in forward order.
        dropout: The probability of each dropout module, by its name.
        compiled: Whether modules are compiled, so that no forward pass was listened to.
        processes: How many train together.
    """

    optimizers: tuple[str, ...] = ("SGD",)
    automatic: bool = True
    outside: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    half: tuple[str, ...] = ()
    dropout: Mapping[str, float] = field(default_factory=dict)
    compiled: bool = False
    processes: int = 1


@dataclass(frozen=True)
class Snapshot:
    """Full statistics of every parameter at one step.

    Attributes:
        step: The step.
        parameters: The names, length ``P``.
        values: Each statistic by name, shape ``[P]``; NaN where it was not measured.

    Example:
        >>> Snapshot(7, ("fc.weight",), {"grad_norm": np.array([0.5])}).of("fc.weight")
        {'grad_norm': 0.5}
    """

    step: int
    parameters: tuple[str, ...]
    values: Mapping[str, Floats]

    def of(self, parameter: str) -> dict[str, float]:
        """Return every statistic of one parameter.

        Raises:
            ValueError: If there is no such parameter.
        """
        place = self.parameters.index(parameter)
        return {name: float(column[place]) for name, column in self.values.items()}

    def column(self, statistic: str) -> dict[str, float]:
        """Return one statistic of every parameter it was measured for, by name."""
        values = self.values.get(statistic, np.full(len(self.parameters), np.nan))
        return {name: float(v) for name, v in zip(self.parameters, values, strict=True) if not np.isnan(v)}


@dataclass(frozen=True)
class DeadUnits:
    """Units whose gradient was exactly zero in each of the last ``steps`` measured steps, at a flush.

    A unit is an element of a bias (of a layer or of a norm), or where there is none, a row of a weight.

    Attributes:
        step: The last of these steps.
        steps: How many in a row.
        share: For each parameter that has units, the share of them, shape ``[P]``; NaN for the others.
    """

    step: int
    steps: int
    share: Floats


@dataclass(frozen=True)
class Activation:
    """One activation function at work in one forward pass, in one process's batch.

    Attributes:
        function: Its name in torch: ``"relu"``, ``"tanh"``, ``"sigmoid"``, ``"softmax"``...
        after: The parameter whose output it takes; ``""`` if that is not known.
        units: Its units: channels of an image, else the last dimension.
        dead: The share of units that gave zero for every sample (functions that are zero on one side), else NaN.
        saturated: The share of elements at the flat ends: beyond 0.97 of tanh's range, 0.03 from the ends of
            sigmoid's; NaN for functions without two flat ends. Of at most 65,536 elements, taken evenly.
        std: The standard deviation of what goes in, of as many.
        feeds_loss: Whether a loss function takes its output.
    """

    function: str
    after: str
    units: int
    dead: float = float("nan")
    saturated: float = float("nan")
    std: float = float("nan")
    feeds_loss: bool = False


@dataclass(frozen=True)
class LossCall:
    """One call of a loss function of torch, in one process's batch.

    Attributes:
        function: Its name in torch: ``"cross_entropy"``, ``"binary_cross_entropy_with_logits"``, ``"mse_loss"``...
        after: The parameter whose output it takes, through any activation; ``""`` if that is not known.
        fed_by: The activation function whose output it takes, ``""`` for none.
        classes: The number of classes of a classification (1 for a single logit), 0 for others.
        one_unit: Its input came from a softmax over a single unit.
        chance: The loss of the best constant prediction on the targets heard of so far: their entropy in nats for a
            classification, their variance for ``mse_loss``; NaN for other losses and other targets, and where the loss
            is not their plain mean.
        same: The share of the most frequent target of a classification in this batch, else NaN.
        target_mean: The mean of float targets of a regression, else NaN.
        target_std: Their standard deviation.
        target_least: Their smallest; for class indices too.
        target_greatest: Their largest; for class indices too.
    """

    function: str
    after: str = ""
    fed_by: str = ""
    classes: int = 0
    one_unit: bool = False
    chance: float = float("nan")
    same: float = float("nan")
    target_mean: float = float("nan")
    target_std: float = float("nan")
    target_least: float = float("nan")
    target_greatest: float = float("nan")


@dataclass(frozen=True)
class InputScale:
    """The scale of one tensor of numbers that the batch brought, targets left out, in one process's batch.

    Features are the channels of images and the last dimension of anything else.

    Attributes:
        name: Where it was in the batch, such as ``"batch[0]"``.
        features: How many.
        mean: Of all elements.
        std: Of all elements.
        abs_max: The largest magnitude.
        largest_std: The largest standard deviation of a feature.
        spread: The largest over the smallest standard deviation of features that vary.
        offset: The largest distance of a feature's mean from 0, in its standard deviations; features that do not vary
            are left out.
        nonfinite: The number of NaN and Inf.
    """

    name: str
    features: int
    mean: float
    std: float
    abs_max: float
    largest_std: float
    spread: float
    offset: float
    nonfinite: float = 0.0


@dataclass(frozen=True)
class Listened:
    """What one forward pass of the training was heard to do, in one process's batch.

    Attributes:
        step: The step.
        activations: In the order of the forward pass.
        losses: The loss functions called.
        inputs: What the batch brought.
        dropout: The largest probability given to each functional dropout call that trains.
    """

    step: int
    activations: tuple[Activation, ...] = ()
    losses: tuple[LossCall, ...] = ()
    inputs: tuple[InputScale, ...] = ()
    dropout: tuple[float, ...] = ()


@dataclass(frozen=True)
class Validation:
    """A validation in the middle of the training.

    Attributes:
        step: The step after which it came.
        loss: Its mean loss.
        name: The name under which it was logged.
    """

    step: int
    loss: float
    name: str = "val_loss"


@dataclass(frozen=True)
class Replicas:
    """How far the copies of the weights on several processes have drifted apart, at one step.

    Attributes:
        step: The step.
        spread: For each parameter the standard deviation of the norm of its copies over their mean, shape ``[P]``; 0
            where all are the same, Inf where only some are finite, NaN where not all processes measured it.
        odd: The processes whose copy is not that of the majority.
    """

    step: int
    spread: Floats
    odd: tuple[int, ...] = ()
