"""Train as long as it helps."""

from lightning_weightwatch.advice._base import Remedy

REMEDY = Remedy(
    topic="epochs",
    treats={
        "overfitting": (
            "Stop where validation is best and keep those weights: EarlyStopping(monitor='val_loss') and "
            "ModelCheckpoint(monitor='val_loss')."
        ),
    },
)
