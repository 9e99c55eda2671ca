"""What a training minimizes: losses on labels, and distillation from the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compressor.errors import DataError, OptionError
from compressor.runtime import to_bytes
from tests.conftest import drawn
from tests.training.trained import (
    Arrays,
    attention,
    change,
    distance,
    folded,
    images,
    mlp,
    moved,
    outputs,
    points,
    train,
    two_heads,
    values,
)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def cross_entropy(model: ir.Model, data: Arrays) -> float:
    chances = softmax(outputs(model, data["x"])[0])
    return float(-np.log(chances[np.arange(len(chances)), data["labels"]]).mean())


def with_targets(kind: str) -> Arrays:
    """Labels of the output's own shape."""
    x, targets = drawn(24, 4, seed=10), drawn(24, 3, seed=11)
    made = {"bce": (targets > 0).astype(np.float32), "kl": softmax(targets), "mse": targets}
    return {"x": x, "labels": made.get(kind, targets)}


MEASURES = {
    "mse": lambda y, t: ((y - t) ** 2).mean(),
    "mae": lambda y, t: np.abs(y - t).mean(),
    "huber": lambda y, t: np.where(np.abs(y - t) < 1, (y - t) ** 2 / 2, np.abs(y - t) - 0.5).mean(),
    "cosine": lambda y, t: (
        1 - ((y * t).sum(1) / np.linalg.norm(y, axis=1) / np.linalg.norm(t, axis=1)).mean()
    ),
    "bce": lambda y, t: (np.log1p(np.exp(y)) - t * y).mean(),
    "kl": lambda y, t: (t * (np.log(t) - np.log(softmax(y)))).sum(1).mean(),
}


@pytest.mark.parametrize("loss", MEASURES)
def test_makes_the_named_loss_smaller(loss: str) -> None:
    data, measure = with_targets(loss), MEASURES[loss]
    result = train(mlp(), data, f"loss={loss} epochs=10")
    before, after = (measure(outputs(m, data["x"])[0], data["labels"]) for m in (mlp(), result.model))
    assert after < 0.9 * before


def test_class_labels_are_learned_by_cross_entropy() -> None:
    data = points()
    assert cross_entropy(train(mlp(), data, "epochs=20").model, data) < 0.7 * cross_entropy(mlp(), data)


def test_smoothed_labels_give_less_certain_answers() -> None:
    data = points()
    sharp, smooth = (
        softmax(outputs(train(mlp(), data, f"epochs=30 lr=0.5 label_smoothing={s}").model, data["x"])[0]).max(
            1
        )
        for s in (0, 0.5)
    )
    assert smooth.mean() < sharp.mean() - 0.1


def test_a_heavier_class_is_said_more_often() -> None:
    data = {"x": drawn(24, 4), "labels": np.arange(24) % 3}
    said = [
        outputs(train(mlp(), data, f"epochs=10 class_weights={w}").model, data["x"])[0].argmax(1)
        for w in ("(1,1,1)", "(1,1,30)")
    ]
    assert (said[1] == 2).sum() > (said[0] == 2).sum()


def test_balanced_weights_are_those_of_the_rare_class() -> None:
    data = {"x": drawn(24, 4), "labels": np.array([0] * 16 + [1] * 4 + [2] * 4)}
    balanced, given = (train(mlp(), data, f"class_weights={w}").model for w in ("balanced", "(0.5,2.0,2.0)"))
    assert to_bytes(balanced) == to_bytes(given)


def test_each_output_has_its_own_loss_and_weight() -> None:
    data = with_targets("mse")
    both = train(two_heads(), data, "loss=('mse','mae')")
    assert {"w2", "w3"} <= moved(two_heads(), both.model)
    one = train(two_heads(), data, "loss=mse loss_weights=(0,1)")
    assert {"w3"} <= moved(two_heads(), one.model)
    assert "w2" not in moved(two_heads(), one.model)


def test_a_loss_of_the_users_own_is_minimized(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def small(output, labels):\n    return output.square().mean()\n")
    data = {"x": drawn(24, 4)}
    result = train(mlp(), data, f"epochs=20 loss='{file}:small'")
    before, after = (np.square(outputs(m, data["x"])[0]).mean() for m in (mlp(), result.model))
    assert after < 0.5 * before


def spoilt() -> ir.Model:
    """The MLP with noise on its weights, and so something to learn from the original."""
    model = mlp()
    for value in model.graph.initializers.values():
        array = value.const_value.numpy()
        value.const_value = ir.tensor(array + 0.3 * drawn(*array.shape, seed=9), name=value.name)
    return model


def apart(model: ir.Model, other: ir.Model, x: np.ndarray) -> float:
    return float(np.abs(outputs(model, x)[0] - outputs(other, x)[0]).mean())


@pytest.mark.parametrize("options", ["", "distill=1", "distill=0.5 loss=auto"])
def test_without_labels_or_by_a_share_the_original_teaches(options: str) -> None:
    x = points()["x"]
    data = points() if "0.5" in options else {"x": x}
    result = train(spoilt(), data, f"epochs=20 {options}", original=mlp())
    labels_alone = train(spoilt(), points(), "epochs=20", original=mlp())
    assert apart(result.model, mlp(), x) < apart(spoilt(), mlp(), x)
    assert apart(result.model, mlp(), x) < apart(labels_alone.model, mlp(), x)


def test_labels_alone_never_ask_the_original() -> None:
    one, other = (train(spoilt(), points(), "distill=0", original=m).model for m in (mlp(), spoilt()))
    assert to_bytes(one) == to_bytes(other)


def test_a_model_that_is_its_own_original_stays_as_it_is() -> None:
    x = points()["x"]
    assert apart(train(mlp(), {"x": x}, "epochs=5").model, mlp(), x) < 1e-5


def test_a_student_with_labels_missing_where_the_loss_needs_them_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"finetune: loss='auto' needs labels, and the training data has none\."
    ):
        train(mlp(), {"x": points()["x"]}, "distill=0")


def test_a_higher_temperature_softens_the_teacher() -> None:
    data = {"x": points()["x"]}
    cold, hot = (train(spoilt(), data, f"temperature={t}", original=mlp()).model for t in (1, 20))
    assert distance(cold, hot) > 1e-3


@pytest.mark.parametrize("cached", ["cache_mb=0", "cache_mb=100"])
def test_teachers_in_onnxruntime_and_torch_agree_cached_or_not(cached: str) -> None:
    results = [
        train(spoilt(), {"x": points()["x"]}, f"epochs=3 teacher={teacher} {cached}", original=mlp()).model
        for teacher in ("onnxruntime", "torch", "auto")
    ]
    plain = train(spoilt(), {"x": points()["x"]}, "epochs=3", original=mlp()).model
    for result in results:
        assert distance(result, plain) < 1e-5  # a few float32 roundings of weights near 1


def test_features_are_drawn_to_those_of_the_original() -> None:
    data = points()
    runs = [
        train(spoilt(), data, f"epochs=10 lr=0.05 {o}", original=mlp()).model
        for o in ("", "features=r feature_weight=5")
    ]
    hidden = [np.maximum(data["x"] @ values(m)["w1"] + values(m)["b1"], 0) for m in (*runs, mlp())]
    assert np.abs(hidden[1] - hidden[2]).mean() < 0.7 * np.abs(hidden[0] - hidden[2]).mean()


def test_a_feature_may_be_an_output() -> None:
    result = train(spoilt(), points(), "features=y distill=0", original=mlp())
    assert [v.name for v in result.model.graph.outputs] == ["y"]


def test_an_unknown_feature_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="No value of the graph matches 'nothing'"):
        train(mlp(), points(), "features=nothing")


def test_attention_is_drawn_to_that_of_the_original() -> None:
    model, data = attention(), {"x": drawn(16, 5, 4), "labels": drawn(16, 5, 4, seed=3)}
    wild, held = (
        train(model, data, f"epochs=10 loss=mse {o}") for o in ("", "attention=p attention_weight=30")
    )
    maps = [attention_map(values(m), data["x"]) for m in (wild.model, held.model, model)]
    assert np.abs(maps[1] - maps[2]).mean() < 0.7 * np.abs(maps[0] - maps[2]).mean()


def attention_map(weights: Arrays, x: np.ndarray) -> np.ndarray:
    scores = (x @ weights["wq"]) @ (x @ weights["wk"]).swapaxes(1, 2)
    return softmax(scores.reshape(-1, 5)).reshape(scores.shape)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_a_penalty_makes_weights_smaller(penalty: str) -> None:
    free, small = (
        values(train(mlp(), points(), f"epochs=10 {o}").model)["w1"] for o in ("", f"{penalty}=0.05")
    )
    assert np.abs(small).sum() < 0.9 * np.abs(free).sum()


def test_l1_brings_more_weights_near_zero_than_l2() -> None:
    near = [
        (np.abs(values(train(mlp(), points(48), f"epochs=20 {o}").model)["w1"]) < 0.02).sum()
        for o in ("l1=0.02", "l2=0.02")
    ]
    assert near[0] > near[1]


def test_matched_values_of_a_convolution_leave_no_trace_in_the_file() -> None:
    result = train(folded(), images(), "features=r attention=c")
    assert [v.name for v in result.model.graph.outputs] == ["y"]
    assert change(result).figures["score"] == "top1"
