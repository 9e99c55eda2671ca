"""The recalibrate-batchnorm pass: spoiled statistics come back from training data."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import sample_models
from compressor.data import open_samples
from compressor.errors import DataError
from compressor.pipeline import Compressed, Context, Pipeline
from compressor.runtime import Session, Setup
from passes.fold_batchnorm import FoldBatchnorm
from passes.recalibrate_batchnorm import RecalibrateBatchnorm
from tests.conftest import build, drawn

FOLDER = Path(sample_models.__path__[0])
CHANNELS = 24


def digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, [n, 1, 8, 8], and which they are."""
    with np.load(FOLDER / f"digits8_{part}.npz") as arrays:
        return arrays["rows"][:800, None], arrays["labels"][:800]


def model(**weights: np.ndarray) -> ir.Model:
    """Random features, normalized, and a classifier on them."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float[N,1,8,8] x) => (float[N,10] y, float[N,864] f) {'
    )
    text += "c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) r = Relu(n) f = Flatten(r) y = Gemm(f, g) }"
    ones, zeros = np.ones(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32)
    stored = {"w": drawn(CHANNELS, 1, 3, 3), "s": ones, "b": zeros, "m": zeros, "v": ones}
    return ir.from_proto(build(text, **{**stored, "g": np.zeros((864, 10), np.float32), **weights}))


def outputs(given: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    return Session(given, Setup(threads=1)).run({"x": x})


def score(given: ir.Model) -> float:
    x, labels = digits("test")
    return float((outputs(given, x)[0].argmax(1) == labels).mean())


@cache
def classifier() -> dict[str, np.ndarray]:
    """Statistics of the training data, and the least-squares classifier behind them."""
    x, labels = digits("train")
    conv = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[N,1,8,8] x) => (float[N,24,6,6] c) { c = Conv(x, w) }'
    c = outputs(ir.from_proto(build(conv, w=drawn(CHANNELS, 1, 3, 3))), x)[0]
    statistics = {"m": c.mean((0, 2, 3)), "v": c.var((0, 2, 3))}
    features = outputs(model(**statistics), x)[1].astype(np.float64)
    ridge = features.T @ features + 10 * np.eye(features.shape[1])
    weights = np.linalg.solve(ridge, features.T @ (np.eye(10)[labels] - 0.1))
    return statistics | {"g": weights.astype(np.float32)}


def good() -> ir.Model:
    return model(**classifier())


def spoiled() -> ir.Model:
    mean, var = (classifier()[name] for name in "mv")
    return model(**{**classifier(), "m": mean + 2 * np.sqrt(var) * np.sign(drawn(CHANNELS)), "v": var * 25})


def context(seed: int = 0) -> Context:
    x, labels = digits("train")
    return Context(train=open_samples({"x": x, "labels": labels}, good(), "train"), seed=seed, threads=1)


def recalibrated(given: ir.Model, seed: int = 0, **options: int) -> Compressed:
    return Pipeline(RecalibrateBatchnorm(**options)).run(given, context(seed))


def array(given: ir.Model, name: str) -> np.ndarray:
    return given.graph.initializers[name].const_value.numpy()


def test_the_score_of_a_model_with_spoiled_statistics_comes_back() -> None:
    healthy, ill = score(good()), score(spoiled())
    assert ill < healthy - 0.3
    assert score(recalibrated(spoiled()).model) > healthy - 0.02


def test_changes_statistics_and_nothing_else() -> None:
    before = spoiled()
    after = recalibrated(before)
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    assert [node.op_type for node in after.model.graph] == [node.op_type for node in before.graph]
    for name in before.graph.initializers:
        assert np.array_equal(array(before, name), array(after.model, name)) == (name not in "mv")


def test_reports_the_nodes_the_samples_and_how_far_the_statistics_were_off() -> None:
    change = recalibrated(spoiled(), samples=300, batch=100).changes[-1]
    assert change.touched == ("n",)
    assert change.figures["samples"] == 300
    assert pytest.approx(change.figures["largest shift of a mean, in deviations"], rel=0.2) == 2 / 5


def test_good_statistics_stay_near_what_they_are() -> None:
    made = recalibrated(good())
    np.testing.assert_allclose(array(made.model, "m"), array(good(), "m"), rtol=0.02, atol=0.02)
    assert made.changes[-1].figures["largest shift of a mean, in deviations"] < 0.05


def test_looks_at_no_more_samples_than_it_may_and_draws_them_by_the_seed() -> None:
    few = [array(recalibrated(spoiled(), seed, samples=20, batch=20).model, "m") for seed in (0, 0, 1)]
    np.testing.assert_array_equal(few[0], few[1])
    assert not np.array_equal(few[0], few[2])


def test_declines_a_model_without_batchnormalization() -> None:
    folded = Pipeline(FoldBatchnorm()).run(good(), context()).model
    change = recalibrated(folded).changes[-1]
    assert change.touched == ()
    assert change.declined == {
        "model": "it has no BatchNormalization of its own; one that an export or a pass folded is gone"
    }


def test_declines_statistics_that_the_graph_computes() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[N,3] x) => (float[N,3] y) '
    text += "{ t = Neg(a) m = Neg(t) y = BatchNormalization(x, a, a, m, a) }"
    given = ir.from_proto(build(text, a=np.ones(3, np.float32)))
    train = open_samples({"x": drawn(8, 3)}, given, "train")
    change = Pipeline(RecalibrateBatchnorm()).run(given, Context(train=train)).changes[-1]
    assert list(change.declined.values()) == ["its statistics are computed in the graph"]
    assert change.touched == ()


def test_asks_for_training_samples() -> None:
    with pytest.raises(DataError, match=r"recalibrate-batchnorm needs train samples\. Give --train"):
        Pipeline(RecalibrateBatchnorm()).run(good(), Context())
