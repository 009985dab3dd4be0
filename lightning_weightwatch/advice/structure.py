"""Give gradients a shorter way."""

from lightning_weightwatch.advice._base import Remedy

REMEDY = Remedy(
    topic="structure",
    treats={
        "vanishing_gradients": (
            "Add residual connections (x + f(x)) or normalisation (nn.LayerNorm, nn.BatchNorm) between the layers, or "
            "use fewer of them."
        ),
        "exploding_gradients": "Normalise between the layers (nn.LayerNorm, nn.BatchNorm).",
    },
)
