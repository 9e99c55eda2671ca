"""What training leaves alone or holds within bounds: frozen layers, zeros, norms, statistics, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import pytorch_lightning as pl

from compressor.errors import OptionError
from tests.conftest import drawn
from tests.training.trained import (
    check,
    cnn,
    distance,
    folded,
    images,
    made,
    mlp,
    moved,
    outputs,
    points,
    train,
    values,
)

ALL = {"w1", "b1", "w2", "b2"}


@pytest.mark.parametrize(
    ("options", "still"),
    [
        ("freeze=w1", {"w1"}),
        ("freeze=('w1','b*')", {"w1", "b1", "b2"}),
        ("freeze_depth=0.5", {"w1", "b1"}),
        ("freeze=w2 freeze_depth=0.5", {"w1", "b1", "w2"}),
    ],
)
def test_frozen_initializers_stay_bit_identical_and_the_others_move(options: str, still: set[str]) -> None:
    assert (
        moved(mlp(), train(mlp(), points(), f"{options} optimizer=adamw weight_decay=0.1").model)
        == ALL - still
    )


def test_frozen_layers_are_released_when_their_time_has_come() -> None:
    released: list[bool] = []

    class Note(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            released.append(pl_module.network.get_parameter("w1").requires_grad)

    result = train(mlp(), points(), "epochs=4 freeze=w1 unfreeze=0.5", callbacks=[Note()])
    assert released == [False] * 6 + [True] * 6
    assert moved(mlp(), result.model) == ALL


def pruned(model: ir.Model, *names: str) -> ir.Model:
    """The model with half of its weights at zero."""
    for name in names:
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array[np.abs(array) < np.median(np.abs(array))] = 0
        value.const_value = ir.tensor(array, name=name)
    return model


def test_zeros_stay_zero_and_other_weights_move() -> None:
    model = pruned(mlp(), "w1", "w2")
    result = train(model, points(), "optimizer=adamw weight_decay=0.1 momentum=0 epochs=3")
    for name in ("w1", "w2"):
        before, after = values(model)[name], values(result.model)[name]
        assert np.array_equal(after == 0, before == 0)
        assert (after[before != 0] != before[before != 0]).all()
    assert result.changes[-1].figures["weights kept at zero"] == 2


def test_zeros_move_when_they_need_not_be_kept() -> None:
    model = pruned(mlp(), "w2")
    assert (values(train(model, points(), "keep_zeros=False").model)["w2"] != 0).all()


def test_a_weight_that_is_zero_everywhere_is_no_pruned_one() -> None:
    model = mlp()
    model.graph.initializers["w2"].const_value = ir.tensor(np.zeros((8, 3), np.float32), name="w2")
    assert (values(train(model, points()).model)["w2"] != 0).any()


def test_norms_in_the_written_file_are_within_the_limit() -> None:
    free, bound = (values(train(cnn(), images(), f"lr=0.5 {o}").model) for o in ("", "max_norm=0.5"))
    assert np.linalg.norm(free["wc"].reshape(4, -1), axis=1).max() > 0.6
    assert np.linalg.norm(bound["wc"].reshape(4, -1), axis=1).max() < 0.5 * (1 + 1e-6)
    assert np.linalg.norm(bound["wg"], axis=0).max() < 0.5 * (1 + 1e-6)


def test_the_norm_of_masked_weights_is_bound_too() -> None:
    model = pruned(mlp(), "w1", "w2")
    weights = values(train(model, points(), "lr=0.5 max_norm=0.4").model)
    assert np.linalg.norm(weights["w1"], axis=0).max() < 0.4 * (1 + 1e-6)
    assert (weights["w1"] == 0).sum() == 16


def test_weight_decay_is_for_weights_and_not_for_biases() -> None:
    model = mlp()
    for name in ("b1", "b2"):
        shape = values(model)[name].shape
        model.graph.initializers[name].const_value = ir.tensor(np.full(shape, 5, np.float32), name=name)
    options = "epochs=4 lr=1e-9 optimizer=adamw"
    decayed = train(model, points(), f"{options} weight_decay=1e7").model
    shrunk = np.abs(values(decayed)["w1"]).sum() / np.abs(values(model)["w1"]).sum()
    assert shrunk == pytest.approx(0.99**12, rel=1e-4)  # 12 steps, each by lr * weight_decay
    assert np.abs(values(decayed)["b1"] - 5).max() < 1e-5


def test_dropout_acts_in_training_and_leaves_no_node() -> None:
    with_it, without = (train(mlp(), points(), o).model for o in ("dropout=0.5", ""))
    assert distance(with_it, without) > 1e-3
    assert [n.op_type for n in with_it.graph] == [n.op_type for n in mlp().graph]
    assert list(values(with_it)) == list(values(mlp()))


def test_dropout_does_not_change_the_score_before_training() -> None:
    assert (
        train(mlp(), points(), "dropout=0.9").changes[-1].figures["score before"]
        == (train(mlp(), points()).changes[-1].figures["score before"])
    )


STATISTICS = {"mean", "var"}


def test_statistics_of_batchnorm_move_in_training_or_stay_when_frozen() -> None:
    assert moved(cnn(), train(cnn(), images()).model) >= STATISTICS
    still = moved(cnn(), train(cnn(), images(), "batchnorm=frozen").model)
    assert not still & STATISTICS
    assert {"scale", "shift", "wc"} <= still


def test_statistics_are_those_of_the_batches() -> None:
    result = train(cnn(), images(), "epochs=1 batch=24 lr=1e-9")
    x, weights = images()["x"], values(cnn())
    padded = np.pad(x[:, 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    convolved = (
        np.einsum("nhwij,oij->onhw", windows, weights["wc"][:, 0]) + weights["bc"][:, None, None, None]
    )
    expected = 0.9 * weights["mean"] + 0.1 * convolved.mean((1, 2, 3))
    assert np.allclose(values(result.model)["mean"], expected, atol=1e-5)


def test_restored_batchnorm_trains_otherwise_and_is_folded_again() -> None:
    plain, restored = (train(folded(), images(), f"epochs=3 {o}").model for o in ("", "batchnorm=restore"))
    assert distance(plain, restored) > 1e-2
    assert [n.op_type for n in restored.graph] == [n.op_type for n in folded().graph]
    assert list(values(restored)) == list(values(folded()))
    check(restored)


def test_what_is_folded_again_computes_what_was_trained() -> None:
    seen: list[float] = []

    class Note(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            seen.append(pl_module.score)

    data = {
        "x": images()["x"],
        "labels": np.random.default_rng(0).standard_normal((24, 3)).astype(np.float32),
    }
    result = train(folded(), data, "batchnorm=restore loss=mse lr=0.05", callbacks=[Note()])
    after = np.square(outputs(result.model, data["x"])[0] - data["labels"]).mean()
    assert after == pytest.approx(seen[-1], rel=1e-4)


@pytest.mark.parametrize("count", [24, 20])
def test_accumulated_batches_equal_one_large_batch(count: int) -> None:
    small = train(mlp(), points(count), "shuffle=False batch=4 accumulate=2 l2=0.01").model
    large = train(mlp(), points(count), "shuffle=False batch=8 l2=0.01").model
    assert distance(small, large) < 1e-6
    assert distance(small, mlp()) > 1e-2


def test_a_clipped_norm_bounds_the_update() -> None:
    model = train(mlp(), points(), "epochs=1 batch=24 lr=1 clip_norm=0.01").model
    assert distance(model, mlp()) == pytest.approx(0.01, rel=1e-3)


def test_a_clipped_value_bounds_every_element_of_the_update() -> None:
    before, after = (
        values(mlp()),
        values(train(mlp(), points(), "epochs=1 batch=24 lr=1 clip_value=0.001").model),
    )
    steps = [np.abs(after[n] - before[n]).max() for n in before]
    assert max(steps) == pytest.approx(0.001, rel=1e-3)


def test_chosen_layers_start_from_new_weights() -> None:
    options = "lr=1e-9 initialize={'w1':'xavier'}"
    result = train(mlp(), points(), options, seed=1)
    limit = np.sqrt(6 / 12)
    w1 = values(result.model)["w1"]
    assert 0.5 * limit < np.abs(w1).max() < limit * 1.001
    assert np.abs(w1 - values(mlp())["w1"]).max() > 0.1
    assert np.abs(values(result.model)["w2"] - values(mlp())["w2"]).max() < 1e-6


def test_an_unknown_name_to_freeze_is_refused() -> None:
    with pytest.raises(OptionError, match="finetune: freeze='nothing' matches no parameter"):
        train(mlp(), points(), "freeze=nothing")


def test_a_largest_norm_without_a_weight_to_bound_is_refused() -> None:
    model = made("g (float[N,4] x) => (float[N,4] y) { r = Relu(x) y = Mul(r, w) }", w=drawn(4))
    data = {"x": drawn(24, 4), "labels": drawn(24, 4)}
    with pytest.raises(
        OptionError,
        match="finetune: max_norm=1 bounds weights of Conv, ConvTranspose, Gemm, MatMul, and none",
    ):
        train(model, data, "max_norm=1 loss=mse")
