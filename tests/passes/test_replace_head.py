"""The replace-head pass: another number of classes at the end of the graph."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compressor import Limits, Target, compress, measurement
from compressor.errors import OptionError
from compressor.latency import Protocol
from compressor.pipeline import Compressed, Context, Pipeline
from compressor.report import headline, markdown
from compressor.runtime import Session, Setup
from passes.replace_head import ReplaceHead
from tests.conftest import build, drawn


def model(signature: str, body: str, opset: int = 17, **weights: Any) -> ir.Model:
    return ir.from_proto(
        build(f'<ir_version: 8, opset_import: ["" : {opset}]>\ng {signature} {{ {body} }}', **weights)
    )


def dense(layer: str, **weights: Any) -> ir.Model:
    body = f"h=Gemm(x,w1) r=Relu(h) {layer}"
    return model("(float[N,4] x) => (float[N,3] y)", body, w1=drawn(4, 8), **weights)


def maps(behind: str, shape: str = "N,3", **weights: Any) -> ir.Model:
    body = f"h=Conv(x,w1) r=Relu(h) {behind}"
    return model(f"(float[N,2,5,5] x) => (float[{shape}] y)", body, w1=drawn(8, 2, 3, 3), **weights)


DENSE = {"w": drawn(8, 3), "b": drawn(3)}
POINTWISE = {"w": drawn(3, 8, 1, 1), "b": drawn(3)}
TOKENS = ("(float[N,S,4] x) => (float[N,S,3] y)", "r=Relu(x) m=MatMul(r,w) y=Add(m,b)")
HEADS = {
    "Gemm": lambda: dense("y=Gemm(r,w,b)", **DENSE),
    "Gemm, transposed": lambda: dense("l=Gemm<transB=1>(r,w,b) y=Softmax(l)", w=drawn(3, 8), b=drawn(3)),
    "Gemm without bias": lambda: dense("y=Gemm(r,w)", w=drawn(8, 3)),
    "MatMul": lambda: dense("l=MatMul(r,w) y=LogSoftmax(l)", w=drawn(8, 3)),
    "MatMul and Add": lambda: dense("m=MatMul(r,w) l=Add(b,m) y=Sigmoid(l)", **DENSE),
    "tokens": lambda: model(*TOKENS, w=drawn(4, 3), b=drawn(3)),
    "Conv of a segmentation": lambda: maps("y=Conv(r,w)", "N,3,3,3", w=drawn(3, 8, 1, 1)),
    "Conv before pooling": lambda: maps(
        "c=Conv(r,w,b) p=GlobalAveragePool(c) f=Flatten(p) y=Softmax(f)", **POINTWISE
    ),
    "Conv on pooled maps": lambda: maps(
        "p=GlobalAveragePool(r) c=Conv(p,w,b) y=Reshape(c,to)", to=np.int64([-1, 3]), **POINTWISE
    ),
}
every_head = pytest.mark.parametrize("kind", HEADS)


def run(given: ir.Model, **options: Any) -> Compressed:
    seed = options.pop("seed", 0)
    return Pipeline(ReplaceHead(**options)).run(given, Context(threads=1, seed=seed))


def outputs(given: ir.Model, count: int = 6) -> np.ndarray:
    shape = [d if isinstance(d, int) else 5 for d in given.graph.inputs[0].shape[1:]]
    return Session(given, Setup(threads=1)).run({"x": drawn(count, *shape, seed=7)})[0]


def array(given: ir.Model, name: str) -> np.ndarray:
    return given.graph.initializers[name].const_value.numpy()


@every_head
@pytest.mark.parametrize("classes", [1, 3, 7])
def test_has_the_new_classes_where_the_old_ones_were(kind: str, classes: int) -> None:
    before = HEADS[kind]()
    made = run(before, classes=classes).model
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    old, new = outputs(before), outputs(made)
    axis = 1 if "Conv" in kind else -1
    sizes = list(old.shape)
    sizes[axis] = classes
    assert list(new.shape) == sizes
    declared = [d if isinstance(d, int) else d.value for d in made.graph.outputs[0].shape]
    was = [d if isinstance(d, int) else d.value for d in before.graph.outputs[0].shape]
    was[axis] = classes
    assert (made.graph.outputs[0].name, declared) == ("y", was)


@every_head
def test_keeps_everything_before_the_classifier_and_the_names_of_its_weights(kind: str) -> None:
    before = HEADS[kind]()
    made = run(before, classes=5)
    assert [node.op_type for node in made.model.graph] == [node.op_type for node in before.graph]
    assert set(made.model.graph.initializers) == set(before.graph.initializers)
    same = {
        name
        for name in before.graph.initializers
        if np.array_equal(array(before, name), array(made.model, name))
    }
    assert set(made.changes[-1].touched) == set(before.graph.initializers) - same - {"to"}
    assert made.changes[-1].figures == {"classes before": 3, "classes after": 5}


@every_head
def test_starts_with_a_zero_bias_and_weights_of_the_size_that_their_kind_has(kind: str) -> None:
    made = run(HEADS[kind](), classes=600, init="xavier").model
    if "b" in made.graph.initializers:
        assert not array(made, "b").any()
    weight = array(made, "w")
    inputs = weight.size // 600
    edge = (6 / (inputs + 600)) ** 0.5
    assert np.abs(weight).max() <= edge
    assert weight.std() == pytest.approx(edge / 3**0.5, rel=0.05)


def test_zero_weights_say_nothing_about_any_class() -> None:
    made = run(HEADS["Gemm, transposed"](), classes=4, init="zero").model
    np.testing.assert_array_equal(outputs(made), np.full((6, 4), 0.25, np.float32))


@pytest.mark.parametrize("init", ["he", "xavier", "orthogonal", "uniform", "normal"])
def test_the_seed_decides_the_weights(init: str) -> None:
    drawn_by = [array(run(HEADS["Gemm"](), init=init, seed=seed).model, "w") for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn_by[0], drawn_by[1])
    assert not np.array_equal(drawn_by[0], drawn_by[2])


def test_orthogonal_classes_are_orthogonal_in_the_layout_of_the_file() -> None:
    weight = array(run(HEADS["Gemm"](), classes=5, init="orthogonal").model, "w")
    np.testing.assert_allclose(weight.T @ weight, np.eye(5), atol=1e-5)


def test_a_weight_that_others_read_is_left_to_them() -> None:
    tied = model("(float[N,4] x) => (float[N,4] y)", "h=MatMul(x,w) r=Relu(h) y=MatMul(r,w)", w=drawn(4, 4))
    made = run(tied, classes=2)
    np.testing.assert_array_equal(array(made.model, "w"), array(tied, "w"))
    assert outputs(made.model).shape == (6, 2)
    assert made.changes[-1].touched == ("w_1",)


def test_finds_the_classifier_inside_a_function() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "here" : 1]>\ng (float[N,4] x) => (float[N,3] y) '
    text += "{ y=here.Dense(x,w) }"
    text += '\n<domain: "here", opset_import: ["" : 17]>\nDense (a, w) => (r) { r=MatMul(a,w) }'
    made = run(ir.from_proto(build(text, w=drawn(4, 3))), classes=6)
    assert outputs(made.model).shape == (6, 6)


CODES = {"k": np.ones((8, 3), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
FLATTENED = {"w": drawn(8, 3), "to": np.int64([1, -1])}
TWO = ("(float[N,8] x) => (float[N,3] y, float[N,3] o)", "y=Gemm(x,w) o=Mul(y,c)")
DECLINED = {
    "comes from Relu '.*', not from a Gemm, MatMul or Conv": lambda: dense("l=Gemm(r,w) y=Relu(l)", **DENSE),
    "comes from Gemm '.*', not from": lambda: dense("k=Neg(w) y=Gemm(r,k)", **DENSE),
    "comes from MatMul '.*', not from": lambda: dense("y=MatMul(r,w)", w=drawn(2, 8, 3)),
    "comes from an input or a constant": lambda: model("(float[N,3] x) => (float[N,3] y)", "y=Softmax(x)"),
    r"a Conv with weights \[3, 8, 3, 3\], no 1x1": lambda: maps(
        "y=Conv(r,w)", "N,3,1,1", w=drawn(3, 8, 3, 3)
    ),
    "is quantized: replace it in the float model": lambda: dense(
        "w=DequantizeLinear(k,s,z) y=Gemm(r,w)", **CODES
    ),
    "the classifier is quantized": lambda: dense(
        "l=Gemm(r,w) q=QuantizeLinear(l,s,z) y=DequantizeLinear(q,s,z)", **CODES, **DENSE
    ),
    "behind its own bias": lambda: dense("l=Gemm(r,w,b) y=Add(l,c)", c=drawn(3), **DENSE),
    r"output 'y' would change from \[1, 6\] to \[1, 10\]": lambda: dense(
        "l=MatMul(r,w) y=Reshape(l,to)", **FLATTENED
    ),
    "the original does not run on made-up inputs": lambda: dense("y=Gemm(r,w)", w=drawn(5, 3)),
    "does not take another number of classes": lambda: model(*TWO, w=drawn(8, 3), c=drawn(3)),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines_and_leaves_the_model_alone(reason: str) -> None:
    before = DECLINED[reason]()
    made = run(before, classes=5)
    assert made.changes[-1].touched == ()
    assert re.search(reason, made.changes[-1].declined["model"])
    assert ir.to_proto(made.model).SerializeToString() == ir.to_proto(before).SerializeToString()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time as little as can be: no test here is about latency."""
    monkeypatch.setattr(measurement, "PROTOCOL", Protocol(visits=5, visit_ms=0.2, sessions=1, warmup=1))


# --- the report ----------------------------------------------------------------------------------------------


def samples(classes: int | None) -> dict[str, np.ndarray]:
    arrays = {"x": drawn(40, 4)}
    return arrays if classes is None else arrays | {"labels": np.arange(40) % classes}


def test_the_report_scores_the_result_alone_where_outputs_have_other_shapes() -> None:
    report = compress(HEADS["Gemm"](), ReplaceHead(classes=6), data=samples(6)).report
    assert report.accuracy is None
    assert dict(report.agreement) == {}
    (note,) = (note for note in report.notes if "not compared" in note)
    said = "An output was [3] per sample and is [6], so the two are not compared. The result alone: top1 0."
    assert note.startswith(said)
    assert note in markdown(report)
    assert "top1" not in headline(report)


def test_without_labels_the_report_says_that_nothing_is_compared() -> None:
    for data in (None, samples(None)):
        report = compress(HEADS["Gemm"](), ReplaceHead(classes=6), data=data).report
        assert "An output was [3] per sample and is [6], so the two are not compared." in report.notes
        assert report.accuracy is None


def test_outputs_of_the_same_shape_are_compared_as_ever() -> None:
    report = compress(HEADS["Gemm"](), ReplaceHead(classes=3), data=samples(3)).report
    assert report.accuracy is not None
    assert report.accuracy.metric == "top1"


def test_a_limit_on_the_drop_is_refused_before_any_work() -> None:
    with pytest.raises(OptionError, match=r"max-drop 0\.01: replace-head gives the outputs another shape"):
        compress(
            HEADS["Gemm"](), ReplaceHead(), data=samples(2), limits=Limits(max_drop=0.01), target=Target()
        )
