"""How a batch's signal changes from layer to layer, by how much, and which layers do it.

One odd layer is no trend: the largest single step is counted as the others are. A layer that is small alone between
others of the right size is given a gradient of the right size, and grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_weightwatch.evidence import Floats, Layer, Signal
from lightning_weightwatch.rules._code import followed_by, gain_for


@dataclass(frozen=True)
class Course:
    """One way through the layers.

    Attributes:
        way: ``"forwards"`` or ``"backwards"``.
        layers: Those that are counted, in the order in which the signal passes them.
        sizes: What each has of it.
        decades: By how many powers of ten that changes, along a straight line; above 0 where it grows.
    """

    way: str
    layers: tuple[Layer, ...]
    sizes: Floats
    decades: float

    def told(self, limit: float) -> str:
        """Say by how much it changes, and from where to where.

        Example:
            >>> Course("backwards", (Layer("b.weight"), Layer("a.weight")), np.array([1.0, 0.01]), -2.0).told(2.0)
            "The gradient of the layers' outputs falls by 2.0 powers of ten (limit 2) on its way through 2 layers at \
the start: 1.0e+00 in b.weight, 1.0e-02 in a.weight."
        """
        what = "The gradient of" if self.way == "backwards" else "What tells samples apart in"
        return (
            f"{what} the layers' outputs {'grows' if self.decades > 0 else 'falls'} by {abs(self.decades):.1f} powers "
            f"of ten (limit {limit:g}) on its way through {len(self.layers)} layers at the start: "
            f"{self.sizes[0]:.1e} in {self.layers[0].name}, {self.sizes[-1]:.1e} in {self.layers[-1].name}."
        )


def forwards(signal: Signal) -> Course | None:
    """Return how what tells samples apart changes with depth; ``None`` where that was not measured.

    Example:
        >>> layers = tuple(Layer(f"{i}.weight", spread=10.0**-i) for i in range(4))
        >>> round(forwards(Signal(layers)).decades, 6)
        -3.0
    """
    return _course("forwards", signal.layers, [layer.spread for layer in signal.layers], signal.forward_decades)


def backwards(signal: Signal) -> Course | None:
    """Return how the gradient changes on its way back; ``None`` where that was not measured."""
    back = signal.layers[::-1]
    return _course("backwards", back, [layer.gradient for layer in back], signal.backward_decades)


def own_decades(signal: Signal, layer: Layer) -> float:
    """Return by how many powers of ten a layer is above what keeps the signal's size; NaN where it is not known.

    Example:
        >>> layer = Layer("a.weight", spread=0.141421, came_in=1.0, activation="relu")
        >>> round(own_decades(Signal((layer,)), layer), 4)
        -1.0
    """
    if not (0 < layer.spread < np.inf and 0 < layer.came_in < np.inf):
        return float("nan")
    return float(np.log10(layer.spread / layer.came_in / gain_for(followed_by(signal, layer))))


def responsible(signal: Signal, course: Course) -> list[Layer]:
    """Return the layers that account for a change; none where all of them together do not account for half of it.

    These are the ones that do at least half of what they do on average, the one that does most left out.
    """
    own = {layer.name: np.sign(course.decades) * own_decades(signal, layer) for layer in course.layers}
    doing = {name: share for name, share in own.items() if share > 0}
    if np.nansum(list(own.values())) < abs(course.decades) / 2:
        return []
    usual = sorted(doing.values())[:-1]
    limit = np.mean(usual) / 2 if usual else 0.0
    return [layer for layer in signal.layers if doing.get(layer.name, 0.0) > limit]


def _course(way: str, layers: Sequence[Layer], sizes: Sequence[float], decades: float) -> Course | None:
    pairs = zip(layers, sizes, strict=True)
    known = [(one, size) for one, size in pairs if one.kind != "embedding" and np.isfinite(size) and size > 0]
    if not np.isfinite(decades) or not known:
        return None
    values = np.array([size for _, size in known])
    steady = _steady(np.log10(values), np.sign(decades))
    least = min(decades, steady, key=abs) if decades * steady > 0 else 0.0
    return Course(way, tuple(layer for layer, _ in known), values, float(least))


def _steady(logs: Floats, sign: float) -> float:
    """Return the slope of the line when the largest step in its direction is taken for the median of the others."""
    steps = np.diff(logs)
    odd = int(np.argmax(sign * steps))
    steps[odd] = np.median(np.delete(steps, odd))
    return float(np.polyfit(np.linspace(0.0, 1.0, len(logs)), np.r_[0.0, np.cumsum(steps)], 1)[0])
