"""The fold-batchnorm pass: what it did, what it declined, and that it checks itself."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from compressor.equivalence import difference
from compressor.model_io import invalid_reason
from compressor.pipeline import Context, Pipeline
from compressor.runtime import to_bytes
from passes.fold_batchnorm import FoldBatchnorm

RNG = np.random.default_rng(0)


def model(extra: str = "") -> ir.Model:
    source = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,6,6] x) => (float[n,3,6,6] y) {{
        h = Conv(x, w)
        b = BatchNormalization(h, gamma, beta, mean, var)
        r = Relu(b)
        {extra or "y = Identity(r)"}
    }}"""
    proto = parser.parse_model(source)
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    arrays = {"w": RNG.normal(size=(3, 3, 1, 1)), "var": np.ones(3)}
    arrays |= {name: RNG.normal(size=3) for name in ("gamma", "beta", "mean")}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()
    )
    return ir.from_proto(proto)


LONE = "y = BatchNormalization(r, gamma, beta, mean, var)"


def test_folds_and_says_so() -> None:
    before = model()
    after, pipeline, (change,) = Pipeline(FoldBatchnorm()).run(before, Context())
    assert [n.op_type for n in after.graph] == ["Conv", "Relu", "Identity"]
    assert change.touched == ("BatchNormalization_b",)
    assert change.figures == {"folded": 1}
    assert str(pipeline) == "fold-batchnorm"
    assert difference(before, after, None) is None
    assert invalid_reason(after) is None
    assert set(after.graph.initializers) == {"w_1", "w_bias"}


def test_a_normalization_behind_anything_else_stays() -> None:
    after = Pipeline(FoldBatchnorm()).run(model(LONE), Context()).model
    assert [n.op_type for n in after.graph] == ["Conv", "Relu", "BatchNormalization"]


def test_a_second_run_changes_nothing() -> None:
    once = Pipeline(FoldBatchnorm()).run(model(), Context()).model
    twice, _, (change,) = Pipeline(FoldBatchnorm()).run(once, Context())
    assert change.touched == ()
    assert to_bytes(twice) == to_bytes(once)


def test_a_result_that_differs_is_dropped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.fold_batchnorm.difference", lambda *_: "output 'y': differs")
    before = model()
    after, _, (change,) = Pipeline(FoldBatchnorm()).run(before, Context())
    assert change.declined == {"model": "output 'y': differs"}
    assert change.touched == ()
    assert to_bytes(after) == to_bytes(before)


def test_it_is_found_by_its_name() -> None:
    assert Pipeline.parse("fold-batchnorm") == Pipeline(FoldBatchnorm())


def test_every_batchnorm_that_stays_is_listed_even_without_names() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> m (float[1,2,3,3] x) => (float[1,2,3,3] y)
        <float[2] g = {1.0, 2.0}, float[2] z = {0.0, 0.5}> {
        a = Relu(x) b = BatchNormalization(a, g, z, z, g) c = Relu(b) y = BatchNormalization(c, g, z, z, g) }"""
    made = Pipeline(FoldBatchnorm()).run(ir.from_proto(onnx.parser.parse_model(text)), Context())
    assert made.changes[0].touched == ()
    assert made.changes[0].declined == dict.fromkeys("by", "no layer with weights stands alone before it")
