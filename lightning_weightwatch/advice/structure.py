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
        "saturated_units": (
            "Normalise before the activation (nn.LayerNorm, nn.BatchNorm), and normalise the inputs if it is the "
            "first layer."
        ),
        "input_scale": (
            "Standardise inputs and regression targets with mean and deviation of the training data, or begin with "
            "nn.BatchNorm; fill or drop NaN in the dataset."
        ),
        "untrained_parameters": (
            "Hand all that is to learn to the optimizer in configure_optimizers and use it in the forward pass; freeze "
            "the rest (requires_grad_(False))."
        ),
        "rank_divergence": (
            "Make and load all weights before the training begins, the same on every process, and change them by the "
            "optimizer only."
        ),
        "lost_updates": (
            "Keep the weights in float32 and compute in half precision (Trainer(precision='bf16-mixed')), or use "
            "stochastic rounding."
        ),
    },
)
