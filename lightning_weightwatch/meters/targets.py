"""What is to be learnt: the spread of targets, and the loss of a prediction that knows nothing but their frequencies.

Counts are added up over all passes that were listened to, as a single small batch has too few of each class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_weightwatch.stats import precise

_NOT_PLAIN = ("weight", "pos_weight", "size_average", "reduce")  # options, the last two of old, that change a mean
_Key = tuple[str, int, str]


class Targets:
    """Adds up targets, on the device.

    Example:
        >>> targets = Targets()
        >>> known, numbers = targets.of("cross_entropy", torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]), {})
        >>> known["classes"], round(numbers["chance"].item(), 4)
        (2, 0.6931)
    """

    def __init__(self) -> None:
        self._counts: dict[_Key, Tensor] = {}

    def of(
        self, function: str, output: Tensor, target: Any, options: Mapping[str, Any], place: str = ""
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is known of a call at once, and its numbers on the device.

        Args:
            function: The loss function.
            output: What the network says.
            target: What is to be learnt; of anything but a plain tensor nothing is known.
            options: The other arguments of the call.
            place: Where in the network the output comes from: losses of several heads are counted apart.
        """
        if type(target) is not Tensor or target.numel() == 0:
            return {}, {}
        if function in ("cross_entropy", "nll_loss"):
            classes = int(output.shape[1] if output.dim() > 1 else output.shape[0])
            key = (function, classes, place)
            return {"classes": classes}, {} if target.is_floating_point() else self._classes(key, target, options)
        if function.startswith("binary"):
            numbers = self._binary((function, 2, place), target.detach().float())
            apart = () if output.numel() == output.shape[:1].numel() else ("chance", "same")  # one for each label
            return {"classes": 1}, _fitting(numbers, options, apart)
        numbers = self._regression((function, 0, place), target.detach().float())
        several = function != "mse_loss" or (target.dim() > 1 and target.numel() != target.shape[0])
        return {}, _fitting(numbers, options, ("chance",) if several else ())

    def _classes(self, key: _Key, target: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
        classes, flat = key[1], target.detach().reshape(-1).long()
        heeded = flat != options.get("ignore_index", -100)
        valid = heeded & (flat >= 0) & (flat < classes)  # others will raise in the loss
        here = torch.zeros(classes + 1, dtype=torch.float32, device=flat.device)  # the default may be half precision
        here.scatter_add_(
            0, torch.where(valid, flat, torch.full_like(flat, classes)), torch.ones_like(flat, dtype=torch.float32)
        )
        here, inf = here[:classes], torch.full_like(flat, torch.inf, dtype=torch.float32)
        numbers = {
            "same": here.amax() / here.sum(),
            "target_least": _finite(torch.where(heeded, flat.float(), inf).amin()),
            "target_greatest": _finite(torch.where(heeded, flat.float(), -inf).amax()),
            "chance": _entropy(self._added(key, here)),
        }
        return _fitting(numbers, options, ())

    def _binary(self, key: _Key, aims: Tensor) -> dict[str, Tensor]:
        here = torch.stack([(1 - aims).sum(), aims.sum()])
        are_shares = ((aims >= 0) & (aims <= 1)).all()
        nothing = torch.full_like(here, torch.nan)
        return {
            "target_least": aims.amin(),
            "target_greatest": aims.amax(),
            "chance": _entropy(self._added(key, torch.where(are_shares, here, torch.zeros_like(here)))),
            "same": (torch.where(are_shares, here, nothing) / here.sum()).amax(),
        }

    def _regression(self, key: _Key, aims: Tensor) -> dict[str, Tensor]:
        wide = aims.to(precise(aims))
        here = torch.stack([torch.ones_like(wide).sum(), wide.sum(), wide.square().sum()])
        here = torch.where(aims.isfinite().all(), here, torch.zeros_like(here))  # one NaN would stay for ever
        count, total, squares = self._added(key, here)
        return {
            "target_mean": aims.mean(),
            "target_std": aims.std(correction=0),
            "target_least": aims.amin(),
            "target_greatest": aims.amax(),
            "chance": (squares / count - (total / count).square()).clamp(min=0),
        }

    def _added(self, key: _Key, here: Tensor) -> Tensor:
        before = self._counts.get(key)
        self._counts[key] = here if before is None or before.device != here.device else before + here
        return self._counts[key]


def _entropy(counts: Tensor) -> Tensor:
    """Return the entropy of frequencies, in nats; NaN where nothing was counted."""
    share = counts / counts.sum()
    return -torch.where(share == 0, torch.zeros_like(share), share * share.clamp(min=1e-30).log()).sum()


def _finite(number: Tensor) -> Tensor:
    return torch.where(number.isfinite(), number, torch.full_like(number, torch.nan))


def _fitting(numbers: dict[str, Tensor], options: Mapping[str, Any], without: tuple[str, ...]) -> dict[str, Tensor]:
    """Leave out what the call does not give: where its loss is not the plain mean, there is no loss by chance."""
    if any(options.get(name) is not None for name in _NOT_PLAIN) or options.get("label_smoothing"):
        without = (*without, "chance")
    if options.get("reduction", "mean") != "mean":
        without = (*without, "chance")
    return {name: number for name, number in numbers.items() if name not in without}
