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
        "dead_units": (
            "If they died during training, divide the learning rate by 10 or warm it up: a single large step can push "
            "all biases of a layer below zero."
        ),
        "learning_rate_too_high": "Divide the learning rate by 10, and warm it up over the first hundreds of steps.",
        "learning_rate_too_low": (
            "Multiply the learning rate by 10 until the loss no longer falls faster, or ask "
            "Tuner(trainer).lr_find(model)."
        ),
        "gradient_spike": (
            "If spikes come with one batch, look at its samples; if with many, clip gradients "
            "(Trainer(gradient_clip_val=1.0)) or divide the learning rate by 3."
        ),
        "loss_spike": (
            "If the loss does not come back, go on from the checkpoint before the spike, without that batch or with "
            "half the rate."
        ),
        "diverging_loss": "Divide the learning rate by 10, and go on from a checkpoint before the loss rose.",
        "oscillating_loss": "Divide the learning rate by 10, or let it decay, and lower a momentum above 0.9.",
        "no_learning": (
            "Train on ten samples only: if the loss still stays, look for layers without a gradient, and try learning "
            "rates ten times larger and smaller."
        ),
    },
)
