"""The few facts asked of a Trainer. Every reach into Lightning's private parts is in this file.

Classes of the Trainer's parts are recognised by name: ``lightning.pytorch`` and ``pytorch_lightning`` are separate
trees whose classes are not instances of one another, and a callback of one runs in the Trainer of the other.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from tqdm import tqdm

from lightning_weightwatch.sinks import Sinks, log, open_sinks

StrategyKind = Literal["single", "replicated", "sharded", "hidden"]

_HIDDEN = {"DeepSpeedStrategy"}
_SHARDED = {"FSDPStrategy", "ModelParallelStrategy"}


def log_step(trainer: Any) -> int:
    """Return the step that ``self.log`` draws at, so that our curves align with the user's.

    It counts batches (or accumulation windows), while ``global_step`` counts optimizer steps and runs twice as fast
    with two optimizers.
    """
    stepped = getattr(getattr(trainer.fit_loop, "epoch_loop", None), "_batches_that_stepped", None)
    return int(trainer.global_step if stepped is None else stepped)


def strategy_kind(trainer: Any) -> StrategyKind:
    """Tell how parameters and gradients lie on the processes.

    ``single``: one process. ``replicated``: every process holds the same (DDP and its kin). ``sharded``: each holds a
    part. ``hidden``: gradients are not where torch keeps them (DeepSpeed).
    """
    names = {c.__name__ for c in type(trainer.strategy).__mro__}
    if names & _HIDDEN:
        return "hidden"
    if names & _SHARDED:
        return "sharded"
    return "single" if trainer.world_size == 1 else "replicated"


def makes_flat_shards(trainer: Any) -> bool:
    """Whether it is FSDP of the first generation, which turns parameters into slices of flat tensors."""
    return any(c.__name__ == "FSDPStrategy" for c in type(trainer.strategy).__mro__)


def evidence_folder(trainer: Any) -> Path | None:
    """Return ``<log_dir>/weightwatch``, or ``None`` in a ``fast_dev_run`` and where the logs lie on no local disk.

    A collective: all ranks must ask.
    """
    folder = trainer.log_dir
    if folder is None or trainer.fast_dev_run:
        return None
    if "://" in str(folder):
        log.info("No files are written under %s, which is no local folder; loggers and console get everything.", folder)
        return None
    return Path(folder) / "weightwatch"


def sinks_of(trainer: Any) -> Sinks:
    """Open a sink for each logger on the process that logs, and none elsewhere."""
    return open_sinks(trainer.loggers) if trainer.is_global_zero else Sinks()


def tell(trainer: Any, text: str) -> None:
    """Print for the person at the console, above any progress bar rather than through it, on one process only.

    ``TQDMProgressBar.print`` drops the text while no bar is shown, so tqdm itself is asked; rich's bar redirects what
    is printed. It never raises: one process that broke down over its console would leave the others waiting.
    """
    if not trainer.is_global_zero:
        return
    try:
        tqdm.write(_printable(text))
    except Exception as error:  # noqa: BLE001 - a console may be closed, or anything that somebody put in its place
        log.warning("The console could not be written to (%s: %s): %s", type(error).__name__, error, text)


def ends_window(trainer: Any) -> bool:
    """Whether the batch that ends is the last of its accumulation window; ``log_step`` moves on after it."""
    should_accumulate = getattr(trainer.fit_loop, "_should_accumulate", None)
    return should_accumulate is None or not should_accumulate()


def clips(trainer: Any, pl_module: Any) -> bool:
    """Whether gradients may be clipped after ``on_before_optimizer_step``, by the Trainer or by a hook of the user.

    Under manual optimization clipping comes before every hook.
    """
    own_hook = getattr(type(pl_module), "configure_gradient_clipping", None)
    by_default = getattr(own_hook, "__module__", "").partition(".")[0] in ("lightning", "pytorch_lightning")
    return bool(pl_module.automatic_optimization and (trainer.gradient_clip_val or not by_default))


def log_every_n_steps(trainer: Any) -> int:
    """Return the Trainer's logging interval; 1 where it is 0, as in barebones mode."""
    return max(int(getattr(trainer, "log_every_n_steps", 1)), 1)


def planned_steps(trainer: Any) -> int | None:
    """Return how many steps the fit will take, or ``None`` where nobody knows. Ask in ``on_train_start`` or later."""
    planned = trainer.estimated_stepping_batches
    return int(planned) if planned != float("inf") and planned > 0 else None


def validation_loss(trainer: Any) -> tuple[Any, str] | None:
    """Return the loss of a validation that has just ended, still on its device, and its name; or ``None``."""
    # The public ``callback_metrics`` reduces over processes when it is looked at; this is what was reduced last.
    known = getattr(trainer._logger_connector, "_callback_metrics", {})  # noqa: SLF001
    metrics = {} if trainer.sanity_checking else known
    names = [name for name in metrics if _is_validation_loss(name)]
    if not names:
        return None
    name = min(names, key=lambda name: (len(name), name))
    return metrics[name], name


def has_grad_scaler(trainer: Any) -> bool:
    """Whether steps with non-finite gradients are skipped by a GradScaler, which is how it finds its scale."""
    return bool(getattr(getattr(trainer.precision_plugin, "scaler", None), "_enabled", False))


def loss_scale(trainer: Any) -> Tensor | None:
    """Return the factor by which the loss is multiplied before ``backward``, on its device, or ``None``.

    ``GradScaler.get_scale`` would wait for the device.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return getattr(scaler, "_scale", None)


def gradient_scale(trainer: Any, optimizer: Any) -> Tensor | None:
    """Return the factor still in the gradients at ``on_before_optimizer_step``, or ``None``.

    Fused optimizers unscale inside their own step, so Lightning leaves the gradients scaled for them; and it leaves
    them scaled where the last ``training_step`` of an accumulation window returned ``None``.
    """
    states = getattr(getattr(trainer.precision_plugin, "scaler", None), "_per_optimizer_states", {})
    stage = states.get(id(optimizer), {}).get("stage")
    return None if getattr(stage, "name", "") == "UNSCALED" else loss_scale(trainer)


def _is_validation_loss(name: str) -> bool:
    """Whether a name says so: ``val_loss`` and ``lossValid`` do, ``value_loss`` and ``train/interval_loss`` do not."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return any(word.endswith("loss") for word in words) and bool({"val", "eval", "valid", "validation"} & set(words))


def _printable(text: str) -> str:
    """Return the text with what the console's encoding lacks written as escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
