"""New data is learned without forgetting the old: replay, learning without forgetting, EWC."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor.data import open_samples
from compressor.errors import DataError
from compressor.pipeline import Compressed
from tests.conftest import drawn
from tests.training.trained import Arrays, change, distance, mlp, outputs, train


def task(shift: int, count: int = 48) -> Arrays:
    """Points whose class is the largest of three coordinates, the classes renamed by `shift`."""
    x = drawn(count, 4, seed=20 + shift)
    return {"x": x + np.float32(2 * shift), "labels": (np.argmax(x[:, :3], axis=1) + shift) % 3}


def learned() -> ir.Model:
    """The MLP, trained for the old task."""
    return train(mlp(), task(0), "epochs=20").model


def further(options: str) -> Compressed:
    model = learned()
    epochs = "" if "epochs" in options else "epochs=10"
    return train(model, task(1), f"{epochs} {options}", old=open_samples(task(0), model, "old"))


def old_loss(model: ir.Model) -> float:
    """Cross-entropy on the old task."""
    scores = outputs(model, task(0)["x"])[0]
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return float(-np.log(chances[np.arange(len(scores)), task(0)["labels"]]).mean())


@pytest.mark.parametrize("options", ["replay=0.5", "lwf=5", "ewc=100 lr=0.02"])
def test_forgets_less_than_plain_training(options: str) -> None:
    plain = further("lr=0.02" if "lr" in options else "")
    assert old_loss(further(options).model) < old_loss(plain.model)


def test_weights_stay_nearer_to_where_they_were_with_ewc() -> None:
    free, held = (further(f"lr=0.02 ewc={w}").model for w in (0, 100))
    assert distance(held, learned()) < 0.9 * distance(free, learned())


def test_the_old_task_is_scored_before_and_after() -> None:
    figures = change(further("")).figures
    assert float(figures["old score before"]) > 0.8
    assert float(figures["old score after"]) < float(figures["old score before"])
    said = outputs(further("").model, task(0)["x"])[0].argmax(1)
    assert figures["old score after"] == pytest.approx((said == task(0)["labels"]).mean())


def test_replayed_samples_take_their_share_of_every_batch() -> None:
    assert change(further("replay=0.5 epochs=1")).figures["steps"] == 12  # 48 new samples, 4 in a batch of 8


def test_old_data_without_labels_serves_ewc() -> None:
    model = learned()
    old = open_samples({"x": task(0)["x"]}, model, "old")
    result = train(model, task(1), "ewc=100 lr=0.02", old=old)
    assert change(result).figures["old score before"] == pytest.approx(1)  # agreement with the original


@pytest.mark.parametrize("option", ["replay=0.5", "ewc=1"])
def test_old_data_that_is_missing_is_asked_for(option: str) -> None:
    with pytest.raises(DataError, match=r"finetune: replay and ewc need old samples\. Give --old"):
        train(mlp(), task(0), option)
