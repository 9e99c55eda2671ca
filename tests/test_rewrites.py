"""MatMul + Add as Gemm: the same numbers, or left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from compressor.equivalence import difference
from compressor.model_io import invalid_reason
from compressor.prepare import infer_shapes
from compressor.rewrites import matmul_add_to_gemm

RNG = np.random.default_rng(0)


def made(shape: list[Any], bias: np.ndarray, first: bool = False, dtype: Any = np.float32) -> ir.Model:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = RNG.normal(size=(4, 6)).astype(dtype)
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in (("w", weight), ("b", bias.astype(dtype)))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Add", ["b", "h"] if first else ["h", "b"], ["y"], name="sum"),
    ]
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
    infer_shapes(model)
    return model


def rewrite(model: ir.Model) -> ir.Model | None:
    after = model.clone()
    done = matmul_add_to_gemm(after.graph, after.graph[0])
    if done is None:
        assert [n.op_type for n in after.graph] == [n.op_type for n in model.graph]
        return None
    assert done.op_type == "Gemm"
    return after


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("first", [False, True], ids=["bias second", "bias first"])
@pytest.mark.parametrize("lead", [["n"], [3], [2, 3], ["n", 3], ["n", "t"], ["n", "t", 2]], ids=str)
def test_writes_the_same_function_as_a_gemm(lead: list[Any], first: bool, dtype: Any) -> None:
    model = made([*lead, 4], RNG.normal(size=6), first, dtype)
    after = rewrite(model)
    assert after is not None
    assert not {"MatMul", "Add"} & {n.op_type for n in after.graph}
    assert [v.name for v in after.graph.outputs] == ["y"]
    assert difference(model, after, None) is None
    assert invalid_reason(after) is None


def test_takes_a_bias_with_a_leading_axis_of_one() -> None:
    model = made(["n", 4], RNG.normal(size=(1, 6)))
    after = rewrite(model)
    assert after is not None
    assert difference(model, after, None) is None


@pytest.mark.parametrize(
    ("shape", "bias"),
    [
        pytest.param(["n", 4], np.zeros((1, 1, 6)), id="the bias adds an axis"),
        pytest.param([6, 4], np.zeros((6, 1)), id="one number per row"),
        pytest.param(["n", 4], np.zeros(1), id="one number"),
        pytest.param(["n", 4], np.zeros(()), id="a scalar"),
        pytest.param([4], np.zeros(6), id="a vector times a matrix"),
        pytest.param([0, 3, 4], np.zeros(6), id="no rows"),
        pytest.param(None, np.zeros(6), id="unknown rank"),
    ],
)
def test_leaves_what_a_gemm_would_change(shape: Any, bias: np.ndarray) -> None:
    assert rewrite(made(shape, bias)) is None


def test_leaves_integers_which_gemm_does_not_take() -> None:
    assert rewrite(made(["n", 4], np.ones(6), dtype=np.int32)) is None


def test_leaves_a_product_that_is_read_twice_or_is_an_output() -> None:
    model = made(["n", 4], np.ones(6))
    model.graph.outputs.append(model.graph[0].outputs[0])
    assert rewrite(model) is None


def test_a_scalar_bias_behind_one_column_does_no_harm() -> None:
    model = made(["n", 4], np.ones(()))
    model.graph.initializers["w"].const_value = ir.tensor(np.ones((4, 1), np.float32), name="w")
    model.graph.initializers["w"].shape = ir.Shape([4, 1])
    after = rewrite(model)
    assert after is None or difference(model, after, None) is None
