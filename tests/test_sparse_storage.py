from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor import Context, Pipeline
from compressor.graph import constant
from compressor.inspection import inspect
from compressor.pipeline import Change, Pass
from compressor.runtime import Session, Setup, optimized_graph, to_bytes
from compressor.sparse_storage import expand, store, stored_bytes, worthwhile
from tests.conftest import build, drawn

HEADER = '<ir_version: 8, opset_import: ["" : {opset}]>'
PRODUCT = HEADER + " g (float[N, {k}] x) => (float[N, {n}] y) {{ y = MatMul(x, w) }}"
EVERY_TYPE = (np.float32, np.float16, np.float64, np.int8, np.uint8)


def sparse(*shape: int, share: float = 0.9, seed: int = 0) -> np.ndarray:
    """Normal float32 with that share of zeros."""
    array = drawn(*shape, seed=seed)
    return np.where(np.abs(array) > np.quantile(np.abs(array), share), array, np.float32(0))


def product(weight: np.ndarray, opset: int = 13) -> ir.Model:
    """y = x w."""
    text = PRODUCT.format(opset=opset, k=weight.shape[0], n=weight.shape[1])
    return ir.from_proto(build(text, w=weight))


def size(model: ir.Model) -> int:
    return len(to_bytes(model))


@pytest.mark.parametrize("shape", [(90, 110), (91, 111), (900, 11)])
def test_a_sparse_weight_gets_smaller_and_comes_back_to_the_bit(shape: tuple[int, int]) -> None:
    weight = sparse(*shape)
    model = product(weight)
    before = size(model)
    store(model)
    assert size(model) < 0.3 * before
    onnx.checker.check_model(ir.to_proto(model))
    assert expand(model)
    assert constant(model.graph.initializers["w"]).tobytes() == weight.tobytes()
    assert [node.op_type for node in model.graph] == ["MatMul"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.7, 0.999), dtype=st.sampled_from(EVERY_TYPE))
def test_onnxruntime_unpacks_what_was_packed(seed: int, share: float, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    array = (rng.integers(-100, 100, (90, 110)) * (rng.random((90, 110)) > share)).astype(dtype)
    kind = {"f4": "float", "f2": "float16", "f8": "double", "i1": "int8", "u1": "uint8"}[
        np.dtype(dtype).str[1:]
    ]
    text = HEADER.format(opset=13) + f" g ({kind}[1] i) => ({kind}[90, 110] y, {kind}[1] o) "
    model = ir.from_proto(build(text + "{ y = Identity(w) o = Identity(i) }", w=array))
    store(model)
    made = Session(model, Setup()).run({"i": np.zeros(1, dtype)})[0]
    assert made.tobytes() == array.tobytes()


def test_says_what_a_tensor_would_take_before_it_is_stored() -> None:
    few, many = product(sparse(90, 110, share=0.95)), product(sparse(90, 110, share=0.01))
    told = stored_bytes(few.graph.initializers["w"])
    assert told is not None
    before = size(few)
    store(few)
    table = 2500  # the model's, not the tensor's
    assert size(few) < before - 90 * 110 * 4 + told + table
    assert stored_bytes(many.graph.initializers["w"]) is None


def test_negative_zero_is_a_value_of_its_own() -> None:
    weight = sparse(80, 80)
    weight[3, 5] = -0.0
    model = product(weight)
    store(model)
    expand(model)
    assert np.signbit(constant(model.graph.initializers["w"])[3, 5])


def test_codes_around_another_zero_point_are_stored_without_it() -> None:
    codes = np.where(sparse(200, 200) == 0, 128, 7).astype(np.uint8)
    text = HEADER.format(opset=13) + " g (float[N, 200] x) => (float[N, 200] y) "
    text += "{ d = DequantizeLinear(w, s, z) y = MatMul(x, d) }"
    scale, zero = np.float32(0.1).reshape(()), np.uint8(128).reshape(())
    model = ir.from_proto(build(text, w=codes, s=np.asarray(scale), z=np.asarray(zero)))
    before = size(model)
    store(model)
    assert size(model) < 0.35 * before
    assert expand(model)
    assert (constant(model.graph.initializers["w"]) == codes).all()


def test_the_graph_that_runs_is_the_dense_one() -> None:
    model = product(sparse(80, 80))
    store(model)
    assert model.graph.num_nodes() > 1
    assert [node.op_type for node in optimized_graph(model).graph] == ["MatMul"]


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(drawn(80, 80), id="without zeros"),
        pytest.param(np.zeros((8, 8), np.float32), id="too small to pay for the nodes"),
        pytest.param(sparse(64, 64, share=0.02), id="too few zeros"),
    ],
)
def test_what_would_not_get_smaller_stays(weight: np.ndarray) -> None:
    model = product(weight)
    before = size(model)
    assert not worthwhile(model)
    assert store(model).touched == ()
    assert size(model) == before
    assert not expand(model)


def test_an_output_and_a_vector_stay() -> None:
    text = (
        HEADER.format(opset=13) + " g (float[5000] x) => (float[5000] y, float[80, 80] w) { y = Add(x, b) }"
    )
    model = ir.from_proto(build(text, w=sparse(80, 80), b=np.zeros(5000, np.float32)))
    assert not worthwhile(model)


def test_storing_twice_is_storing_once() -> None:
    model = product(sparse(200, 200, share=0.99))
    store(model)
    once = to_bytes(model)
    assert not worthwhile(model)
    store(model)
    assert to_bytes(model) == once


def test_two_readers_share_what_was_stored_and_bodies_keep_theirs() -> None:
    text = (
        HEADER.format(opset=13)
        + """ g (bool c, float[N, 80] x) => (float[N, 80] y) {
        a = MatMul(x, w)
        b = MatMul(a, w)
        y = If (c) <
            then_branch = t () => (float[N, 80] p) { p = MatMul(b, w) },
            else_branch = e () => (float[N, 80] q) { q = Identity(b) }
        >
    }"""
    )
    model = ir.from_proto(build(text, w=sparse(80, 80)))
    feeds = {"c": np.array(True), "x": drawn(2, 80)}
    before = Session(model, Setup()).run(feeds)[0]
    store(model)
    assert len([node for node in model.graph if node.op_type == "CumSum"]) == 1
    np.testing.assert_array_equal(Session(model, Setup()).run(feeds)[0], before)


class Keeps(Pass):
    """Changes nothing, and asks for sparse storage or not."""

    name = "keeps"
    pack: bool | None = True

    @property
    def packs(self) -> bool | None:
        return self.pack

    def apply(self, model: ir.Model, context: Context) -> Change:
        assert [node.op_type for node in model.graph] == ["MatMul"]
        return Change()


def test_a_pipeline_stores_at_its_end_raising_the_operator_set() -> None:
    made = Pipeline(Keeps()).run(product(sparse(80, 80), opset=9), Context())
    assert made.changes[-1].touched == ("w",)
    assert made.changes[-1].recipe == "sparse storage"
    assert made.model.graph.opset_imports[""] >= 11


def test_a_stored_model_is_unpacked_for_the_passes_and_stored_again() -> None:
    stored = Pipeline(Keeps()).run(product(sparse(80, 80)), Context()).model
    made = Pipeline(Keeps(pack=None)).run(stored, Context())
    assert made.changes[-1].touched == ("w",)
    assert size(made.model) == size(stored)


def test_a_pass_can_ask_for_dense_storage_again() -> None:
    dense = product(sparse(80, 80))
    stored = Pipeline(Keeps()).run(dense, Context()).model
    made = Pipeline(Keeps(pack=False)).run(stored, Context()).model
    assert [node.op_type for node in made.graph] == ["MatMul"]
    assert size(made) > size(stored)


def test_a_pipeline_says_when_nothing_was_worth_it() -> None:
    made = Pipeline(Keeps()).run(product(drawn(80, 80)), Context())
    assert "no weight is smaller" in made.changes[-1].declined["model"]


def test_zeros_and_parameters_are_counted_as_if_they_were_stored_densely() -> None:
    dense = product(sparse(80, 80))
    stored = Pipeline(Keeps()).run(dense, Context()).model
    for a, b in ((inspect(dense), inspect(stored)),):
        assert (a.summary.parameters, a.summary.nonzero) == (b.summary.parameters, b.summary.nonzero)
        assert (a.size.parameters, a.size.nonzero, a.size.macs) == (
            b.size.parameters,
            b.size.nonzero,
            b.size.macs,
        )
        assert b.size.bytes < a.size.bytes
