"""Show how weights, biases and gradients are distributed while a model trains.

This file decides when to look and whom to tell. What is counted lies in ``stats``, what is shown in ``_weight_pages``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_weightwatch import _arguments, reduce
from lightning_weightwatch.callbacks import _trainer
from lightning_weightwatch.callbacks._cadence import Cadence
from lightning_weightwatch.callbacks._governor import Governor, timed
from lightning_weightwatch.callbacks._guard import attempt, deferred, guarded, settle
from lightning_weightwatch.callbacks._names import select_or_warn, unmeasured
from lightning_weightwatch.callbacks._step_hooks import StepHooks
from lightning_weightwatch.callbacks._weight_pages import Array, WeightPages
from lightning_weightwatch.counter import SharedCounter, count
from lightning_weightwatch.meters import owned
from lightning_weightwatch.parameters import (
    Parameter,
    as_wholes,
    describe,
    named_tensors,
    unmeasurable,
    values,
)
from lightning_weightwatch.sinks import Sinks

_ME = "WeightHistogramLogger"
_HISTOGRAMS, _PICTURES = 50, 10  # what TensorBoard keeps per tag
_PICTURE_COST = 10  # logging intervals between two sets of pictures, at least; drawing one takes as long as many steps
_LARGEST_PICTURE = 1 << 22  # elements; more would be copied to the host for a picture of 640 x 310 dots


class WeightHistogramLogger(pl.Callback):
    """Log histograms, heat maps and bar charts of weights, biases and gradients to TensorBoard.

    Weights are read before the step they are logged at, so the first point shows the initialisation. Gradients are read
    as ``GradientHealthMonitor`` reads them. All elements are counted on the device; only counts travel, the axes of
    weights stay put, non-finite elements are counted apart, and no tensor, of whatever content, makes it raise.

    ======================================== ========================= ================================================
    tag                                      unit                      meaning
    ======================================== ========================= ================================================
    ``health.weight_hist/<nn name>``         number of elements        distribution of a weight or bias, 48 linear bins
    ``health.weight_nonfinite/<nn name>``    number of elements        NaN and Inf in it, once there were any
    ``health.grad_log10_hist/<nn name>``     number of elements        distribution of log10 of the gradient's magnitude
    ``health.grad_zero_share/<nn name>``     share of elements, 0 to 1 gradient elements that are exactly zero
    ``health.grad_nonfinite/<nn name>``      number of elements        NaN and Inf in it, once there were any
    ``health.fig_weight/<nn name>``          picture                   convolution filters, or the weight matrix
    ``health.fig_bias/<nn name>``            picture                   a bar for each unit
    ======================================== ========================= ================================================

    Args:
        every_n_steps: Log every so many steps. ``None`` spreads the 50 histograms and 10 pictures that TensorBoard
            keeps of each over the planned length of the run, no closer than the Trainer's ``log_every_n_steps``.
        include: Log parameters whose name matches one of these shell-style patterns.
        exclude: Of those, leave out the ones that match one of these.
        gradients: Log gradients too.
        figures: Draw so many weights and as many biases, spread evenly over the depth; 0 draws none.
        max_overhead: The largest share of the training time that logging may take. Between the first and the last
            pictures further ones are drawn when those before are paid for; histograms are thinned, and it says so,
            once the excess has come to 5 seconds. ``None`` keeps the cadence fixed, and the log reproducible.
        prefix: The first part of every tag.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> WeightHistogramLogger(every_n_steps=100, exclude=["backbone.*"]).figures
        6
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        gradients: bool = True,
        figures: int = 6,
        max_overhead: float | None = 0.01,
        prefix: str = "health",
    ) -> None:
        super().__init__()
        self.every_n_steps = _arguments.whole_number(
            _ME, "every_n_steps", every_n_steps, least=1, nothing=True, remedy="Use None to follow the run's length."
        )
        self.include = _arguments.patterns(_ME, "include", include)
        self.exclude = _arguments.patterns(_ME, "exclude", exclude)
        self.gradients = _arguments.flag(_ME, "gradients", gradients, "Use False to log weights only.")
        self.figures = _arguments.whole_number(_ME, "figures", figures, least=0, remedy="Use 0 to draw none.")
        self.max_overhead = _arguments.share(
            _ME, "max_overhead", max_overhead, "Use 0.01 for 1 % of the time, None for a fixed cadence."
        )
        self.prefix = _arguments.tag_prefix(_ME, "prefix", prefix)
        self.broken = False
        self.failure: Exception | None = None
        self._axes: dict[str, list[float]] = {}
        self._fit = _Fit()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running fit, for libraries that copy or pickle callbacks in the middle of it."""
        return self.__dict__ | {"_fit": _Fit()}

    @property
    def state_key(self) -> str:
        """Two loggers of one Trainer must not log under one prefix, so the prefix tells their states apart."""
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return the axes of the weights, so that a resumed run goes on with them."""
        return {"axes": {name: list(ends) for name, ends in self._axes.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the axes of the earlier run."""
        self._axes = {name: list(ends) for name, ends in state_dict.get("axes", {}).items()}

    @deferred
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew, and note whole shapes before a strategy cuts them."""
        if stage == "fit":
            self._fit = _Fit(whole=describe(pl_module), governor=Governor(self.max_overhead))
            self._axes = {}

    @guarded
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask how long the run is and how tensors lie on the processes."""
        fit, kind = self._fit, _trainer.strategy_kind(trainer)
        fit.sharded, fit.flat = kind == "sharded", _trainer.makes_flat_shards(trainer)
        fit.sinks = _trainer.sinks_of(trainer)
        fit.active = kind != "hidden" and (bool(fit.sinks) or fit.sharded)
        planned = reduce.largest(_trainer.planned_steps(trainer) or 0, pl_module.device) or None
        least = self.every_n_steps or _trainer.log_every_n_steps(trainer)
        if self.every_n_steps is None:  # one point is kept for the weights as they are left
            fit.histograms = Cadence(points=_HISTOGRAMS - 1, least=least, planned=planned)
        else:
            fit.histograms = Cadence.every(self.every_n_steps)
        fit.pictures = Cadence(points=_PICTURES - 1, least=_PICTURE_COST * least, planned=planned)
        fit.governor.take()  # what came before is no training
        if fit.active and self.gradients:
            fit.hooks = StepHooks(lambda _: None, partial(self._after_step, trainer, pl_module))
            fit.hooks.watch(*trainer.optimizers)

    @guarded
    @timed
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log weights before the step, when it is due."""
        if self._fit.hooks is not None:
            self._fit.hooks.settle()  # no optimizer is within a step
        fit, step = self._fit, _trainer.log_step(trainer)
        if fit.active and fit.histograms.due(step):
            fit.gradients_due, fit.counted = step, set()
            affordable = not fit.drawn or fit.governor.is_paid
            self._log_weights(trainer, pl_module, step, pictures=fit.pictures.due(step) and affordable)

    @guarded
    @timed
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log this optimizer's gradients, when they are due."""
        self._fit.announced.add(id(optimizer))
        self._log_gradients(trainer, pl_module, optimizer)

    @guarded
    @timed
    def _after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Log the gradients of an optimizer that Lightning did not announce."""
        if id(optimizer) not in self._fit.announced:
            self._log_gradients(trainer, pl_module, optimizer)
        self._fit.announced.discard(id(optimizer))

    def _log_gradients(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        fit, step = self._fit, _trainer.log_step(trainer)
        # LBFGS calls this up to twenty times per step, from points that its line search rejects.
        if not fit.active or not self.gradients or step != fit.gradients_due or id(optimizer) in fit.counted:
            return
        fit.counted.add(id(optimizer))
        mine = {id(p) for p in owned(optimizer)}
        tensors = {name: p for name, p in named_tensors(pl_module).items() if id(p) in mine}
        names = [name for name in self._chosen(pl_module) if name in tensors]
        held = [tensors[name] for name in names]
        scale = _trainer.gradient_scale(trainer, optimizer)
        gradients = reduce.sum_of_partials([p.grad for p in held], held)
        self._page(pl_module).gradients(self._count(trainer, names, held, gradients, scale), step)

    @guarded
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the weights as they are left."""
        if self._fit.active:
            self._fit.ending = True
            self._log_weights(trainer, pl_module, _trainer.log_step(trainer), pictures=True)
            self._fit.sinks.flush()
            for line in unmeasured("weights and gradients", self._fit.unmeasured):
                _trainer.tell(trainer, line)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Bring to disk what was logged, and let go of the model."""
        attempt("Flushing histograms", self._fit.sinks.flush, set())
        self._let_go()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the model."""
        settle(self)
        self._let_go()

    def _let_go(self) -> None:
        self._fit.let_go()
        self._fit = _Fit()

    def _chosen(self, pl_module: pl.LightningModule) -> dict[str, Parameter]:
        """Return what is logged; described anew when parameters have come or gone, or lazy ones have got a shape."""
        fit, tensors = self._fit, named_tensors(pl_module)
        layout = {name: nn.parameter.is_lazy(tensor) for name, tensor in tensors.items()}
        if fit.layout != layout:
            fit.layout, described = layout, describe(pl_module)
            if fit.sharded:
                described = as_wholes(described, fit.whole, tensors, flat=fit.flat)
                fit.unmeasured = {p.name: p.unmeasurable for p in described if p.unmeasurable}
                described = tuple(p for p in described if p.unmeasurable is None)
            before, fit.described = fit.described, {p.name: p for p in described if p.name in tensors}
            if before.keys() != fit.described.keys():
                fit.chosen = select_or_warn(_ME, fit.described, self.include, self.exclude)
            fit.pages = None
            fit.shared = SharedCounter({p.name: p.numel for p in described}) if fit.sharded else None
        return {name: fit.described[name] for name in fit.chosen}

    def _page(self, pl_module: pl.LightningModule) -> WeightPages:
        if self._fit.pages is None:
            self._chosen(pl_module)
            parameters = list(self._fit.described.values())
            self._fit.pages = WeightPages(self._fit.sinks, self.prefix, parameters, self._axes)
        return self._fit.pages

    def _log_weights(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int, *, pictures: bool) -> None:
        tensors, chosen = named_tensors(pl_module), self._chosen(pl_module)
        held = [tensors[name] for name in chosen]
        self._page(pl_module).weights(self._count(trainer, list(chosen), held, held, None), step)
        if pictures and self._fit.sinks and not self._fit.sharded:  # a shard has no picture
            drawn = [name for name in _drawn(chosen.values(), self.figures) if unmeasurable(tensors[name]) is None]
            arrays = {name: _array(tensors[name]) for name in drawn}
            self._page(pl_module).figures(arrays, {name: chosen[name].kind for name in drawn}, step)
            self._fit.drawn = True

    def _count(
        self,
        trainer: pl.Trainer,
        names: Sequence[str],
        held: Sequence[Tensor],
        tensors: Sequence[Tensor | None],
        scale: Tensor | None,
    ) -> dict[str, Array]:
        """Count the elements of weights or gradients that can be read; all ranks together, where each has a shard."""
        fit = self._fit
        own, whole = fit.governor.take() if trainer.is_global_zero else (0.0, 0.0)  # the rank that also draws
        if fit.shared is None:
            counts = count(names, held, tensors, scale)
        else:
            notes = {"own": own, "whole": whole}
            with fit.governor.waiting():  # for other processes
                counts, notes = fit.shared.count(names, held, tensors, scale, notes=notes, failure=self.failure)
            own, whole = notes["own"], notes["whole"]
        if fit.governor.learn(own, whole):
            fit.histograms.stride = fit.governor.stride
            if not fit.ending:
                notice = fit.governor.notice(_trainer.log_step(trainer), every=fit.histograms.distance)
                _trainer.tell(trainer, f"weightwatch: {_ME} {notice}")
        return counts


@dataclass
class _Fit:
    """All that belongs to one fit and is dropped after it."""

    whole: tuple[Parameter, ...] = ()
    sinks: Sinks = field(default_factory=Sinks)
    active: bool = False
    sharded: bool = False
    flat: bool = False
    histograms: Cadence = field(default_factory=lambda: Cadence.every(1))
    pictures: Cadence = field(default_factory=lambda: Cadence.every(1))
    layout: dict[str, bool] = field(default_factory=dict)
    described: dict[str, Parameter] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)
    unmeasured: dict[str, str] = field(default_factory=dict)
    pages: WeightPages | None = None
    governor: Governor = field(default_factory=lambda: Governor(None))
    shared: SharedCounter | None = None
    drawn: bool = False
    ending: bool = False
    gradients_due: int = -1
    counted: set[int] = field(default_factory=set)
    announced: set[int] = field(default_factory=set)
    hooks: StepHooks | None = None

    def let_go(self) -> None:
        """Take every hook away."""
        if self.hooks is not None:
            self.hooks.remove()


def _array(tensor: Tensor) -> Array:
    return np.asarray(values(tensor).float().cpu().numpy())


def _drawn(parameters: Iterable[Parameter], most: int) -> list[str]:
    """Choose weights and biases evenly over the depth, the first and the last among them."""
    small = [p for p in parameters if 0 < p.numel <= _LARGEST_PICTURE]
    weights = [p.name for p in small if p.is_matrix or p.kind == "embedding"]
    biases = [p.name for p in small if p.kind == "bias"]
    return [*_spread(weights, most), *_spread(biases, most)]


def _spread(names: Sequence[str], most: int) -> list[str]:
    if len(names) <= most:
        return list(names)
    return [names[i] for i in np.unique(np.linspace(0, len(names) - 1, most).round().astype(int))] if most else []
