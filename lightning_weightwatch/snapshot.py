"""What is measured on few steps and in full: statistics of every gradient, weight and update.

The gradient norm of every step lies in ``recorder``. A snapshot is begun with the gradients of a step and ended when
its optimizer has stepped; between snapshots no memory is held.

An update is what a step did to a weight, measured as the difference, so it is right for every optimizer. It needs a
copy of the weights for the duration of that one step; where there is no room for it, updates are not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_weightwatch import stats
from lightning_weightwatch.evidence import Snapshot
from lightning_weightwatch.parameters import Parameter, values
from lightning_weightwatch.parcel import upload
from lightning_weightwatch.stats import norm
from lightning_weightwatch.structure import fingerprints, twins

_GRADIENT = tuple(name for name in stats.all_statistics() if name != "histogram")
_PORTION = 1 << 20  # elements of the changes that are measured together
_EMPTY: dict[stats.Merge, float] = {"sum": 0.0, "max": -torch.inf, "min": torch.inf}

UNITS = {
    "grad_norm": "l2 norm of the gradient",
    "grad_mean": "mean of its finite elements",
    "grad_std": "their standard deviation",
    "grad_abs_max": "their largest magnitude",
    "grad_min": "the smallest of them",
    "grad_max": "the largest of them",
    "grad_zero_share": "share of elements that are exactly zero, 0 to 1",
    "grad_nonfinite": "number of NaN and Inf",
    "weight_norm": "l2 norm of the weight before the step",
    "update_norm": "l2 norm of what the step changed",
    "update_ratio": "update norm over weight norm",
    "update_zero_share": "share of elements that the step left as they were, 0 to 1",
    "twin_rows": "share of rows (output units) that equal another one in weight and in gradient, 0 to 1",
}


def merges() -> dict[str, stats.Merge]:
    """Return how each partial of a snapshot is merged over processes."""
    gradient = {f"gradient/{key}": merge for key, merge in stats.merges(_GRADIENT).items()}
    flags: dict[str, stats.Merge] = dict.fromkeys(("gradient", "weight", "update"), "sum")
    kept = ("weight/sum_sq", "update/sum_sq", "update/zeros", "update/elements", "twins", "twins/rows")
    return {**gradient, **flags, **dict.fromkeys(kept, "sum")}


class SnapshotMeter:
    """The partials of one step's snapshot, one column per parameter, on the device and local to this process.

    Args:
        step: The step.
        columns: The number of parameters.
        device: Where the tensors are.
        dtype: The type of the partials.
        twins: Also count rows that equal one another.
    """

    def __init__(
        self, step: int, columns: int, device: torch.device, dtype: torch.dtype, *, twins: bool = False
    ) -> None:
        self.step = step
        self._twins: dict[int, Tensor] | None = {} if twins else None
        self.partials = {
            key: torch.full((columns,), _EMPTY[merge], device=device, dtype=dtype) for key, merge in merges().items()
        }
        self._like = torch.zeros(0, dtype=torch.int64, device=device)
        self._before: dict[int, tuple[list[int], list[Tensor]]] = {}
        self._done: set[tuple[str, int]] = set()

    def gradients(
        self, optimizer: int, columns: Sequence[int], gradients: Sequence[Tensor], step: int | None = None
    ) -> None:
        """Measure gradients, unscaled and as plain local tensors; of several steps of an optimizer the first.

        It was begun with a batch; its step is that of the first gradients, if ``step`` tells it.
        """
        if step is not None and not self._done:
            self.step = step
        if self._first("gradient", optimizer) and columns:
            for key, part in stats.measure(_GRADIENT, gradients).items():
                self._put(f"gradient/{key}", columns, part)
            self._mark("gradient", columns)
            if self._twins is not None:
                self._twins |= {i: fingerprints(g) for i, g in zip(columns, gradients, strict=True) if g.dim() > 1}

    def awaits(self, optimizer: int) -> bool:
        """Whether the weights that an optimizer is about to step have not been measured yet."""
        return ("weight", optimizer) not in self._done

    def holds(self, optimizer: int) -> bool:
        """Whether there are copies of the weights that an optimizer steps."""
        return optimizer in self._before

    def weights(self, optimizer: int, columns: Sequence[int], weights: Sequence[Tensor]) -> None:
        """Measure weights that are about to be stepped, and keep a copy of them until they are."""
        if self._first("weight", optimizer) and columns:
            self._put("weight/sum_sq", columns, norm.measure(weights)["sum_sq"])
            self._mark("weight", columns)
            self._count_twins(columns, weights)
            try:
                self._before[optimizer] = (list(columns), [w.clone() for w in weights])
            except torch.cuda.OutOfMemoryError:  # a run that just fits must not end for our copy
                self._before.pop(optimizer, None)

    def updates(self, optimizer: int, weights: Mapping[int, Tensor]) -> None:
        """Measure what a step changed, and drop the copies.

        Args:
            optimizer: Which optimizer stepped.
            weights: The weights as they are now, by column.
        """
        copies = zip(*self._before.pop(optimizer, ([], [])), strict=True)
        kept = {i: old for i, old in copies if i in weights and weights[i].shape == old.shape}
        squares, zeros = [], []
        try:
            for places in _portions(kept):
                changes = [_difference(weights[i], kept[i]) for i in places]
                squares.append(norm.measure(changes)["sum_sq"])
                zeros += [change.eq_(0).sum() for change in changes]  # in their place, twice as fast as to count
        except torch.cuda.OutOfMemoryError:
            return
        if kept:
            columns = list(kept)
            self._put("update/sum_sq", columns, torch.cat(squares))
            self._put("update/zeros", columns, torch.stack(zeros))
            self._put("update/elements", columns, upload([float(old.numel()) for old in kept.values()], squares[0]))
            self._mark("update", columns)

    def _count_twins(self, columns: Sequence[int], weights: Sequence[Tensor]) -> None:
        prints = self._twins or {}
        pairs = [(i, w) for i, w in zip(columns, weights, strict=True) if i in prints and w.dim() > 1 and len(w) > 1]
        known = [(i, w) for i, w in pairs if len(prints[i]) == len(w)]
        if known:
            columns = [i for i, _ in known]
            self._put("twins", columns, torch.stack([twins(fingerprints(w), prints[i]) for i, w in known]))
            self._put("twins/rows", columns, upload([float(len(w)) for _, w in known], self.partials["twins"]))

    def _first(self, what: str, optimizer: int) -> bool:
        """Whether it is the first time; an optimizer may step several times within one step."""
        first = (what, optimizer) not in self._done
        self._done.add((what, optimizer))
        return first

    def _put(self, key: str, columns: Sequence[int], part: Tensor) -> None:
        target = self.partials[key]
        target[self._places(columns)] = part.to(target)

    def _mark(self, what: str, columns: Sequence[int]) -> None:
        self.partials[what].index_fill_(0, self._places(columns), 1.0)

    def _places(self, columns: Sequence[int]) -> Tensor:
        return upload(np.array(columns, dtype=np.int64), self._like)


def read(step: int, partials: Mapping[str, NDArray[np.float64]], parameters: Sequence[Parameter]) -> Snapshot:
    """Turn merged partials into read-outs by the names of ``UNITS``, each of shape ``[P]``.

    NaN means that something was not measured; a norm is Inf where an element is not finite, and so is its ratio.
    A sparse gradient stores no zeros; they are counted from the size of the whole parameter. Without a weight norm, or
    with one of zero, there is no update ratio.
    """
    gradient = {key.removeprefix("gradient/"): part for key, part in partials.items() if key.startswith("gradient/")}
    _add_unstored(gradient, np.array([p.numel for p in parameters], dtype=np.float64))
    found = stats.read(_GRADIENT, {key: torch.from_numpy(part.copy()) for key, part in gradient.items()})
    known = {f"grad_{name}".replace("grad_l2", "grad_norm"): value.numpy() for name, value in found.items()}
    out = {name: np.where(partials["gradient"] > 0, known[name], np.nan) for name in UNITS if name in known}
    for what, norms in (("grad", known["grad_norm"]), ("weight", None), ("update", None)):
        squares = partials[f"{what}/sum_sq"] if norms is None else norms**2
        measured = partials["gradient" if what == "grad" else what] > 0
        out[f"{what}_norm"] = np.where(measured, np.sqrt(np.where(np.isfinite(squares), squares, np.inf)), np.nan)
    positive = np.where(out["weight_norm"] > 0, out["weight_norm"], np.nan)
    with np.errstate(invalid="ignore"):
        out["update_ratio"] = np.where(np.isinf(out["update_norm"]), np.inf, out["update_norm"] / positive)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = partials["update/zeros"] / partials["update/elements"]
        out["twin_rows"] = partials["twins"] / partials["twins/rows"]
    out["update_zero_share"] = np.where(partials["update"] > 0, shares, np.nan)
    names = tuple(p.name for p in parameters)
    return Snapshot(step, names, {name: np.asarray(out[name], dtype=np.float64) for name in UNITS})


def _add_unstored(gradient: dict[str, NDArray[np.float64]], numels: NDArray[np.float64]) -> None:
    """Add the zeros that a sparse gradient does not store."""
    stored = gradient["moments/count"] + gradient["moments/nonfinite"]
    unstored = np.maximum(numels - stored, 0)
    sparse = unstored > 0.5
    gradient["moments/count"] = gradient["moments/count"] + unstored
    gradient["moments/zeros"] = gradient["moments/zeros"] + unstored
    for key, nearer in (("extremes/least", np.minimum), ("extremes/greatest", np.maximum)):
        gradient[key] = np.where(sparse, nearer(gradient[key], 0.0), gradient[key])


def _portions(tensors: Mapping[int, Tensor]) -> Iterator[list[int]]:
    """Yield the keys of small tensors together; not of all, as the changes of half precision would be one more copy."""
    portion, elements = list[int](), 0
    for key, tensor in tensors.items():
        if portion and elements + tensor.numel() > _PORTION:
            yield portion
            portion, elements = [], 0
        portion.append(key)
        elements += tensor.numel()
    if portion:
        yield portion


def _difference(now: Tensor, before: Tensor) -> Tensor:
    """Return the change, in the place of the copy; half precision would round it."""
    before = before if before.element_size() >= 4 else before.float()
    return before.sub_(values(now))
