"""Choose over how many samples a step is taken."""

from lightning_weightwatch.advice._base import Remedy

REMEDY = Remedy(
    topic="batch size",
    treats={
        "stale_gradients": (
            "Clear gradients once per step; to follow several batches at once, use Trainer(accumulate_grad_batches=n)."
        ),
        "oscillating_loss": "If steps are small already, average over more samples: double the batch size.",
    },
)
