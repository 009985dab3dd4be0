"""Statistics of named tensors that users gather themselves, outside any callback: a ``torchmetrics.Metric``.

torchmetrics brings the processes together, and its cost is per state. So there is one state, a matrix: a row per name,
and in its columns a mark of what the row is about, how many whole tensors were measured, and every partial.

What is measured lies in ``stats``; what a process holds of a tensor, in ``parameters``. Nothing here knows a Trainer,
and nothing else in the package imports this, since it brings in torchmetrics.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_weightwatch import stats
from lightning_weightwatch._arguments import refuse
from lightning_weightwatch.parameters import unmeasurable, values

_Columns = tuple[tuple[stats.Merge, int], ...]  # how neighbouring columns are merged, and how many they are
_MERGED: dict[stats.Merge, Callable[..., Tensor]] = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}
_ALIKE = "expected the same names and statistics on every process and in every state. Make all with the same arguments."


class TensorStatistics(Metric):
    """Accumulates statistics of named tensors (gradients, weights, activations) over updates and processes.

    Each read-out tells of one tensor, averaged over all that were given under its name. Mean, standard deviation, root
    mean square and the share of zeros are over all their elements, minimum and maximum over all that are finite,
    ``l2`` is the root mean square of their norms, and ``nonfinite`` the number of NaN and Inf in each, on average. So
    one update gives what the tensor itself would give, and a longer epoch gives no larger numbers.

    For the same reason nothing has to be said about how processes share the work. Copies (weights, gradients after DDP
    reduced them) change no average, different data (activations, gradients before that) are averaged, and a DTensor
    counts by the local share of its elements, so that the shards of FSDP2 and of tensor parallelism make up wholes.
    The flat slices of FSDP1 do not know their whole: ``l2`` and ``nonfinite`` are then those of an average slice.
    ``sync`` and ``compute`` take one barrier and two all-gathers, however many names and statistics there are.

    What was never measured is NaN, never zero: a name that no update gave, an empty tensor, one without values (lazy,
    meta), whole numbers, a partial sum; ``unmeasured`` says why. NaN and Inf are counted and left out, except in
    ``l2``, which one of them makes non-finite.

    In a LightningModule, say ``self.gradients.update({name: p.grad for name, p in self.named_parameters()})`` in
    ``on_before_optimizer_step``, and ``self.log_dict(self.gradients.compute())`` with ``self.gradients.reset()`` in
    ``on_train_epoch_end``. Log what ``compute`` returns, not the metric itself, which ``self.log`` takes for a single
    number; without ``sync_dist``, whatever Lightning recommends: the numbers are the same on every process already, and
    it would cost a collective for each. ``MetricCollection([metric], prefix="gradient_")`` tells kinds apart.

    The state stays float64 whatever the module is cast to, because bfloat16 counts to 256 and no further. On Apple's
    MPS, which has no float64, it is float32 and counts exactly to 16.7 million elements per name.

    Args:
        names: The names that updates may give; the same, in the same order, on every process.
        statistics: Names of files in ``stats``. None takes all that are one number per tensor, which leaves out
            ``"histogram"`` with its 32 kB per name.
        kwargs: What every ``torchmetrics.Metric`` takes, such as ``sync_on_compute`` and ``process_group``.

    Attributes:
        unmeasured: Why a tensor could not be measured, by name, as of the last time that name was given.
        packed: The state, shape ``[names, columns]``.

    Raises:
        TypeError: If names are not text.
        ValueError: If there are no names or one is there twice, or if a statistic is unknown.

    Example:
        >>> gradients = TensorStatistics(["layer.weight", "layer.bias"])
        >>> gradients.update({"layer.weight": torch.tensor([[3.0, 4.0]]), "layer.bias": None})
        >>> gradients.update({"layer.weight": torch.tensor([[0.0, 1.0]])})
        >>> found = gradients.compute()
        >>> found["mean/layer.weight"].item(), found["max/layer.weight"].item(), found["zero_share/layer.weight"].item()
        (2.0, 4.0, 0.25)
        >>> round(found["l2/layer.weight"].item(), 3), found["l2/layer.bias"].item()  # the norms were 5 and 1
        (3.606, nan)
    """

    full_state_update = False  # a state and an update merge, so ``forward`` measures once
    is_differentiable = False
    packed: Tensor

    def __init__(self, names: Iterable[str], statistics: Iterable[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self._device.type == "meta":  # a network laid out there is filled later; a state has its values from now on
            self._device = torch.device("cpu")
        self.names = _texts("names", names, "Use a list, or dict(model.named_parameters()).")
        self.statistics = _one_number_each() if statistics is None else _known(statistics)
        self.unmeasured: dict[str, str] = {}
        self._row = {name: row for row, name in enumerate(self.names)}
        first = [[_mark(self.statistics, name), 0.0] for name in self.names]
        with self._device:  # also where another is the default now
            nothing = torch.empty(0)
            blank = stats.measure(self.statistics, [nothing])  # what any measured row replaces when they are merged
            start = torch.tensor(first, dtype=stats.precise(nothing))
        self._shapes = {key: part.shape[1:] for key, part in blank.items()}
        merges = stats.merges(self.statistics)
        widths = [(merges[key], shape.numel()) for key, shape in self._shapes.items()]
        self._columns: _Columns = (("max", 1), ("sum", 1), *widths)
        others = (part.reshape(1, -1).to(start).expand(len(first), -1) for part in blank.values())
        self.add_state("packed", torch.cat([start, *others], 1), partial(_merge_alike, columns=self._columns))

    def update(self, tensors: Mapping[str, Tensor | None]) -> None:
        """Measure tensors and add them to what was measured before; nothing is kept of them.

        Args:
            tensors: By name, of any shape, type and layout. A name that is missing or has None (a parameter without
                gradient) is passed over. On another device than the metric they are measured where they are.

        Raises:
            TypeError: If it is no mapping or holds anything but tensors and None.
            ValueError: If it holds a name that the metric was not made for.
        """
        _check_given(tensors, self._row)
        found = self._measurable(tensors)
        if not found:
            return
        rows = _sent([self._row[name] for name in found], torch.int64, self.packed.device)
        shares = _sent([[_share(tensor)] for tensor in found.values()], self.packed.dtype, self.packed.device)
        partials = stats.measure(self.statistics, [values(tensor) for tensor in found.values()])
        before = self.packed[rows]
        parts = (partials[key].reshape(len(found), -1).to(before) for key in self._shapes)
        measured = torch.cat([before[:, :1], shares, *parts], dim=1)
        self.packed = self.packed.index_copy(0, rows, _merge(torch.stack([before, measured]), self._columns))

    def compute(self) -> dict[str, Tensor]:
        """Return each read-out of each name, a scalar, as ``"read-out/name"``; in the units of the statistics."""
        _, wholes, *pieces = self.packed.split([width for _, width in self._columns], dim=1)
        partials = {
            key: (piece / wholes if merge == "sum" else piece).reshape(-1, *shape)  # 0 / 0 is NaN: never measured
            for (key, shape), (merge, _), piece in zip(self._shapes.items(), self._columns[2:], pieces, strict=True)
        }
        return {
            f"{read_out}/{name}": number
            for read_out, numbers in stats.read(self.statistics, partials).items()
            for name, number in zip(self.names, numbers.unbind(), strict=True)
        }

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another accumulator of the same names and statistics holds, such as that of another run."""
        other = incoming_state if isinstance(incoming_state, TensorStatistics) else self
        if (other.names, other.statistics) != (self.names, self.statistics):
            raise ValueError(f"TensorStatistics.merge_state(incoming_state=...): {_ALIKE}")
        super().merge_state(incoming_state)
        self._computed = None  # torchmetrics would go on to return what was computed before

    def _measurable(self, tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Return those that can be measured, and note why others cannot."""
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        reasons = {name: unmeasurable(tensor) for name, tensor in given.items()}
        earlier = {name: reason for name, reason in self.unmeasured.items() if name not in given}
        self.unmeasured = earlier | {name: reason for name, reason in reasons.items() if reason is not None}
        return {name: tensor for name, tensor in given.items() if reasons[name] is None}

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> nn.Module:
        """Follow the module to another device, but not to another type."""

        def moved(tensor: Tensor) -> Tensor:
            there = fn(torch.empty(0, device=tensor.device))
            return tensor if there.is_meta else tensor.to(there.device, stats.precise(there))

        return super()._apply(moved, exclude_state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take a saved state if it is about the same; ``rest`` ends with the list that errors are added to."""
        mine = self.packed
        super()._load_from_state_dict(state_dict, prefix, *rest)
        loaded = self.packed.to(mine)
        if loaded.shape == mine.shape and torch.equal(loaded[:, 0], mine[:, 0]):
            self.packed, self._computed = loaded, None
        else:
            self.packed = mine
            rest[-1].append(f"TensorStatistics.load_state_dict({prefix}packed=...): {_ALIKE}")


def _merge(states: Tensor, columns: _Columns) -> Tensor:
    """Merge states, shape ``[n, names, columns]``, into one."""
    pieces = states.split([width for _, width in columns], dim=-1)
    return torch.cat([_MERGED[way](piece, dim=0) for (way, _), piece in zip(columns, pieces, strict=True)], dim=-1)


def _merge_alike(states: Tensor, columns: _Columns) -> Tensor:
    """Merge the states of several processes or accumulators, if their rows are about the same."""
    if (states[..., 0] != states[0, ..., 0]).any():
        raise ValueError(f"TensorStatistics.sync(): {_ALIKE}")
    return _merge(states, columns)


def _mark(statistics: tuple[str, ...], name: str) -> int:
    """Return a number of 24 bits, which float32 holds exactly, that tells rows about different things apart."""
    return zlib.crc32(repr((statistics, name)).encode()) >> 8


def _share(tensor: Tensor) -> float:
    """Return the share of a tensor's elements that this process holds."""
    return tensor.to_local().numel() / tensor.numel() if hasattr(tensor, "to_local") else 1.0


def _sent(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bring numbers to a device without waiting for it."""
    pinned = device.type == "cuda"
    return torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=pinned).to(device, non_blocking=True)


def _one_number_each() -> tuple[str, ...]:
    """Return the statistics whose partials are one number per tensor."""
    known = stats.all_statistics().items()
    return tuple(name for name, one in known if all(part.dim() == 1 for part in one.measure([]).values()))


def _texts(argument: str, value: Any, remedy: str) -> tuple[str, ...]:
    """Return texts of which none is there twice; refuse anything else."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    texts = tuple(value) if several else ()
    typed = several and all(isinstance(text, str) for text in texts)
    if not typed or not texts or len(set(texts)) < len(texts):
        refuse("TensorStatistics", argument, value, "at least one name, each once", remedy, wrong_type=not typed)
    return texts


def _known(statistics: Iterable[str]) -> tuple[str, ...]:
    remedy = "Use None for all that are one number per tensor."
    listed, known = _texts("statistics", statistics, remedy), stats.all_statistics()
    if not known.keys() >= set(listed):
        refuse("TensorStatistics", "statistics", statistics, f"names among {', '.join(known)}", remedy)
    return listed


def _check_given(tensors: Any, known: Mapping[str, int]) -> None:
    who, remedy = "TensorStatistics.update", "Give {name: p.grad for name, p in model.named_parameters()}."
    if not isinstance(tensors, Mapping):
        refuse(who, "tensors", type(tensors), "a mapping of names to tensors", remedy, wrong_type=True)
    strangers = [name for name in tensors if name not in known]
    if strangers:
        near = difflib.get_close_matches(str(strangers[0]), known, n=3, cutoff=0.3)
        remedy = f"Make it with all names, or use one of them, such as {', '.join(near or [*known][:3])}."
        refuse(who, "tensors", strangers, "names it was made for", remedy)
    others = {name: type(tensor) for name, tensor in tensors.items() if not isinstance(tensor, Tensor | None)}
    if others:
        refuse(who, "tensors", others, "tensors or None", remedy, wrong_type=True)
