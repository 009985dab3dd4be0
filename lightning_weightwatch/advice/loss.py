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
        "loss_output_mismatch": (
            "Hand raw outputs to nn.CrossEntropyLoss or nn.BCEWithLogitsLoss, log_softmax to nn.NLLLoss, and end "
            "regressions in a linear layer."
        ),
        "overflow_skips": (
            "Compute what overflows (norms, exponentials, sums over many elements) in float32, or train in bfloat16 "
            "(precision='bf16-mixed')."
        ),
        "label_signal": (
            "Look at a batch beside its targets after every shuffle, sort, join and cast: each target must be that of "
            "its sample, and not all may be the same."
        ),
        "no_learning": "Check that the loss is computed from the network's output and its targets, and not detached.",
    },
)
