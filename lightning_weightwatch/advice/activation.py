"""Use activations that pass gradients on."""

from lightning_weightwatch.advice._base import Remedy

REMEDY = Remedy(
    topic="activation",
    treats={
        "vanishing_gradients": (
            "Replace sigmoid, whose slope is at most 1/4, and tanh by ReLU or GELU in the hidden layers."
        ),
        "dead_units": "Replace ReLU by nn.LeakyReLU or nn.GELU, whose units can come back.",
        "saturated_units": "Replace tanh and sigmoid in the hidden layers by ReLU or GELU.",
    },
)
