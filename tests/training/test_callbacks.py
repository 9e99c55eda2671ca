"""The callbacks alone: what they keep, what they judge, what a checkpoint holds of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from compressor.training.callbacks import Keeper, MaxNorm, Plateau
from passes.finetune import Finetune


def module(weight: float) -> Any:
    """A student with one weight."""
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(weight)
    return SimpleNamespace(
        **{"network": network, "score": 0.0, "fault": "", "outcome": {}, "resumed": 0, "pace": (0, 0.0)},
        **{"settled": True, "device": torch.device("cpu")},
    )


def trainer(epoch: int = 0) -> Any:
    return SimpleNamespace(
        current_epoch=epoch, global_step=epoch, estimated_stepping_batches=10, should_stop=False
    )


def judged(keeper: Keeper, student: Any, weight: float, score: float, epoch: int) -> None:
    student.network.weight.data.fill_(weight)
    student.score = score
    keeper.on_validation_start(trainer(epoch), student)
    keeper.on_validation_end(trainer(epoch), student)


@pytest.mark.parametrize(
    ("higher", "keep", "weight", "epoch"), [(True, "best", 2, 1), (False, "best", 4, 3), (True, "last", 4, 3)]
)
def test_the_weights_of_the_best_epoch_come_back(higher: bool, keep: str, weight: float, epoch: int) -> None:
    student = module(0)
    keeper = Keeper(Finetune(keep=keep), higher, 0.5, None)
    keeper.on_fit_start(trainer(), student)
    for number, score in enumerate([0.6, 0.9, 0.9, 0.1], start=1):
        judged(keeper, student, number, score, number - 1)
    keeper.on_fit_end(trainer(4), student)
    assert student.network.weight.item() == weight
    assert student.outcome["best_epoch"] == epoch + 1
    assert student.outcome["best"] == (0.9 if weight == 2 else 0.1)


def test_an_equal_score_does_not_replace_earlier_weights() -> None:
    student = module(7)
    keeper = Keeper(Finetune(), True, 0.5, None)
    keeper.on_fit_start(trainer(), student)
    judged(keeper, student, 1, 0.5, 0)
    keeper.on_fit_end(trainer(1), student)
    assert (student.network.weight.item(), student.outcome["best_epoch"]) == (7, 0)


def test_any_score_beats_a_start_without_one() -> None:
    student = module(7)
    keeper = Keeper(Finetune(), True, float("nan"), None)
    keeper.on_fit_start(trainer(), student)
    judged(keeper, student, 1, 0.0, 0)
    keeper.on_fit_end(trainer(1), student)
    assert student.network.weight.item() == 1


def test_nothing_is_judged_once_the_training_is_astray() -> None:
    student = module(7)
    keeper = Keeper(Finetune(keep="last"), True, 0.5, None)
    keeper.on_fit_start(trainer(), student)
    student.fault = "the loss is NaN"
    judged(keeper, student, float("nan"), 0.9, 0)
    keeper.on_fit_end(trainer(1), student)
    assert student.network.weight.item() == 7


def test_the_average_is_scored_and_the_trained_weights_go_on() -> None:
    student, settled = module(0), []
    keeper = Keeper(Finetune(average="swa", swa_start=0.0), True, 0.5, settled.append)
    for weight in (1, 3):
        student.network.weight.data.fill_(weight)
        keeper.on_train_batch_end(trainer(), student)
    keeper.on_validation_start(trainer(), student)
    assert student.network.weight.item() == 2
    assert settled == [student.network]
    student.score = 0.9
    keeper.on_validation_end(trainer(), student)
    assert student.network.weight.item() == 3
    keeper.on_fit_end(trainer(), student)
    assert student.network.weight.item() == 2


def test_what_is_kept_survives_a_checkpoint() -> None:
    student = module(0)
    keeper, other = (Keeper(Finetune(average="ema"), True, 0.5, None) for _ in range(2))
    keeper.on_fit_start(trainer(), student)
    student.network.weight.data.fill_(3)
    keeper.on_train_batch_end(trainer(), student)
    judged(keeper, student, 2, 0.9, 0)
    other.load_state_dict(keeper.state_dict())
    other.on_fit_start(trainer(1), module(5))
    fresh = module(5)
    other.on_fit_end(trainer(1), fresh)
    assert fresh.network.weight.item() == 3
    assert (fresh.outcome["best"], fresh.outcome["best_epoch"]) == (0.9, 1)


def test_norms_above_the_limit_are_scaled_back_after_a_step() -> None:
    student = module(5)
    MaxNorm({"weight": 0}, 2.0).on_train_batch_end(trainer(), student)
    assert student.network.weight.item() == pytest.approx(2)


def test_the_plateau_survives_a_checkpoint() -> None:
    def made() -> tuple[Plateau, torch.optim.Optimizer]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        return Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.1, 1)), optimizer

    (one, first), (other, _) = made(), made()
    for _ in range(3):
        one.on_validation_end(trainer(), SimpleNamespace(score=0.5, settled=True))
    assert first.param_groups[0]["lr"] == pytest.approx(0.1)
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict()
