"""Training: updates, precision, devices, checkpoints, exact resume."""

from nercrf import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "TrainingConfig": "training_config",
        "train": "trainer",
    },
)
