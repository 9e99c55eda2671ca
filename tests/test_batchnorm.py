"""Folding into Conv, ConvTranspose and Gemm: which patterns fold, which are left, and that numbers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from compressor.batchnorm import fold
from compressor.equivalence import difference
from compressor.model_io import invalid_reason
from compressor.prepare import infer_shapes

RNG = np.random.default_rng(0)
Arrays = dict[str, np.ndarray]


def model(nodes: list[onnx.NodeProto], arrays: Arrays, shape: list[Any], dtype: Any = np.float32) -> ir.Model:
    """A graph from x of `shape` to y, shapes inferred."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()]
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    for index, node in enumerate(nodes):
        node.name = node.name or f"n{index}"
    made = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))
    infer_shapes(made)
    return made


def statistics(channels: int, dtype: Any = np.float32) -> Arrays:
    """Parameters of a BatchNormalization; gamma holds a zero and a negative number."""
    gamma = RNG.normal(size=channels)
    gamma[0], gamma[-1] = 0.0, -1.5
    parts = {"gamma": gamma, "beta": RNG.normal(size=channels), "mean": RNG.normal(size=channels)}
    return {k: v.astype(dtype) for k, v in (parts | {"var": RNG.uniform(0.5, 2, channels)}).items()}


def norm(source: str = "h", out: str = "y", **attributes: Any) -> onnx.NodeProto:
    names = [source, "gamma", "beta", "mean", "var"]
    return helper.make_node("BatchNormalization", names, [out], name="bn", **attributes)


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def check_fold(made: ir.Model, left: list[str]) -> ir.Model:
    """Fold a copy: structure, numbers and validity; returns the copy."""
    after = made.clone()
    fold(after)
    assert [node.op_type for node in after.graph] == left
    assert [v.name for v in after.graph.outputs] == [v.name for v in made.graph.outputs]
    assert difference(made, after, None) is None
    assert invalid_reason(after) is None
    return after


LAYERS: dict[str, tuple[str, tuple[int, ...], list[Any], int, dict[str, Any]]] = {
    "Conv 1d": ("Conv", (6, 4, 3), ["n", 4, 9], 6, {}),
    "Conv 2d": ("Conv", (6, 4, 3, 3), ["n", 4, 9, 9], 6, {"pads": [1, 1, 1, 1]}),
    "grouped": ("Conv", (6, 2, 3, 3), ["n", 4, 9, 9], 6, {"group": 2}),
    "depthwise": ("Conv", (4, 1, 3, 3), ["n", 4, 9, 9], 4, {"group": 4}),
    "ConvTranspose": ("ConvTranspose", (4, 6, 2, 2), ["n", 4, 5, 5], 6, {"strides": [2, 2]}),
    "grouped ConvTranspose": ("ConvTranspose", (4, 3, 2, 3), ["n", 4, 5, 5], 6, {"group": 2}),
    "Gemm": ("Gemm", (4, 6), ["n", 4], 6, {}),
    "Gemm transB": ("Gemm", (6, 4), ["n", 4], 6, {"transB": 1}),
}


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("name", LAYERS)
def test_folds_batch_normalization_into_the_layer_before_it(name: str, bias: bool) -> None:
    op, weight, shape, channels, attributes = LAYERS[name]
    arrays = {"w": floats(*weight), **statistics(channels)} | ({"b": floats(channels)} if bias else {})
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    made = model([helper.make_node(op, inputs, ["h"], **attributes), norm()], arrays, shape)
    check_fold(made, [op])


@pytest.mark.parametrize("shape", [(6,), (1, 6), ()], ids=str)
def test_folds_into_a_gemm_whatever_the_shape_of_its_bias(shape: tuple[int, ...]) -> None:
    arrays = {"w": floats(4, 6), "b": np.asarray(floats(*shape)), **statistics(6)}
    check_fold(model([helper.make_node("Gemm", ["x", "w", "b"], ["h"]), norm()], arrays, ["n", 4]), ["Gemm"])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_keeps_the_float_type_of_the_weights(dtype: Any) -> None:
    arrays = {"w": floats(4, 6, dtype=dtype), **statistics(6, dtype)}
    gemm = helper.make_node("Gemm", ["x", "w"], ["h"])
    after = check_fold(model([gemm, norm()], arrays, ["n", 4], dtype), ["Gemm"])
    assert all(v.const_value.dtype.numpy() == dtype for v in after.graph[0].inputs[1:])  # type: ignore[union-attr]


def test_a_shared_weight_is_folded_for_each_reader_apart() -> None:
    convs = [helper.make_node("Conv", ["x", "w"], [h]) for h in ("h", "k")]
    arrays = {"w": floats(4, 4, 1, 1), **statistics(4)} | {f"{k}2": v for k, v in statistics(4).items()}
    second = helper.make_node("BatchNormalization", ["k", "gamma2", "beta2", "mean2", "var2"], ["q"])
    nodes = [*convs, norm(out="p"), second, helper.make_node("Add", ["p", "q"], ["y"])]
    check_fold(model(nodes, arrays, ["n", 4, 5, 5]), ["Conv", "Conv", "Add"])


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1), (1, 6, 1, 1), (6, 1, 1)], ids=str)
def test_folds_a_constant_per_channel_operation(op: str, shape: tuple[int, ...]) -> None:
    arrays = {"w": floats(6, 4, 1, 1), "b": floats(6), "c": np.asarray(floats(*shape) + np.float32(3))}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["h"]), helper.make_node(op, ["h", "c"], ["y"])]
    check_fold(model(nodes, arrays, ["n", 4, 6, 6]), ["Conv"])


LEFT: dict[str, tuple[str, list[str], tuple[int, ...]]] = {
    "the last axis is not the channels": ("Mul", ["h", "c"], (6,)),
    "one number per position": ("Add", ["h", "c"], (1, 1, 6, 6)),
    "more axes than the output": ("Mul", ["h", "c"], (1, 1, 1, 1, 1)),
    "constant minus layer": ("Sub", ["c", "h"], ()),
    "constant over layer": ("Div", ["c", "h"], ()),
}


@pytest.mark.parametrize("why", LEFT)
def test_leaves_an_operation_that_is_not_one_number_per_channel(why: str) -> None:
    op, inputs, shape = LEFT[why]
    arrays = {"w": floats(6, 4, 1, 1), "c": np.asarray(floats(*shape))}
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node(op, inputs, ["y"])]
    check_fold(model(nodes, arrays, ["n", 4, 6, 6]), ["Conv", op])


def test_leaves_a_multiplication_that_broadcasts_one_channel_to_many() -> None:
    arrays = {"w": floats(1, 4, 1, 1), "c": floats(1, 6, 1, 1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "c"], ["y"])]
    check_fold(model(nodes, arrays, ["n", 4, 6, 6]), ["Conv", "Mul"])


def test_leaves_a_division_by_zero() -> None:
    arrays = {"w": floats(2, 4, 1, 1), "c": np.array([1, 0], np.float32).reshape(2, 1, 1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Div", ["h", "c"], ["y"])]
    check_fold(model(nodes, arrays, ["n", 4, 6, 6]), ["Conv", "Div"])


def test_leaves_a_layer_that_is_read_twice() -> None:
    arrays = {"w": floats(4, 4, 1, 1), **statistics(4)}
    conv = helper.make_node("Conv", ["x", "w"], ["h"])
    nodes = [conv, norm(out="p"), helper.make_node("Add", ["p", "h"], ["y"])]
    check_fold(model(nodes, arrays, ["n", 4, 5, 5]), ["Conv", "BatchNormalization", "Add"])


def _declined(made: ir.Model) -> str:
    folded, declined = fold(made)
    assert not folded
    return declined["bn"]


def _conv_norm(arrays: Arrays | None = None, **attributes: Any) -> ir.Model:
    found = {"w": floats(4, 4, 1, 1), **statistics(4)} | (arrays or {})
    return model([helper.make_node("Conv", ["x", "w"], ["h"]), norm(**attributes)], found, ["n", 4, 5, 5])


def test_says_why_training_mode_is_left() -> None:
    made = _conv_norm()
    list(made.graph)[1].attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    assert _declined(made) == "training mode: its statistics are those of the batch"


def test_says_why_parameters_per_position_are_left() -> None:
    made = _conv_norm()
    list(made.graph)[1].attributes["spatial"] = ir.AttrInt64("spatial", 0)
    assert _declined(made) == "spatial=0: its parameters differ per position"


def test_says_why_a_variance_of_zero_is_left() -> None:
    assert (
        _declined(_conv_norm({"var": np.zeros(4, np.float32)}, epsilon=0.0)) == "its variance is not positive"
    )


def test_says_why_computed_weights_are_left() -> None:
    nodes = [
        helper.make_node("Relu", ["w"], ["v"]),
        helper.make_node("Conv", ["x", "v"], ["h"]),
        norm(),
    ]
    made = model(nodes, {"w": floats(4, 4, 1, 1), **statistics(4)}, ["n", 4, 5, 5])
    assert _declined(made) == "the weights before it are computed in the graph"


def test_says_why_a_computed_bias_is_left() -> None:
    nodes = [
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["x", "w", "c"], ["h"]),
        norm(),
    ]
    made = model(nodes, {"w": floats(4, 4, 1, 1), "b": floats(4), **statistics(4)}, ["n", 4, 5, 5])
    assert _declined(made) == "the bias before it is computed in the graph"


def test_says_why_computed_parameters_are_left() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("Abs", ["v"], ["var"]),
        norm(),
    ]
    parts = statistics(4)
    arrays = {"w": floats(4, 4, 1, 1), **{k: v for k, v in parts.items() if k != "var"}, "v": parts["var"]}
    assert _declined(model(nodes, arrays, ["n", 4, 5, 5])) == "its parameters are not constant"


def test_says_why_a_gemm_with_alpha_is_left() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], alpha=0.5), norm()]
    made = model(nodes, {"w": floats(4, 4), **statistics(4)}, ["n", 4])
    assert _declined(made) == "a Gemm with alpha, beta or a bias per row"


def test_says_why_half_precision_weights_that_would_overflow_are_left() -> None:
    parts = {**statistics(4, np.float16), "gamma": np.full(4, 6e4, np.float16)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), norm()]
    made = model(nodes, {"w": np.full((4, 4, 1, 1), 100, np.float16), **parts}, [1, 4, 5, 5], np.float16)
    assert _declined(made) == "the weights would not fit in float16"


def test_folding_twice_equals_folding_once() -> None:
    made = _conv_norm()
    assert fold(made)[0] == ("bn",)
    assert fold(made) == ((), {})
