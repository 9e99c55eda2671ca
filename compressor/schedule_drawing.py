"""The learning-rate curve of a recipe, drawn in the terminal before anything is trained. No torch is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from compressor.errors import OptionError
from compressor.pipeline import Pipeline
from compressor.training.options import Training
from compressor.training.schedules import curve

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bits of a braille character (U+2800) by column and row."""
_MARGIN = 12
_SMALLEST = (40, 5)


@dataclass(frozen=True)
class Curve:
    """The learning rate of a training.

    Args:
        schedule: its name.
        rates: of a parameter at the peak rate, at every optimizer step.
        steps_per_epoch: optimizer steps in an epoch.
        known: False for lr='auto': the rates are shares of a peak that a range test will find.
    """

    schedule: str
    rates: tuple[float, ...]
    steps_per_epoch: int
    known: bool = True

    def text(self, width: int = 80, height: int = 11) -> str:
        """A drawing of `width` columns and `height` + 3 lines: the facts, the curve over its epochs, two axes."""
        if width < _SMALLEST[0] or height < _SMALLEST[1]:
            raise OptionError(
                f"schedule: a drawing needs at least {_SMALLEST[0]} columns and {_SMALLEST[1]} lines, got "
                f"{width} and {height}."
            )
        top = max(self.rates)
        rows = _plot(self.rates, width - _MARGIN, height)
        marks = {0: top, height // 2: top * (1 - (height // 2) / (height - 1)), height - 1: 0.0}
        lines = [self.facts()]
        for place, row in enumerate(rows):
            mark = f"{marks[place]:.3g} ┤" if place in marks else "│"
            lines.append(f"{mark:>{_MARGIN}}{row}".rstrip())
        lines.append(f"{'└':>{_MARGIN}}{'─' * (width - _MARGIN)}")
        lines.append(" " * _MARGIN + self._epochs(width - _MARGIN))
        return "\n".join(lines)

    def facts(self) -> str:
        """One line: the schedule, its steps, where the rate starts, peaks and ends.

        >>> Curve("step", (0.1, 0.1, 0.01, 0.01), 2).facts()
        'step: 4 steps, 2 an epoch; rate 0.1 at first, 0.1 at most (step 1), 0.01 at last'
        """
        top = max(self.rates)
        what = "rate" if self.known else "share of the peak rate"
        return (
            f"{self.schedule}: {len(self.rates):,} steps, {self.steps_per_epoch:,} an epoch; {what} "
            f"{self.rates[0]:.3g} at first, {top:.3g} at most (step {self.rates.index(top) + 1:,}), "
            f"{self.rates[-1]:.3g} at last"
        )

    def _epochs(self, width: int) -> str:
        """The axis below the curve: the epoch at its start, middle and end."""
        epochs = len(self.rates) / self.steps_per_epoch
        middle = f"{epochs / 2:g}".center(width - 2 * len(end := f"{epochs:g} epochs"))
        return "0".ljust(len(end)) + middle + end


def schedule(recipe: str | Training, samples: int = 10_000, batch: int | None = None) -> Curve:
    """The learning rate at every step that a training of `samples` samples would take.

    Args:
        recipe: the one pass that trains, or a recipe that holds it, as in "finetune{schedule='one-cycle'}".
        samples: samples of an epoch.
        batch: samples of a batch; None: the batch of the recipe.

    Raises:
        OptionError: the recipe does not train, or trains more than once, or the batch is 'auto' and not given.
    """
    options = _training(recipe)
    size = options.batch if batch is None else batch
    if size == "auto":
        raise OptionError(
            f"{options.name}: batch='auto' is found by the training itself. Give a batch to draw with."
        )
    if samples < 1 or size < 1:
        raise OptionError(f"schedule: samples and batch must be at least 1, got {samples} and {size}.")
    steps_per_epoch = math.ceil(math.ceil(samples / size) / options.accumulate)
    rates = curve(options, steps_per_epoch * options.epochs, steps_per_epoch)
    return Curve(options.schedule, tuple(rates), steps_per_epoch, options.lr != "auto")


def _training(recipe: str | Training) -> Training:
    if isinstance(recipe, Training):
        return recipe
    found = [p for p in Pipeline.parse(recipe) if isinstance(p, Training)]
    if len(found) != 1:
        raise OptionError(
            f"schedule: one pass that trains is needed, the recipe {recipe!r} has {len(found)}."
        )
    return found[0]


def _plot(values: Sequence[float], width: int, height: int) -> list[str]:
    """Lines of braille characters, 2 x 4 dots each; every column spans the values of its steps, so jumps connect."""
    columns, top, last = 2 * width, max(values) or 1.0, 4 * height - 1
    edges = [column * (len(values) - 1) // (columns - 1) for column in range(columns)]
    cells = [[0x2800] * width for _ in range(height)]
    for column, (start, end) in enumerate(pairwise((0, *edges))):
        levels = [round((1 - value / top) * last) for value in values[start : end + 1]]
        for level in range(min(levels), max(levels) + 1):
            cells[level // 4][column // 2] |= _DOTS[column % 2][level % 4]
    return ["".join(map(chr, row)).rstrip("\u2800") for row in cells]
