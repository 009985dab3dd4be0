"""Compute the loss in a form that cannot break."""

from lightning_weightwatch.advice._base import Remedy

REMEDY = Remedy(
    topic="loss",
    treats={
        "non_finite_loss": (
            "Look at inputs, targets and masks of the batch, then put an epsilon inside every log, sqrt and division."
        ),
        "non_finite_gradients": (
            "Use the fused forms (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss on raw outputs) in place of log(softmax) "
            "and log(sigmoid), and put an epsilon inside every sqrt, log and division."
        ),
    },
)
