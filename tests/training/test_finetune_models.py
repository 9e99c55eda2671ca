"""Models of every kind train, and come back as the same graph with other values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compressor.data import open_samples
from compressor.pipeline import Context, Pipeline
from compressor.runtime import to_bytes
from tests.conftest import drawn
from tests.training.trained import (
    BRANCHES,
    CONSTANT,
    LSTM,
    TIED,
    Arrays,
    attention,
    change,
    check,
    cnn,
    dense,
    folded,
    images,
    made,
    mlp,
    moved,
    outputs,
    points,
    train,
    two_heads,
    values,
)


def branches() -> ir.Model:
    return made(BRANCHES, **dense(), w3=drawn(4, 8, seed=4), zero=np.float32(0))


def sequences() -> Arrays:
    return {"x": drawn(24, 5, 4), "labels": drawn(24, 5, 4, seed=1)}


MODELS: dict[str, tuple[Callable[[], ir.Model], Callable[[], Arrays], set[str]]] = {
    "mlp": (mlp, points, {"w1", "b1", "w2", "b2"}),
    "cnn": (cnn, images, {"wc", "bc", "scale", "shift", "mean", "var", "wg", "bg"}),
    "folded": (folded, images, {"wc", "bc", "wg", "bg"}),
    "attention": (attention, sequences, {"wq", "wk", "wv"}),
    "two heads": (two_heads, points, {"w1", "b1", "w2", "b2"}),
    "branches": (branches, points, {"b2", "w2"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_stays_and_its_weights_move(name: str) -> None:
    build, data, expected = MODELS[name]
    model, before = build(), to_bytes(build())
    result = train(model, data(), "loss=mse" if name == "attention" else "")
    assert to_bytes(model) == before
    assert moved(model, result.model) >= expected
    assert set(change(result).touched) == moved(model, result.model)
    for graph in (lambda m: m.graph.inputs, lambda m: m.graph.outputs):
        assert [(v.name, v.dtype, v.shape) for v in graph(model)] == [
            (v.name, v.dtype, v.shape) for v in graph(result.model)
        ]
    assert [(n.op_type, n.name) for n in model.graph] == [(n.op_type, n.name) for n in result.model.graph]
    check(result.model)


def test_both_branches_of_an_if_train() -> None:
    """The branch depends on the sum of the whole batch, so batches of both signs are needed."""
    x = np.abs(drawn(24, 4)) * np.repeat([1, -1], 12)[:, None].astype(np.float32)
    data = {"x": x, "labels": points()["labels"]}
    assert {"w1", "w3"} <= moved(branches(), train(branches(), data, "shuffle=False batch=12").model)


def test_a_recurrent_layer_trains() -> None:
    model = made(LSTM, w=drawn(1, 12, 4), r=drawn(1, 12, 3), zero=np.int64([0]))
    data = {"x": drawn(24, 6, 4), "labels": points()["labels"]}
    assert moved(model, train(model, data).model) == {"w", "r"}


def test_the_weight_in_a_constant_node_trains() -> None:
    model = made(CONSTANT)
    result = train(model, points())
    before, after = (m.graph.node(0).attributes["value"].as_tensor().numpy() for m in (model, result.model))
    assert np.abs(after - before).max() > 1e-3
    assert change(result).touched == ("w1",)
    check(result.model)


def test_a_weight_that_is_used_twice_stays_one() -> None:
    model = made(TIED, w=drawn(4, 4))
    data = {"x": drawn(24, 4), "labels": drawn(24, 4, seed=1)}
    result = train(model, data, "loss=mse")
    assert moved(model, result.model) == {"w"}
    w = values(result.model)["w"]
    assert np.allclose(outputs(result.model, data["x"])[0], np.maximum(data["x"] @ w, 0) @ w.T, atol=1e-5)


def test_a_weight_that_the_exporter_wrote_twice_stays_the_same_twice() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
    model = made(text, a=drawn(4, 4), b=drawn(4, 4))
    result = train(model, {"x": drawn(24, 4), "labels": drawn(24, 4, seed=1)}, "loss=mse")
    assert moved(model, result.model) == {"a", "b"}
    assert np.array_equal(values(result.model)["a"], values(result.model)["b"])


def test_constants_of_the_computation_stay() -> None:
    model = made(
        "g (float[N,4] x) => (float[N,3] y) { s = Mul(x, k) y = MatMul(s, w) }",
        k=np.float32(0.5),
        w=drawn(4, 3),
    )
    assert moved(model, train(model, points()).model) == {"w"}


def test_a_model_without_weights_is_declined() -> None:
    model = made("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    result = train(model, {"x": drawn(24, 4)})
    assert "no floating-point weights to train" in change(result).declined["model"]
    assert to_bytes(result.model) == to_bytes(model)


def test_a_model_with_weights_in_a_file_of_their_own_trains(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(mlp()), path, save_as_external_data=True, location="weights", size_threshold=0)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    model = ir.load(path)
    assert moved(mlp(), train(model, points()).model) == {"w1", "b1", "w2", "b2"}
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_half_precision_weights_stay_half_precision() -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { h = Cast<to = 10>(x) m = MatMul(h, w) y = Cast<to = 1>(m) }"
    model = made(text, w=drawn(4, 3).astype(np.float16))
    result = train(model, points())
    assert values(result.model)["w"].dtype == np.float16
    assert moved(model, result.model) == {"w"}


def test_a_second_pass_goes_on_from_the_first() -> None:
    samples = open_samples(points(), mlp(), "train")
    one = "finetune{epochs=1 batch=24 optimizer=sgd lr=0.1 momentum=0 weight_decay=0 warmup=0 %s}"
    one %= "schedule=constant keep=last"
    result = Pipeline.parse(f"{one},{one}").run(mlp(), Context(train=samples, data=samples, threads=1))
    both = train(mlp(), points(), "epochs=2 batch=24")
    for name, array in values(result.model).items():
        assert np.allclose(array, values(both.model)[name], atol=1e-6)
