"""The optimize pass: the preparation, reported."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import parser

from compressor import prepare as module
from compressor.equivalence import difference
from compressor.model_io import invalid_reason
from compressor.pipeline import Context, Pipeline
from compressor.runtime import to_bytes
from passes.optimize import Optimize


def model() -> ir.Model:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,6,6] x) => (float[n,3,1,1] y) {
            i = Identity(x)
            d = Dropout(i)
            y = ReduceMean<axes=[2,3]>(d)
        }"""
    )
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return ir.from_proto(proto)


def test_simplifies_and_reports_what_went() -> None:
    before = model()
    after, pipeline, (change,) = Pipeline(Optimize()).run(before, Context())
    assert [n.op_type for n in after.graph] == ["GlobalAveragePool"]
    assert set(change.touched) == {"Identity_i", "Dropout_d", "ReduceMean_y"}
    assert change.figures == {"nodes before": 3, "nodes after": 1}
    assert not change.declined
    assert str(pipeline) == "optimize"
    assert difference(before, after, None) is None
    assert invalid_reason(after) is None


def test_a_second_run_changes_nothing() -> None:
    once = Pipeline(Optimize()).run(model(), Context()).model
    twice, _, (change,) = Pipeline(Optimize()).run(once, Context())
    assert change.touched == ()
    assert to_bytes(twice) == to_bytes(once)


def test_a_step_that_breaks_the_model_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(broken: ir.Model) -> None:
        broken.graph[-1].op_type = "Neg"
        broken.graph[-1].attributes.clear()

    monkeypatch.setattr(module, "STEPS", (("corrupt", corrupt), *module.STEPS))
    after, _, (change,) = Pipeline(Optimize()).run(model(), Context())
    assert list(change.declined) == ["prepare: corrupt"]
    assert [n.op_type for n in after.graph] == ["GlobalAveragePool"]


def test_it_is_found_by_its_name() -> None:
    assert Pipeline.parse("optimize") == Pipeline(Optimize())


def test_the_input_model_stays_as_it_was() -> None:
    before = model()
    raw = to_bytes(before)
    Pipeline(Optimize()).run(before, Context())
    assert to_bytes(before) == raw
