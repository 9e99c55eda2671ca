"""The score of a training is the score of the report."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from compressor import metrics
from compressor.data import open_samples
from compressor.errors import DataError
from compressor.torch_graph import to_torch
from compressor.training.scoring import Scorer, evaluated, rows_of
from tests.conftest import drawn
from tests.training.trained import Arrays, change, dense, made, mlp, outputs, points, train, values

CPU = torch.device("cpu")


def scorer(data: Arrays, metric: str | None = None, original: ir.Model | None = None) -> Scorer:
    return Scorer(open_samples(data, mlp()), mlp(), original or mlp(), metric)


@pytest.mark.parametrize(
    ("labels", "metric"),
    [(points()["labels"], "top1"), (points()["labels"], "f1"), (drawn(24, 3), "mse"), (drawn(24, 3), "mae")],
)
@pytest.mark.parametrize("size", [5, 64])
def test_equals_the_metric_of_what_onnxruntime_computes(labels: np.ndarray, metric: str, size: int) -> None:
    data = {"x": points()["x"], "labels": labels}
    expected = metrics.score(metric, outputs(mlp(), data["x"]), labels).value
    found = scorer(data, metric)
    assert evaluated(to_torch(mlp()), found, size, CPU, 1) == pytest.approx(expected, rel=1e-5)
    assert (found.name, found.higher_is_better) == (metric, metric in ("top1", "f1"))


@pytest.mark.parametrize(("labels", "metric"), [(points()["labels"], "top1"), (drawn(24, 3), "mse")])
def test_the_labels_choose_the_metric(labels: np.ndarray, metric: str) -> None:
    assert scorer({"x": points()["x"], "labels": labels}).metric == metric


def test_without_labels_it_is_the_agreement_with_the_original() -> None:
    other = made("g (float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", w=drawn(4, 3))
    x = points()["x"]
    found = scorer({"x": x}, None, other)
    same = outputs(mlp(), x)[0].argmax(1) == outputs(other, x)[0].argmax(1)
    score = evaluated(to_torch(mlp()), found, 64, CPU, 1)
    assert found.name in ("top1 agreement", "cosine agreement")
    assert score == pytest.approx(
        metrics.compare("agreement", outputs(other, x), outputs(mlp(), x), None).after.value
    )
    assert 0 < same.mean() < 1


def test_the_mode_of_the_module_is_put_back() -> None:
    for mode in (True, False):
        module = to_torch(mlp()).train(mode)
        evaluated(module, scorer(points()), 64, CPU, 1)
        assert module.training is mode


def test_rows_that_fill_a_fixed_batch_do_not_count() -> None:
    found = rows_of([torch.arange(8.0).reshape(4, 2), torch.tensor(3.0)], count=3, rows=4)
    assert [a.shape for a in found] == [(3, 2), (1,)]


def test_half_precision_outputs_are_scored_in_float32() -> None:
    (found,) = rows_of([torch.ones(2, 3, dtype=torch.bfloat16)], 2, 2)
    assert found.dtype == np.float32


def test_labels_that_do_not_fit_the_metric_are_refused() -> None:
    with pytest.raises(DataError, match="top1"):
        scorer({"x": points()["x"], "labels": drawn(24, 3)}, "top1")


def test_a_new_head_is_scored_on_its_own_classes() -> None:
    """The original has three classes, the model five, as `replace-head` makes it."""
    text = "g (float[N,4] x) => (float[N,5] y) { h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) }"
    weights = dense() | {"w2": drawn(8, 5), "b2": drawn(5)}
    model = made(text, **weights)
    data = {"x": drawn(30, 4), "labels": np.arange(30) % 5}
    result = train(model, data, "epochs=5", original=mlp())
    assert change(result).figures["score"] == "top1"
    expected = (outputs(result.model, data["x"])[0].argmax(1) == data["labels"]).mean()
    assert change(result).figures["score after"] == pytest.approx(expected)
    assert values(result.model)["w2"].shape == (8, 5)


def test_the_report_of_the_training_has_the_scores_of_the_models() -> None:
    data = points()
    result = train(mlp(), data, "epochs=5")
    for name, model in (("score before", mlp()), ("score after", result.model)):
        expected = metrics.score("top1", outputs(model, data["x"]), data["labels"]).value
        assert change(result).figures[name] == pytest.approx(expected)


def test_another_metric_decides_which_epoch_is_best() -> None:
    data = points()
    result = train(mlp(), data, "epochs=5 keep=best", metric="f1")
    assert change(result).figures["score"] == "f1"
    assert change(result).figures["score after"] == pytest.approx(
        metrics.score("f1", outputs(result.model, data["x"]), data["labels"]).value
    )
