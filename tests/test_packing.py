from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compressor.graph import constant
from compressor.packing import (
    Inserter,
    at_start,
    codes_per_byte,
    head,
    look_up,
    lookup_table,
    names_of,
    pack,
    reshaped,
    unpack,
)
from compressor.runtime import Session, optimized_graph

LEVELS = (2, 3, 4, 5, 16, 256)


def _adds(opset: int, length: int) -> ir.Model:
    """y = x + w with w of `length` zeros."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"], name="add")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [length])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [length])],
        [onnx.numpy_helper.from_array(np.zeros(length, np.float32), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.from_proto(made)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_byte_holds_as_many_codes_as_fit_and_not_one_more(levels: int) -> None:
    per = codes_per_byte(levels)
    assert levels**per <= 256 < levels ** (per + 1)


@given(st.sampled_from(LEVELS), st.integers(0, 40), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_unpacking_gives_back_what_was_packed(levels: int, length: int, rows: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, levels, (rows, length)).astype(np.uint8)
    packed = pack(codes, levels)
    assert packed.shape == (rows, -(-length // codes_per_byte(levels)))
    assert np.array_equal(unpack(packed, levels, length), codes)


@pytest.mark.parametrize(("levels", "kind"), [(16, TensorProto.UINT4), (4, TensorProto.UINT2)])
def test_powers_of_two_lie_in_the_bit_order_of_onnx(levels: int, kind: int) -> None:
    codes = np.arange(8, dtype=np.uint8) % levels
    stored = helper.make_tensor("t", kind, [8], pack(codes, levels).tobytes(), raw=True)
    assert np.array_equal(onnx.numpy_helper.to_array(stored).astype(np.uint8), codes)


def test_the_table_says_what_each_byte_stands_for() -> None:
    table = lookup_table((-3, -1, 1, 3))
    assert table.shape == (256, 4)
    assert table.dtype == np.int8
    assert table[0b11_10_01_00].tolist() == [-3, -1, 1, 3]


@pytest.mark.parametrize("opset", [7, 9, 13, 21])
@pytest.mark.parametrize(
    ("values", "length"), [((-1, 1), 16), ((-1, 0, 1), 16), ((-3, -1, 1, 3), 15), (tuple(range(-7, 9)), 9)]
)
def test_onnxruntime_unpacks_the_same_codes_and_only_at_load(
    opset: int, values: tuple[int, ...], length: int
) -> None:
    model = _adds(opset, length)
    weight = model.graph.initializers["w"]
    codes = np.random.default_rng(0).integers(0, len(values), length).astype(np.uint8)
    place = at_start(model, weight, names_of(model))
    bytes_of = place.constant("w_packed", pack(codes, len(values)))
    digits = reshaped(place, look_up(place, bytes_of, values, "w"), (-1,), "w_digits")
    whole = head(place, digits, 0, length, "w_codes")
    weight.replace_all_uses_with(place.add("Cast", [whole], "real", to=int(ir.DataType.FLOAT)))
    onnx.checker.check_model(ir.to_proto(model))
    (got,) = Session(model).run({"x": np.zeros(length, np.float32)})
    assert np.array_equal(got, np.asarray(values, np.float32)[codes])
    assert [node.op_type for node in optimized_graph(model).graph] == ["Add"]


def test_new_names_never_collide_and_equal_constants_are_stored_once() -> None:
    model = _adds(13, 4)
    place = Inserter(model, model.graph, model.graph[0], names_of(model))
    assert [place.fresh(name) for name in ("x", "add", "new", "new")] == ["x_1", "add_1", "new", "new_1"]
    once = place.shared("c", np.array([1, 2]))
    assert place.shared("c", np.array([1, 2])) is once
    other = place.shared("c", np.array([3]))
    assert other is not once
    assert np.array_equal(np.asarray(constant(other)), [3])
