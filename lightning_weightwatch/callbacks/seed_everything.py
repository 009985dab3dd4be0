"""Seed a run when the callback is constructed and again when the fit begins.

This file decides when to seed and whom to tell. What seeding is lies in ``seeding.py``.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_weightwatch import reduce, seeding
from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._guard import attempt, guarded, meeting
from lightning_weightwatch.seeding import Changed, SeedReport, Source
from lightning_weightwatch.sinks import log
from lightning_weightwatch.sinks.files import write_json

_ME = "SeedEverything"
_TAG = "health/seed"


class SeedEverything(pl.Callback):
    """Seed ``random``, NumPy, torch on all devices and DataLoader workers, and report what was done.

    It seeds **when it is constructed**, since weights made in ``LightningModule.__init__`` are drawn before any hook
    runs, and again in ``setup`` of every fit, so that nothing drawn in between (a data module's split, another model)
    moves the order of the batches. The fit draws from a stream of its own that follows from the seed, so that a layer
    made in ``configure_model`` is not the twin of one made in ``__init__``.

    Construct it before the model; if the model is older, that is said. LightningCLI does so by itself. In a script
    where the Trainer comes last, call ``lightning_weightwatch.seed(42)`` at the top.

    What is promised: with the same seed, software, hardware and number of processes, a fit from the start draws the
    same random numbers. What is not: a fit resumed from a checkpoint is seeded like a new one. It can be repeated, but
    it does not go on with the numbers that the interrupted fit would have drawn. Objects with a generator of their own
    (``numpy.random.Generator``, ``torch.Generator``) are not reached, and kernels that add in varying order give
    varying sums unless ``deterministic`` is set.

    Determinism is in force from ``setup`` of the fit to its end, however it ends; then all flags are as they were.
    Where it is already on (``Trainer(deterministic=True)`` or ``"warn"``, or torch was told so), somebody has decided,
    and the flags are left alone. ``Trainer(deterministic=False)`` cannot be told from the default, so the flags are on
    for the fit.

    All processes get the same seed; with ``seed=None`` they take that of the first. Where a launcher starts them
    separately (torchrun, SLURM) they agree only in ``setup``: pass a seed, or weights made earlier may differ.

    The report goes to the console, to ``<log_dir>/weightwatch/seed_report.json`` and to TensorBoard:

    ================ ==== ============================================================================
    tag              unit meaning
    ================ ==== ============================================================================
    ``health/seed``  text seed, its source, flags and variables changed, versions, devices
    ================ ==== ============================================================================

    Cost: if torch has not been given this very seed before, the construction looks once through all Python objects for
    modules that are alive already (about 0.2 s with 700,000 objects). Nothing is done per step.

    Args:
        seed: A whole number from 0 to 4294967295. ``None`` takes ``PL_GLOBAL_SEED``, and picks one if there is none.
        workers: Let Lightning seed DataLoader workers, each with its own stream. Without it all processes of a
            distributed run draw the same augmentations.
        deterministic: ``True`` makes torch refuse operations that give other numbers from run to run, ``"warn"`` only
            warns of them, ``False`` leaves all flags as they are.

    Raises:
        TypeError: If the seed is no whole number, or ``workers`` no bool.
        ValueError: If the seed is out of range, or ``deterministic`` is none of the three.

    Example:
        >>> SeedEverything(42).report.seed
        42
        >>> SeedEverything(-1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: SeedEverything(seed=-1): expected a whole number from 0 to 4294967295 or None. Use ...
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        workers: bool = True,
        deterministic: bool | Literal["warn"] = False,
    ) -> None:
        super().__init__()
        self.seed = seeding.check(_ME, seed, workers, deterministic)
        self.workers, self.deterministic = workers, deterministic
        self.broken = False
        self.failure: Exception | None = None
        self._told: set[str] = set()
        self._flags: Changed = {}
        value, source = seeding.choose(self.seed)
        self._older = _modules_without(value)
        self._environment = seeding.sow(value, workers=workers)
        self._report = seeding.describe(value, source, workers=workers, changed=self._environment)

    @property
    def report(self) -> SeedReport:
        """What was seeded: at first by the construction, later by the latest fit."""
        return self._report

    @property
    def state_key(self) -> str:
        """The same for every seed, and not that of a user's own ``SeedEverything``."""
        return f"lightning_weightwatch.{_ME}"

    def state_dict(self) -> dict[str, Any]:
        """Return the seed in effect, so that a checkpoint tells what made it."""
        return {"seed": self._report.seed, "source": self._report.source, "workers": self.workers}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what neither a copy nor another process could use: the modules alive here."""
        return self.__dict__ | {"_older": None}

    @guarded
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Agree on the seed, seed again and make torch deterministic, before any batch is drawn."""
        if stage != "fit":
            return
        device = trainer.strategy.root_device
        mine = self._chosen()
        first = trainer.strategy.broadcast(mine)
        if reduce.anyone(first[0] != mine[0], device) and trainer.is_global_zero:
            log.warning(
                "SeedEverything: the processes started with different seeds, so weights made before the fit may differ "
                "between them. Pass the same seed to all, such as SeedEverything(%d).",
                first[0],
            )
        value, source = first if self.seed is None else mine
        meeting(self, lambda: self._begin(pl_module, value, source), device)

    @guarded
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what was seeded."""
        folder = _trainer.evidence_folder(trainer)
        if trainer.is_global_zero:
            # Only one process does this, so a failure must not switch it off: it would miss the next fit's meeting.
            attempt(f"The report of {_ME}", lambda: self._show(trainer, folder), self._told)

    # The flags are put back even after a failure, for which ``guarded`` would skip it.
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the flags back: no teardown follows an exception."""
        attempt(f"{_ME}.on_exception", self._restore, self._told)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the flags back."""
        attempt(f"{_ME}.teardown", self._restore, self._told)

    def _chosen(self) -> tuple[int, Source]:
        """Return the seed of the construction, or the one that somebody has set since, if none was asked for."""
        since = seeding.seed_in_environment() if self.seed is None else None
        if since is None or since == self._report.seed:
            return self._report.seed, self._report.source
        return since, "PL_GLOBAL_SEED"

    def _begin(self, model: nn.Module, seed: int, source: Source) -> None:
        self._environment = self._environment | seeding.sow(seed, workers=self.workers, stream="fit")
        self._restore()
        decided = torch.are_deterministic_algorithms_enabled()
        self._flags = seeding.make_deterministic(False if decided else self.deterministic)
        self._report = seeding.describe(
            seed,
            source,
            workers=self.workers,
            changed=self._environment | self._flags,
            model_built_before=None if self._older is None else seeding.has_older_weights(model, self._older),
        )

    def _show(self, trainer: pl.Trainer, folder: Path | None) -> None:
        _trainer.tell(trainer, f"weightwatch: {self._report}")
        if self._report.model_built_before and not trainer.ckpt_path:
            log.warning(
                "SeedEverything(%d) came after the model: weights that were drawn at random do not follow from this "
                "seed. Construct the callback before the model, or call lightning_weightwatch.seed(%d) first.",
                *(self._report.seed, self._report.seed),
            )
        if folder is not None:
            write_json(folder / "seed_report.json", self._report.to_dict())
        _trainer.sinks_of(trainer).text(_TAG, self._report.to_markdown(), _trainer.log_step(trainer))

    def _restore(self) -> None:
        seeding.restore(self._flags)
        self._flags = {}


def _modules_without(seed: int) -> list[weakref.ref[nn.Module]] | None:
    """Return the modules made before torch had this seed; ``None`` if it has it already, when there is no telling."""
    return None if torch.initial_seed() == seed else seeding.modules_alive()
