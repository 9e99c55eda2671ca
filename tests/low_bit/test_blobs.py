"""Codes become digits of words and come back, in onnxruntime and in numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.graph import add_initializer
from compressor.low_bit.blobs import write
from compressor.low_bit.digits import MOST_LEVELS, bits, packing, word
from compressor.low_bit.folding import folded
from compressor.packing import Inserter, codes_per_byte, drop_unread, pack
from compressor.runtime import Session, Setup, optimized_graph

CODEBOOKS = (
    (-1, 0, 1),
    (-1, 1),
    (-3, -1, 1, 3),
    tuple(range(-3, 4)),
    tuple(range(-7, 8)),
    (-127, 0, 99),
    (5,),
)


def holding(**tensors: np.ndarray) -> ir.Model:
    """A model that gives its constants, one output each, and its input."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((1,)))
    graph = ir.Graph([x], [x], nodes=[], name="g", opset_imports={"": 13})
    for name, array in tensors.items():
        node = ir.node("Identity", [add_initializer(graph, name, array)], name=f"{name}_given")
        node.outputs[0].name = f"{name}_out"
        node.outputs[0].type = ir.TensorType(ir.DataType(ir.tensor(array).dtype))
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    last = ir.node("Identity", [x], name="x_given")
    last.outputs[0].name, last.outputs[0].type = "x_out", x.type
    graph.append(last)
    graph.outputs[0] = last.outputs[0]
    return ir.Model(graph, ir_version=8)


def packed(model: ir.Model, axes: dict[str, int]) -> bool:
    """Pack the named constants, those with the same levels together; False if one of them is not worth it."""
    names = {str(value.name) for value in model.graph.initializers.values()}
    tensors = {name: model.graph.initializers[name] for name in axes}
    found = {name: packing(value.const_value.numpy(), axes[name]) for name, value in tensors.items()}
    if None in found.values():
        return False
    for levels in {made.levels for made in found.values()}:
        group = [name for name, made in found.items() if made.levels == levels]
        place = Inserter(model, model.graph, model.graph[0], names)
        write(place, [(tensors[name], found[name]) for name in group], [axes[name] for name in group])
    drop_unread(model)
    return True


def values_read(model: ir.Model) -> list[np.ndarray | None]:
    known: dict[ir.Value, np.ndarray | None] = {}
    return [folded(node.inputs[0], known) for node in model.graph if node.name.endswith("_given")]


@settings(max_examples=60, deadline=None)
@given(
    codebook=st.sampled_from(CODEBOOKS),
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple),
    data=st.data(),
    unsigned=st.booleans(),
)
def test_codes_come_back_whatever_their_levels_and_shape(
    codebook: tuple[int, ...], shape: tuple[int, ...], data: st.DataObject, unsigned: bool
) -> None:
    axis, seed = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    codes = rng.choice(codebook, (50 // np.prod(shape) + 1, *shape)).astype(np.int8)
    codes = np.concatenate([codes] * 6).view(np.uint8 if unsigned else np.int8)  # enough to be worth it
    model = holding(w=codes, v=codes[:, ::-1] if codes.ndim > 1 else codes)
    if packed(model, {"w": axis + 1, "v": 0}):
        assert all(node.op_type != "Constant" for node in model.graph)
        for found, array in zip(values_read(model), (codes, codes[:, ::-1]), strict=False):
            assert found is not None
            assert found.dtype == array.dtype
            assert np.array_equal(found, array)


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_onnxruntime_unpacks_the_same_codes_at_load_and_not_later(codebook: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.choice(codebook, shape).astype(np.int8) for shape in ((40, 33), (64, 3, 3, 3), (501, 2))]
    model = holding(a=arrays[0], b=arrays[1], c=arrays[2])
    assert packed(model, {"a": 0, "b": 0, "c": 1})
    outputs = Session(model, Setup(threads=1)).run({"x": np.zeros(1, np.float32)})
    for found, array in zip(outputs[1:], arrays, strict=True):
        assert found.dtype == np.int8
        assert np.array_equal(found, array)
    assert {node.op_type for node in optimized_graph(model).graph} <= {"Identity"}


@pytest.mark.parametrize(
    ("shape", "axis"), [((40, 200), 0), ((200, 40), 1), ((30, 40, 3, 3), 1), ((40, 5, 9), 0)]
)
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_rows_with_levels_of_their_own_are_packed_with_a_table(
    shape: tuple[int, ...], axis: int, kind: type
) -> None:
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(-127, 128, (shape[axis], 3)), axis=1)
    moved = (shape[axis], *np.delete(shape, axis))
    digits = rng.integers(0, 3, (shape[axis], int(np.prod(moved[1:]))))
    codes = (
        np.moveaxis(np.take_along_axis(rows, digits, 1).reshape(moved), 0, axis).astype(np.int8).view(kind)
    )
    made = packing(codes, axis)
    assert made is not None
    assert made.rows is not None
    assert made.nbytes < 0.4 * codes.nbytes
    model = holding(w=codes)
    packed(model, {"w": axis})
    assert np.array_equal(values_read(model)[0], codes)
    assert np.array_equal(Session(model).run({"x": np.zeros(1, np.float32)})[1], codes)


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param(np.arange(-120, 120, dtype=np.int8).reshape(12, 20), id="every code another"),
        pytest.param(np.ones((2, 5), np.int8), id="fewer codes than the nodes take"),
        pytest.param(np.ones((0, 5), np.int8), id="no codes"),
    ],
)
def test_codes_that_packing_would_not_make_smaller_are_left_alone(codes: np.ndarray) -> None:
    assert packing(codes, 0) is None


def test_tensors_with_the_same_levels_lie_in_one_blob() -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (30, 60)).astype(np.int8)
    model = holding(a=codes, b=-codes, c=codes[:7])
    packed(model, {"a": 0, "b": 0, "c": 0})
    assert sum(node.op_type == "Split" for node in model.graph) == 1
    stored = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.UINT8]
    assert [value.const_value.size for value in stored] == [-(-(2 * codes.size + 7 * 60) // 5)]


def test_the_word_is_the_one_that_holds_codes_in_fewer_bits() -> None:
    for levels in range(2, MOST_LEVELS + 1):
        in_bytes, in_pairs = 8 / codes_per_byte(levels), 16 / codes_per_byte(levels, 2**16)
        assert bits(levels) == min(in_bytes, in_pairs) >= np.log2(levels)
        assert word(levels) is (np.uint8 if in_bytes == in_pairs else np.uint16)


def test_two_byte_words_hold_five_codes_of_seven_levels() -> None:
    made = pack(np.array([1, 2, 3, 4, 5, 6], np.uint8), 7, np.uint16)
    assert made.tolist() == [1 + 2 * 7 + 3 * 49 + 4 * 343 + 5 * 2401, 6]


def test_what_an_input_decides_has_no_constant_value() -> None:
    model = holding()
    assert folded(model.graph.inputs[0], {}) is None
    assert folded(model.graph.outputs[0], {}) is None
    assert folded(None, {}) is None
