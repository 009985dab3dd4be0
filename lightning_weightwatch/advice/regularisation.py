"""Take away less, or more, of what the network could learn by heart."""

from lightning_weightwatch.advice._base import Remedy

REMEDY = Remedy(
    topic="regularisation",
    treats={
        "dropout_range": (
            "Lower dropout to 0.1 to 0.5, and to 0 until the network learns its training data; p is the share dropped."
        ),
        "weight_collapse": "Divide weight_decay by 10, and leave biases and norms out of it.",
        "overfitting": (
            "Add data or augmentation, then weight decay (AdamW(..., weight_decay=0.05)) or dropout, or take a smaller "
            "network."
        ),
    },
)
