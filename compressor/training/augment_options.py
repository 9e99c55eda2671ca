"""What `augment` may hold, checked when the option is read. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.errors import OptionError, did_you_mean


@dataclass(frozen=True)
class Strength:
    """A number from 0, which is no change, to `top`, that one included unless it is `below`."""

    text: str
    top: float = math.inf
    below: bool = False
    whole: bool = False

    def allows(self, value: object) -> bool:
        """Whether `value` is such a number; True and False are none."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return 0 <= value < self.top or (value == self.top < math.inf and not self.below)


AUGMENT: dict[str, Strength] = {
    "flip": Strength("a probability in [0, 1]", 1),
    "flip_vertical": Strength("a probability in [0, 1]", 1),
    "rotate": Strength("the largest angle in degrees, in [0, 180]", 180),
    "scale": Strength("the largest change of the size, in [0, 1)", 1, below=True),
    "crop": Strength("a whole number of pixels, 0 or more", whole=True),
    "colour": Strength("the largest change of brightness, contrast and saturation, in [0, 1]", 1),
    "noise": Strength("a standard deviation, 0 or more"),
    "cutout": Strength("a whole number of pixels, 0 or more", whole=True),
    "mixup": Strength("the alpha of a Beta distribution, 0 or more"),
    "cutmix": Strength("the alpha of a Beta distribution, 0 or more"),
}
"""Name -> what its number says, in the order in which changes are made."""


def augment_strengths(augment: Mapping[str, Any]) -> dict[str, float]:
    """Name -> strength of the changes that do something, in the order in which they are made.

    >>> augment_strengths({"crop": 4, "flip": 0.5, "noise": 0})
    {'flip': 0.5, 'crop': 4}

    Raises:
        OptionError: a name is unknown, or a number is out of range.
    """
    for name, value in augment.items():
        if name not in AUGMENT:
            raise OptionError(f"augment has no {name!r}. {did_you_mean(name, AUGMENT)}")
        if not AUGMENT[name].allows(value):
            raise OptionError(f"augment: {name} must be {AUGMENT[name].text}, got {value!r}.")
    return {name: augment[name] for name in AUGMENT if augment.get(name)}
