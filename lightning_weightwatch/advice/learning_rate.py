"""Take smaller steps."""

from lightning_weightwatch.advice._base import Remedy

REMEDY = Remedy(
    topic="learning rate",
    treats={
        "exploding_gradients": (
            "If they grew during training, divide the learning rate by 10 or warm it up; clipping "
            "(Trainer(gradient_clip_val=1.0)) bounds the damage of what remains."
        ),
        "non_finite_gradients": (
            "If the loss grew before it broke, divide the learning rate by 10; if it broke from one step to the next, "
            "look at the batch and at the formula first."
        ),
    },
)
