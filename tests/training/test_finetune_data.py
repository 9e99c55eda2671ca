"""Which samples a training sees, in what order and how changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl

from compressor.data import open_samples
from compressor.errors import DataError, OptionError
from compressor.pipeline import Context, Pipeline
from tests.conftest import drawn
from tests.training.trained import change, check, folded, images, made, mlp, moved, outputs, points, train


class Batches(pl.Callback):
    """Notes the sample numbers of every batch, and what the network gets."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.inputs: list[np.ndarray] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def note(module: Any, given: Any) -> None:
            if pl_module.network.training:
                self.inputs.append(given[0].numpy().copy())

        pl_module.network.register_forward_pre_hook(note)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rows.append(batch[2].tolist())


def batches(options: str, count: int = 24) -> Batches:
    seen = Batches()
    train(mlp(), points(count), options, callbacks=[seen])
    return seen


def test_without_shuffling_samples_come_in_order_in_every_epoch() -> None:
    assert (
        batches("shuffle=False batch=10 epochs=2").rows
        == [
            list(range(10)),
            list(range(10, 20)),
            list(range(20, 24)),
        ]
        * 2
    )


def test_shuffled_epochs_have_every_sample_once_in_an_order_of_their_own() -> None:
    rows = batches("batch=8 epochs=2").rows
    first, second = np.concatenate(rows[:3]).tolist(), np.concatenate(rows[3:]).tolist()
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second


def test_what_the_network_gets_are_the_samples() -> None:
    seen = batches("shuffle=False batch=8 epochs=1")
    assert np.array_equal(np.concatenate(seen.inputs), points()["x"])


def test_augmentation_changes_the_batches_of_training() -> None:
    plain, noisy = Batches(), Batches()
    for seen, options in ((plain, ""), (noisy, "augment={'noise':0.5}")):
        train(folded(), images(), f"shuffle=False epochs=2 {options}", callbacks=[seen])
    difference = np.stack(noisy.inputs) - np.stack(plain.inputs)
    assert difference.std() == pytest.approx(0.5, rel=0.05)  # 1,728 draws
    assert not np.array_equal(difference[0], difference[3])


def test_mixed_images_train_on_mixed_labels() -> None:
    result = train(folded(), images(), "augment={'mixup':0.4}")
    assert "wc" in moved(folded(), result.model)


def test_the_largest_batch_is_a_power_of_two_within_half_of_the_data() -> None:
    assert change(train(mlp(), points(40), "batch=auto")).figures["batch"] == 16


def held_out(options: str, count: int = 40) -> tuple[int, object]:
    """How many samples are trained on without evaluation samples, and what is scored on."""
    seen = Batches()
    samples = open_samples(points(count), mlp(), "train")
    context = Context(train=samples, threads=1, callbacks=[seen])
    result = Pipeline.parse(f"finetune{{epochs=1 batch=8 shuffle=False {options}}}").run(mlp(), context)
    rows = sum(len(batch) for batch in seen.rows)
    return rows, result.changes[-1].figures["scored on"]


def test_a_share_of_the_training_data_is_held_out_without_evaluation_data() -> None:
    assert held_out("") == (36, "held-out training samples")
    assert held_out("holdout=0.5") == (20, "held-out training samples")


def test_with_evaluation_data_nothing_is_held_out() -> None:
    result = train(mlp(), points(24), "holdout=0.5 epochs=1", test=points(8, seed=5))
    assert change(result).figures["steps"] == 3
    assert change(result).figures["scored on"] == "evaluation samples"


def test_without_a_share_it_says_that_it_scores_on_what_it_trains_on() -> None:
    assert held_out("holdout=0") == (40, "training samples")


def test_a_batch_that_the_export_fixed_is_freed_for_training_only() -> None:
    text = "g (float[2,4] x) => (float[2,3] y) { h = MatMul(x, w) y = Reshape(h, s) }"
    model = made(text, w=drawn(4, 3), s=np.int64([2, 3]))
    data = points(24)
    result = train(model, data, "batch=8")
    assert change(result).figures["steps"] == 6
    assert moved(model, result.model) == {"w"}
    assert [d for d in result.model.graph.inputs[0].shape] == [2, 4]
    check(result.model)
    assert outputs(result.model, data["x"][:2])[0].shape == (2, 3)


def test_a_fixed_batch_teaches_itself_without_labels() -> None:
    text = "g (float[2,4] x) => (float[2,3] y) { h = MatMul(x, w) y = Reshape(h, s) }"
    model = made(text, w=drawn(4, 3), s=np.int64([2, 3]))
    other = made(text, w=drawn(4, 3, seed=1), s=np.int64([2, 3]))
    result = train(other, {"x": points()["x"]}, "batch=8 epochs=10", original=model)
    x = points()["x"][:2]
    before, after = (np.abs(outputs(m, x)[0] - outputs(model, x)[0]).mean() for m in (other, result.model))
    assert after < 0.7 * before


def test_labels_outside_the_classes_are_refused() -> None:
    data = points() | {"labels": np.full(24, 7)}
    with pytest.raises(DataError, match="label 7"):
        train(mlp(), data)


def test_augmentation_without_an_image_is_refused() -> None:
    with pytest.raises(OptionError, match="augment needs an image input"):
        train(mlp(), points(), "augment={'flip':0.5}")


def test_no_training_data_is_refused_before_anything_runs() -> None:
    with pytest.raises(DataError, match=r"finetune needs train samples\. Give --train FILE\.npz"):
        Pipeline.parse("finetune").run(mlp(), Context())
