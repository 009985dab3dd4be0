"""How it looks: numbers in, matplotlib Figure out.

One figure per file, each a plain function of numpy arrays. Nothing here knows a tensor, a Trainer or a logger, and
nothing imports pyplot, so no window opens, no figure stays registered and the user's own plots keep their style.
``encode`` turns a figure into the bytes of a PNG.
"""

from lightning_weightwatch.figures._paper import encode
from lightning_weightwatch.figures.bias_bars import bias_bars
from lightning_weightwatch.figures.filters import convolution_filters
from lightning_weightwatch.figures.health_report import health_report
from lightning_weightwatch.figures.init_audit import init_audit
from lightning_weightwatch.figures.signal_profile import signal_profile
from lightning_weightwatch.figures.weight_matrix import weight_matrix

__all__ = [
    "bias_bars",
    "convolution_filters",
    "encode",
    "health_report",
    "init_audit",
    "signal_profile",
    "weight_matrix",
]
