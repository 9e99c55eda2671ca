"""Schedules: each curve is that of torch's own scheduler, for every group of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, final

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torchs

from compressor.errors import OptionError
from compressor.pipeline import Change, Context
from compressor.training.options import Training
from compressor.training.schedules import curve, factor, plateau, scheduler, warmup_steps

STEPS, AN_EPOCH = 100, 10
PEAKS = (0.5, 0.02)


@final
class Train(Training):
    name: ClassVar[str] = "train"

    def apply(self, model: ir.Model, context: Context) -> Change:
        return Change()


def sgd(*peaks: float) -> SGD:
    return SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks])


def walked(made: Any, optimizer: Optimizer, steps: int = STEPS) -> list[list[float]]:
    """The rates of the groups at each step."""
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        made.step()
    return rates


def same(got: list[list[float]], expected: list[list[float]]) -> None:
    """Equal up to what torch's recursive forms gather over a hundred roundings."""
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def one_cycle(optimizer: Optimizer, steps: int) -> torchs.LRScheduler:
    peaks = [group["lr"] for group in optimizer.param_groups]
    return torchs.OneCycleLR(
        optimizer, peaks, steps, cycle_momentum=False, div_factor=25.0, final_div_factor=math.inf
    )


Bare = Callable[[Optimizer, int], torchs.LRScheduler]
RELATIVE: dict[str, tuple[dict[str, Any], Bare]] = {
    "constant": ({}, lambda o, n: torchs.ConstantLR(o, 1.0)),
    "exponential": ({"gamma": 0.05}, lambda o, n: torchs.ExponentialLR(o, 0.05 ** (1 / n))),
    "polynomial": ({"power": 2.0}, lambda o, n: torchs.PolynomialLR(o, n, 2.0)),
    "cosine": ({}, lambda o, n: torchs.CosineAnnealingLR(o, n)),
    "cosine-restarts": (
        {"cycles": 3},
        lambda o, n: torchs.CosineAnnealingWarmRestarts(o, math.ceil(n / 3)),
    ),
    "one-cycle": ({}, one_cycle),
}
ABSOLUTE: dict[str, tuple[dict[str, Any], Bare]] = {
    "step": ({"step": 0.3, "gamma": 0.2}, lambda o, n: torchs.StepLR(o, 30, 0.2)),
    "multistep": ({"milestones": (0.75, 0.5)}, lambda o, n: torchs.MultiStepLR(o, [50, 75], 0.1)),
}


@pytest.mark.parametrize("name", [*RELATIVE, *ABSOLUTE])
def test_without_warmup_the_rates_are_those_of_the_bare_torch_scheduler(name: str) -> None:
    options, bare = (RELATIVE | ABSOLUTE)[name]
    train = Train(schedule=name, warmup=0.0, lr=PEAKS[0], **options)
    mine, theirs = sgd(*PEAKS), sgd(*PEAKS)
    got = walked(scheduler(train, mine, STEPS, AN_EPOCH), mine)
    expected = walked(bare(theirs, STEPS), theirs)
    same(got, expected)
    assert curve(train, STEPS, AN_EPOCH) == [rates[0] for rates in got]


@pytest.mark.parametrize("name", RELATIVE)
def test_with_warmup_the_rates_are_those_of_linear_then_the_bare_torch_scheduler(name: str) -> None:
    options, bare = RELATIVE[name]
    train = Train(schedule=name, warmup=10.0, **options)
    mine, theirs = sgd(*PEAKS), sgd(*PEAKS)
    after = bare(theirs, STEPS - 10)
    expected = walked(
        torchs.SequentialLR(theirs, [torchs.LinearLR(theirs, 1 / 11, total_iters=10), after], [10]), theirs
    )
    got = walked(scheduler(train, mine, STEPS, AN_EPOCH), mine)
    same(got, expected)


@pytest.mark.parametrize("name", ABSOLUTE)
def test_with_warmup_steps_are_counted_from_the_start_as_in_torchs_chain(name: str) -> None:
    options, bare = ABSOLUTE[name]
    mine, theirs = sgd(*PEAKS), sgd(*PEAKS)
    chain = torchs.ChainedScheduler([torchs.LinearLR(theirs, 1 / 11, total_iters=10), bare(theirs, STEPS)])
    got = walked(scheduler(Train(schedule=name, warmup=10.0, **options), mine, STEPS, AN_EPOCH), mine)
    same(got, walked(chain, theirs))


@pytest.mark.parametrize("warm", [0, 16])
def test_inverse_square_root_is_the_formula_of_the_transformer(warm: int) -> None:
    rates = curve(Train(schedule="inverse-sqrt", warmup=warm / STEPS, lr=1.0), STEPS, AN_EPOCH)
    scale = max(1, warm)
    assert rates[warm:] == pytest.approx([math.sqrt(scale / (scale + t)) for t in range(STEPS - warm)])
    assert rates[:warm] == pytest.approx([(step + 1) / (warm + 1) for step in range(warm)])


@pytest.mark.parametrize("warm", [0.0, 0.05])
def test_the_drawn_plateau_is_torchs_with_a_score_that_never_gets_better(warm: float) -> None:
    train = Train(schedule="plateau", warmup=warm, gamma=0.5, plateau_patience=1, min_lr=0.1, lr=PEAKS[0])
    optimizer = sgd(*PEAKS)
    by_step, by_epoch = scheduler(train, optimizer, STEPS, AN_EPOCH), plateau(train, optimizer, True)
    got = []
    for _ in range(STEPS // AN_EPOCH):
        got += walked(by_step, optimizer, AN_EPOCH)
        by_epoch.step(-3.0)
    assert [rates[0] for rates in got] == pytest.approx(curve(train, STEPS, AN_EPOCH))
    assert got[-1] == pytest.approx([0.1 * peak for peak in PEAKS])


def test_the_plateau_counts_any_gain_as_better_also_of_negative_scores() -> None:
    train = Train(schedule="plateau", warmup=0.0, gamma=0.5, plateau_patience=0)
    for higher, scores in ((True, (-5.0, -4.9999, -4.9998)), (False, (5.0, 4.9999, 4.9998))):
        optimizer = sgd(1.0)
        made = plateau(train, optimizer, higher)
        for score in scores:
            made.step(score)
        assert optimizer.param_groups[0]["lr"] == 1.0
        made.step(scores[-1])
        assert optimizer.param_groups[0]["lr"] == 0.5


def test_tiny_rates_are_reduced_on_a_plateau_too() -> None:
    optimizer = sgd(1e-9)
    made = plateau(Train(schedule="plateau", plateau_patience=0), optimizer, True)
    made.step(1.0)
    made.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-10)


MIDDLE = {
    "constant": 1.0,
    "step": 0.1,
    "multistep": 0.1,
    "exponential": 0.1**0.5,
    "polynomial": 0.6,
    "cosine": 0.6,
    "cosine-restarts": 0.2 + 0.8 * (1 + math.cos(math.pi * 16 / 34)) / 2,
    "one-cycle": 0.2 + 0.8 * (1 + math.cos(math.pi * 21 / 70)) / 2,
}
END = {
    "constant": 1.0,
    "step": 0.1**3,
    "multistep": 0.1**2,
    "exponential": 0.1,
    **dict.fromkeys(("polynomial", "cosine", "cosine-restarts", "one-cycle"), 0.2),
}


@pytest.mark.parametrize("name", MIDDLE)
def test_start_middle_and_past_the_end_are_as_the_table_says(name: str) -> None:
    at = factor(Train(schedule=name, warmup=0.0, min_lr=0.2), STEPS, AN_EPOCH)
    assert at(0) == pytest.approx(1 / 25 if name == "one-cycle" else 1.0)
    assert at(50) == pytest.approx(MIDDLE[name])
    assert [at(STEPS), at(STEPS + 1), at(10 * STEPS)] == pytest.approx([END[name]] * 3)


@pytest.mark.parametrize("name", sorted(MIDDLE))
def test_every_group_keeps_its_share_of_the_first_groups_rate(name: str) -> None:
    optimizer = sgd(1.0, 0.001)
    made = scheduler(Train(schedule=name, min_lr=0.3, cycles=2), optimizer, STEPS, AN_EPOCH)
    assert all(low == pytest.approx(high / 1000) for high, low in walked(made, optimizer))


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("name", [*MIDDLE, "plateau", "inverse-sqrt"])
def test_the_shortest_trainings_have_rates_between_nothing_and_the_peak(name: str, steps: int) -> None:
    rates = curve(Train(schedule=name, lr=0.5, cycles=1, min_lr=0.1), steps, 1)
    assert len(rates) == steps
    assert all(0 < rate <= 0.5 for rate in rates)


def test_the_state_of_a_scheduler_resumes_the_curve() -> None:
    train = Train(schedule="cosine", lr=1.0)
    first = sgd(1.0)
    begun = scheduler(train, first, STEPS, AN_EPOCH)
    walked(begun, first, 40)
    second = sgd(1.0)
    resumed = scheduler(train, second, STEPS, AN_EPOCH)
    resumed.load_state_dict(begun.state_dict())
    second.load_state_dict(first.state_dict())
    rates = [rates[0] for rates in walked(resumed, second, 60)]
    assert rates == pytest.approx(curve(train, STEPS, AN_EPOCH)[40:])


def test_a_rate_that_is_yet_to_be_found_gives_shares_of_it() -> None:
    assert max(curve(Train(lr="auto"), STEPS, AN_EPOCH)) == 1.0


def test_warmup_is_a_share_below_1_and_steps_from_1_on() -> None:
    assert [warmup_steps(Train(warmup=w), 200) for w in (0.0, 0.05, 0.999, 1.0, 30.0)] == [0, 10, 199, 1, 30]


def test_a_warmup_that_leaves_no_step_is_refused() -> None:
    with pytest.raises(OptionError, match="train: warmup=100 leaves none of the 100 steps of the training"):
        curve(Train(warmup=100.0), STEPS, AN_EPOCH)


def test_more_cycles_than_steps_are_refused() -> None:
    with pytest.raises(OptionError, match="train: cycles=5 does not fit into 4 steps"):
        curve(Train(schedule="cosine-restarts", cycles=5, warmup=0.0), 4, 1)


def test_a_plateau_that_would_change_nothing_is_refused() -> None:
    train = Train(schedule="plateau", gamma=1.0)
    with pytest.raises(OptionError, match="gamma, which must be below 1, got 1"):
        curve(train, STEPS, AN_EPOCH)
    with pytest.raises(OptionError, match="gamma, which must be below 1, got 1"):
        plateau(train, sgd(1.0), True)
