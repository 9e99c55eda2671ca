"""Learning-rate schedules: the rate at a step as a share of the peak, in closed form.

A schedule is a function of the step. torch gets it through LambdaLR, so every group of parameters keeps its own
peak, and `min_lr` is a share of that peak; the values are those of torch's own schedulers (the tests compare them),
which take one absolute minimum for all groups and, for the cosine, rise again past the end. What they return stays
at the last value past the end. Nothing here needs torch until a scheduler is asked for.

| schedule | start | middle | past the end | torch |
| --- | --- | --- | --- | --- |
| constant | 1 | 1 | 1 | ConstantLR(1) |
| step | 1 | gamma ** floor(0.5 / step) | gamma ** floor(1 / step) | StepLR |
| multistep | 1 | gamma ** milestones so far | gamma ** milestones | MultiStepLR |
| exponential | 1 | gamma ** 0.5 | gamma | ExponentialLR |
| polynomial | 1 | min_lr + (1 - min_lr) 0.5 ** power | min_lr | PolynomialLR |
| cosine | 1 | (1 + min_lr) / 2 | min_lr | CosineAnnealingLR |
| cosine-restarts | 1 | that of its cycle | min_lr | CosineAnnealingWarmRestarts |
| one-cycle | 1/25, the peak at 0.3 | about 0.8 | min_lr | OneCycleLR without its cycle of momentum |
| plateau | 1 | as the score says | >= min_lr | ReduceLROnPlateau |
| inverse-sqrt | 1 | about sqrt(2 warmup) | about sqrt(warmup) | LambdaLR |

The linear warm-up multiplies the first w steps by (step + 1) / (w + 1), so no step has the rate zero. What follows
runs over the steps that are left, except that step and multistep count theirs from the first step of the training.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING

from compressor.errors import OptionError
from compressor.training.options import Training

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

Factor = Callable[[int], float]
"""Step, counted from 0, to a share of the peak rate."""

_RISE, _START = 0.3, 1 / 25
"""The share of its steps that one-cycle rises for, and where it starts: the defaults of torch and fastai."""


def peak(options: Training) -> float:
    """The peak rate; 1 for lr='auto', so that rates are shares of a peak that is still to be found."""
    return 1.0 if options.lr == "auto" else options.lr


def warmup_steps(options: Training, steps: int) -> int:
    """The steps of the warm-up; at least one step is left for the schedule."""
    if options.warmup < 1:
        return min(round(options.warmup * steps), steps - 1)
    if options.warmup >= steps:
        raise OptionError(
            f"{options.name}: warmup={options.warmup:g} leaves none of the {steps} steps of the training. Give fewer, "
            "or a share below 1."
        )
    return round(options.warmup)


def factor(options: Training, steps: int, steps_per_epoch: int) -> Factor:
    """The schedule with its warm-up, as a function of the step.

    Args:
        options: schedule, warmup and the options of the schedule.
        steps: optimizer steps of the whole training.
        steps_per_epoch: read by plateau alone, which goes as if the score never got better after the first epoch.
    """
    warm = warmup_steps(options, steps)
    shape = _shape(options, steps, steps_per_epoch)
    return lambda step: min(1.0, (step + 1) / (warm + 1)) * shape(step)


def curve(options: Training, steps: int, steps_per_epoch: int) -> list[float]:
    """The rate at every step, for a group whose peak is `lr`; shares of the peak for lr='auto'."""
    at = factor(options, steps, steps_per_epoch)
    return [peak(options) * at(step) for step in range(steps)]


def scheduler(options: Training, optimizer: Optimizer, steps: int, steps_per_epoch: int) -> LRScheduler:
    """The schedule for an optimizer whose groups hold their peak rates; step it after every optimizer step.

    For plateau it is the warm-up alone, which leaves room for `plateau` beside it: make this one first.
    """
    from torch.optim.lr_scheduler import LambdaLR, LinearLR

    at = factor(options, steps, steps_per_epoch)
    if options.schedule != "plateau":
        return LambdaLR(optimizer, at)
    warm = warmup_steps(options, steps)
    return LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)


def plateau(options: Training, optimizer: Optimizer, higher_is_better: bool) -> ReduceLROnPlateau:
    """Multiplies the rates by gamma after more than `plateau_patience` epochs without a better score.

    Step it once per epoch with the score. Better is better by any amount; no rate falls below min_lr of its peak.
    """
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    _check_gamma(options)
    return ReduceLROnPlateau(
        optimizer,
        mode="max" if higher_is_better else "min",
        factor=options.gamma,
        patience=options.plateau_patience,
        threshold=0.0,
        threshold_mode="abs",
        min_lr=[options.min_lr * group.get("initial_lr", group["lr"]) for group in optimizer.param_groups],
        eps=0.0,
    )


def _shape(options: Training, steps: int, steps_per_epoch: int) -> Factor:
    """The schedule without its warm-up, on the steps of the whole training."""
    warm = warmup_steps(options, steps)
    left, low, gamma = steps - warm, options.min_lr, options.gamma

    def after(step: int) -> int:
        return max(0, step - warm)

    match options.schedule:
        case "constant":
            return lambda step: 1.0
        case "step":
            every = max(1, round(options.step * steps))
            return lambda step: staircase(step, range(every, steps + 1, every), gamma)
        case "multistep":
            marks = sorted(round(share * steps) for share in options.milestones)
            return lambda step: staircase(step, marks, gamma)
        case "exponential":
            return lambda step: exponential(after(step) / left, gamma)
        case "polynomial":
            return lambda step: polynomial(after(step) / left, low, options.power)
        case "cosine":
            return lambda step: cosine(after(step) / left, low)
        case "cosine-restarts":
            _check_cycles(options, left)
            return lambda step: restarts(after(step), left, options.cycles, low)
        case "one-cycle":
            return lambda step: one_cycle(after(step), left, low)
        case "plateau":
            _check_gamma(options)
            borne = options.plateau_patience + 1
            return lambda step: max(low, gamma ** (max(0, step // steps_per_epoch - 1) // borne))
        case "inverse-sqrt":
            return lambda step: inverse_sqrt(after(step), warm)


def staircase(step: int, marks: range | list[int], gamma: float) -> float:
    """gamma ** (how many of the sorted `marks` the step has reached).

    >>> [staircase(step, [50, 75], 0.1) for step in (0, 49, 50, 1000)]
    [1.0, 1.0, 0.1, 0.010000000000000002]
    """
    return float(gamma ** bisect_right(marks, step))


def exponential(done: float, gamma: float) -> float:
    """gamma ** done: the factor `gamma` is that of the whole schedule, not of a step.

    >>> [round(exponential(done, 0.01), 6) for done in (0, 0.5, 1, 2)]
    [1.0, 0.1, 0.01, 0.01]
    """
    return float(gamma ** min(1.0, done))


def polynomial(done: float, low: float, power: float) -> float:
    """low + (1 - low) (1 - done) ** power.

    >>> [polynomial(done, 0.2, 2.0) for done in (0, 0.5, 1, 2)]
    [1.0, 0.4, 0.2, 0.2]
    """
    return float(low + (1 - low) * (1 - min(1.0, done)) ** power)


def cosine(done: float, low: float, high: float = 1.0) -> float:
    """low + (high - low) (1 + cos(pi done)) / 2 (SGDR, 1608.03983, eq. 5).

    >>> [round(cosine(done, 0.2), 6) for done in (0, 0.5, 1, 2)]
    [1.0, 0.6, 0.2, 0.2]
    """
    return low + (high - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def restarts(step: int, steps: int, cycles: int, low: float) -> float:
    """Cosines of equal length, each from 1 towards `low` (SGDR, 1608.03983); the last may be cut short.

    >>> [round(restarts(step, 40, 2, 0.2), 6) for step in (0, 10, 20, 30, 40)]
    [1.0, 0.6, 1.0, 0.6, 0.2]
    """
    if step >= steps:
        return low
    length = math.ceil(steps / cycles)
    return cosine(step % length / length, low)


def one_cycle(step: int, steps: int, low: float) -> float:
    """A cosine from 1/25 up to 1 over three tenths of the steps, then one down to `low` (1708.07120).

    >>> [round(one_cycle(step, 100, 0.0), 6) for step in (0, 29, 64, 99, 1000)]
    [0.04, 1.0, 0.5, 0.0, 0.0]
    """
    top, last = _RISE * steps - 1, steps - 1
    if step <= top:
        return cosine(step / top, 1.0, _START)
    return cosine((step - top) / (last - top), low)


def inverse_sqrt(step: int, warm: int) -> float:
    """sqrt(w / (w + step)) with w the warm-up's steps, at least one (1706.03762, section 5.3).

    >>> [inverse_sqrt(step, 100) for step in (0, 300, 9900)]
    [1.0, 0.5, 0.1]
    """
    scale = max(1, warm)
    return math.sqrt(scale / (scale + step))


def _check_gamma(options: Training) -> None:
    if options.gamma >= 1:
        raise OptionError(
            f"{options.name}: schedule='plateau' multiplies the rate by gamma, which must be below 1, "
            f"got {options.gamma:g}."
        )


def _check_cycles(options: Training, steps: int) -> None:
    if options.cycles > steps:
        raise OptionError(
            f"{options.name}: cycles={options.cycles} does not fit into {steps} steps. Give at most a cycle per step."
        )
