"""What each sample model is, on which data it is trained, and how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from architectures import BreastCancerMlp, DigitsCnn, DigitsLstm, DigitsTransformer
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Args:
        make: the untrained module, its weights drawn from torch's random state.
        task: what the logits tell, for the table.
        data: name of the function in datasets.py.
        epochs: passes over the train part.
        learning_rate: the peak of the learning-rate cycle.
        jitter: whether the images are turned, stretched and shifted a little, anew in every epoch.
    """

    make: Callable[[], nn.Module]
    task: str
    data: str
    epochs: int
    learning_rate: float
    jitter: bool


RECIPES = {
    "digits_cnn": Recipe(DigitsCnn, "digit, 10 classes", "digits32", 14, 4e-3, jitter=True),
    "digits_transformer": Recipe(DigitsTransformer, "digit, 10 classes", "digits32", 40, 2e-3, jitter=True),
    "digits_lstm": Recipe(DigitsLstm, "digit, 10 classes", "digits8", 80, 5e-3, jitter=True),
    "breast_cancer_mlp": Recipe(
        BreastCancerMlp, "malignant or benign", "breast_cancer", 30, 2e-3, jitter=False
    ),
}
