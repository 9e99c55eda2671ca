from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compressor.errors import ModelError
from compressor.torch_graph.attributes import schema_defaults
from compressor.torch_graph.operators import host_arithmetic, host_indexing, host_reductions, host_shaping

TABLES = [module.HOST_KERNELS for module in (host_arithmetic, host_indexing, host_reductions, host_shaping)]
KERNELS = {name: kernel for table in TABLES for name, kernel in table.items()}
OPSET = 18
FAR = 2**40


def reference(operator: str, inputs: list[Any], outputs: int, **attributes: Any) -> list[Any]:
    """What ONNX's own evaluator gives."""
    names = ["" if array is None else f"x{at}" for at, array in enumerate(inputs)]
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    node = helper.make_node(operator, names, [f"y{at}" for at in range(outputs)], **attributes)
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feeds.items()
    ]
    wanted = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in node.output]
    graph = helper.make_graph([node], "one", given, wanted)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    return list(ReferenceEvaluator(model).run(None, feeds))


def agrees(operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> None:
    """The kernel's numbers and their Python types are those of the reference's tensors."""
    kernel = KERNELS[operator]
    names = kernel.__kwdefaults__ or {}
    named = schema_defaults(onnx.defs.get_schema(operator, OPSET)) | attributes | {"outputs": outputs}
    named = {name: value for name, value in named.items() if name in names or name in attributes}
    named = {
        name: numpy_helper.to_array(v).tolist() if hasattr(v, "raw_data") else v for name, v in named.items()
    }
    host = [None if array is None else array.tolist() for array in inputs]
    result = kernel(*host, **named)
    expected = reference(operator, list(inputs), outputs, **attributes)
    for mine, other in zip(result if outputs > 1 else [result], expected, strict=True):
        assert mine == other.tolist()
        assert same_types(mine, other.tolist())


def same_types(mine: Any, other: Any) -> bool:
    if isinstance(other, list):
        return isinstance(mine, list) and all(map(same_types, mine, other))
    return type(mine) is type(other)


def arrays(kind: type, *shapes: tuple[int, ...], least: int = -6) -> st.SearchStrategy[list[np.ndarray]]:
    def drawn(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
        numbers = st.integers(least, 6)
        if kind is np.float32:  # thousandths: no subnormal numbers, which sizes never are
            numbers = st.integers(1000 * least, 6000).map(lambda thousandths: thousandths / 1000)
        return st.lists(numbers, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
            lambda values: np.array(values, kind).reshape(shape)
        )

    return st.tuples(*map(drawn, shapes)).map(list)


SHAPES = st.sampled_from(
    [
        ((), ()),
        ((3,), ()),
        ((), (3,)),
        ((3,), (1,)),
        ((1,), (4,)),
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((0,), (1,)),
    ]
)
NUMERIC = ("Add", "Sub", "Mul", "Min", "Max", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")


@pytest.mark.parametrize("operator", NUMERIC)
@settings(max_examples=25)
@given(shapes=SHAPES, kind=st.sampled_from([np.int64, np.float32]), data=st.data())
def test_combines_numbers_as_tensors_are_combined(
    operator: str, shapes: Any, kind: type, data: st.DataObject
) -> None:
    agrees(operator, *data.draw(arrays(kind, *shapes)))


@pytest.mark.parametrize("operator", ["Div", "Mod", "Pow"])
@settings(max_examples=25)
@given(shapes=SHAPES, data=st.data())
def test_divides_integers_as_tensors_are_divided(operator: str, shapes: Any, data: st.DataObject) -> None:
    dividend = data.draw(arrays(np.int64, shapes[0]))[0]
    divisor = data.draw(arrays(np.int64, shapes[1], least=1))[0]
    agrees(operator, dividend, divisor)
    if operator != "Pow":
        agrees(operator, dividend, -divisor)
    if operator == "Mod":
        agrees(operator, dividend, -divisor, fmod=1)


@settings(max_examples=50)
@given(arrays(np.float32, (3,), (3,), least=1), st.sampled_from(["Add", "Sub", "Mul", "Div"]))
def test_floats_are_rounded_as_float32(given_: list[np.ndarray], operator: str) -> None:
    agrees(operator, *given_)


def test_the_floor_of_a_scaled_size_is_that_of_float32() -> None:
    scale = np.array([0.7], np.float32).tolist()
    assert host_arithmetic.floor(host_arithmetic.multiply([10.0], scale)) == [7.0]


@pytest.mark.parametrize("operator", ["And", "Or"])
@given(shapes=SHAPES, data=st.data())
def test_combines_truth_values(operator: str, shapes: Any, data: st.DataObject) -> None:
    agrees(operator, *(array > 0 for array in data.draw(arrays(np.int64, *shapes))))


@given(shapes=SHAPES, data=st.data())
def test_chooses_where_a_condition_holds(shapes: Any, data: st.DataObject) -> None:
    a, b = data.draw(arrays(np.int64, *shapes))
    agrees("Where", a > 0, b, a)
    agrees("Not", a > 0)


@pytest.mark.parametrize("operator", ["Neg", "Abs", "Floor", "Ceil", "Round", "Identity"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
@settings(max_examples=20)
@given(data=st.data())
def test_maps_floats(operator: str, shape: tuple[int, ...], data: st.DataObject) -> None:
    agrees(operator, *data.draw(arrays(np.float32, shape)))
    if operator in ("Neg", "Abs", "Identity"):
        agrees(operator, *data.draw(arrays(np.int64, shape)))


def test_rounds_halves_to_even() -> None:
    agrees("Round", np.array([0.5, 1.5, -2.5], np.float32))


@given(arrays(np.float32, (3,), least=0))
def test_takes_roots_and_powers_of_floats(inputs: list[np.ndarray]) -> None:
    agrees("Sqrt", *inputs)
    agrees("Pow", *inputs, np.array(2.0, np.float32))


@pytest.mark.parametrize("to", [TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.BOOL])
@given(st.data())
def test_casts(to: int, data: st.DataObject) -> None:
    for kind in (np.int64, np.float32):
        agrees("Cast", *data.draw(arrays(kind, (3,))), to=to)
    agrees("Cast", np.array([True, False]), to=to)


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceProd", "ReduceMin", "ReduceMax"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((), None), ((4,), None), ((4,), [0]), ((2, 3), None), ((2, 3), [0]), ((2, 3), [-1]), ((2, 3), [1, 0])],
)
@settings(max_examples=10)
@given(keepdims=st.booleans(), data=st.data())
def test_reduces(
    operator: str, shape: Any, axes: list[int] | None, keepdims: bool, data: st.DataObject
) -> None:
    x = data.draw(arrays(np.int64, shape))[0]
    given_axes = [] if axes is None else [np.array(axes)]
    agrees(operator, x, *given_axes, keepdims=int(keepdims))
    agrees(operator, x, *given_axes)


def test_reduces_nothing_when_told_so() -> None:
    assert host_reductions.reduce_sum([1, 2], noop_with_empty_axes=1) == [1, 2]


def test_the_product_of_no_sizes_is_one() -> None:
    assert host_reductions.reduce_product([], keepdims=0) == 1


V, M = np.arange(5) * 3, np.arange(6).reshape(2, 3)
NUMBERS = np.array
STRUCTURAL: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Gather", [V, NUMBERS(-1)], {}),
    ("Gather", [V, NUMBERS([0, -2])], {}),
    ("Gather", [V, NUMBERS([[0, -2]])], {}),
    ("Gather", [M, NUMBERS(1)], {"axis": -1}),
    ("Gather", [M, NUMBERS([1, 0])], {}),
    ("Concat", [V, V[:1], V[:0]], {"axis": 0}),
    ("Concat", [M, M[:, :1]], {"axis": -1}),
    ("Slice", [V, NUMBERS([1]), NUMBERS([FAR])], {}),
    ("Slice", [V, NUMBERS([-2]), NUMBERS([-FAR]), NUMBERS([0]), NUMBERS([-2])], {}),
    ("Slice", [M, NUMBERS([0, 1]), NUMBERS([1, 3]), NUMBERS([0, -1])], {}),
    ("Unsqueeze", [NUMBERS(3), NUMBERS([0])], {}),
    ("Unsqueeze", [V, NUMBERS([-1])], {}),
    ("Unsqueeze", [NUMBERS(3), NUMBERS([1, 0])], {}),
    ("Squeeze", [V[:1]], {}),
    ("Squeeze", [M[:1], NUMBERS([0])], {}),
    ("Squeeze", [M[:, :1], NUMBERS([-1])], {}),
    ("Reshape", [V[:1], NUMBERS([], np.int64)], {}),
    ("Reshape", [NUMBERS(2), NUMBERS([-1])], {}),
    ("Reshape", [M, NUMBERS([-1])], {}),
    ("Reshape", [M, NUMBERS([0, -1])], {}),
    ("Reshape", [np.arange(6), NUMBERS([3, 2])], {}),
    ("Reshape", [V[:0], NUMBERS([0])], {"allowzero": 1}),
    ("Transpose", [V], {}),
    ("Transpose", [M], {}),
    ("Transpose", [M], {"perm": [0, 1]}),
    ("Expand", [NUMBERS(2), NUMBERS([3])], {}),
    ("Expand", [V[:1], NUMBERS([2, 3])], {}),
    ("Expand", [V, NUMBERS([1])], {}),
    ("Tile", [V, NUMBERS([2])], {}),
    ("Tile", [M, NUMBERS([2, 3])], {}),
    ("Range", [NUMBERS(1), NUMBERS(8), NUMBERS(3)], {}),
    ("Range", [NUMBERS(8), NUMBERS(1), NUMBERS(-3)], {}),
    ("Range", [NUMBERS(3), NUMBERS(1), NUMBERS(1)], {}),
    ("Range", [np.float32(0.5), np.float32(2), np.float32(0.3)], {}),
    ("ConstantOfShape", [NUMBERS([3])], {}),
    ("ConstantOfShape", [NUMBERS([], np.int64)], {}),
    ("ConstantOfShape", [NUMBERS([2, 2])], {"value": numpy_helper.from_array(NUMBERS([-1]))}),
    ("ScatterElements", [V, NUMBERS([1, -1]), NUMBERS([7, 8])], {}),
    ("ScatterElements", [M, NUMBERS([[1, 0]]), NUMBERS([[7, 8]])], {"axis": 1}),
    ("ScatterElements", [M, NUMBERS([[1, 0, 1]]), NUMBERS([[7, 8, 9]])], {"reduction": "add"}),
    ("ScatterND", [V, NUMBERS([[1], [3]]), NUMBERS([7, 8])], {}),
    ("ScatterND", [M, NUMBERS([[1]]), NUMBERS([[7, 8, 9]])], {"reduction": "max"}),
    ("ScatterND", [M, NUMBERS([[1, 2]]), NUMBERS([7])], {"reduction": "mul"}),
    ("Shape", [M], {}),
    ("Shape", [M], {"start": -1, "end": 5}),
    ("Size", [M], {}),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes"), STRUCTURAL)
def test_arranges_lists_as_tensors_are_arranged(
    operator: str, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    agrees(operator, *map(np.asarray, inputs), **attributes)


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [([V, NUMBERS([3, 2])], {}), ([M], {"axis": 1, "num_outputs": 2}), ([M], {"num_outputs": 2})],
)
def test_splits(inputs: list[np.ndarray], attributes: dict[str, Any]) -> None:
    agrees("Split", *inputs, outputs=2, **attributes)


def test_one_part_of_a_split_is_no_list_of_parts() -> None:
    assert host_indexing.split([1, 2], num_outputs=1) == [1, 2]


def test_every_kernel_has_a_test_here() -> None:
    shown = {case[0] for case in STRUCTURAL} | {
        *NUMERIC,
        "Split",
        "Div",
        "Mod",
        "Pow",
        "And",
        "Or",
        "Where",
        "Not",
    }
    shown |= {"Neg", "Abs", "Floor", "Ceil", "Round", "Identity", "Sqrt", "Cast", "Scatter"}
    assert set(KERNELS) == shown | {"ReduceSum", "ReduceProd", "ReduceMin", "ReduceMax"}
    assert KERNELS["Scatter"] is KERNELS["ScatterElements"]


def test_reads_the_shape_of_a_tensor() -> None:
    x = torch.ones(2, 3, 4)
    assert host_shaping.shape(x, start=-2) == [3, 4]
    assert host_shaping.size(x) == 24


def test_refuses_a_shape_of_another_number_of_elements() -> None:
    with pytest.raises(
        ModelError, match=r"puts 2 elements into the shape \[3\]; give the model inputs of the shapes"
    ):
        host_shaping.reshape([1, 2], [3])


def test_refuses_to_combine_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer than argument 1"):
        host_arithmetic.add([1, 2], [1, 2, 3])


def test_refuses_to_squeeze_more_than_one_element() -> None:
    with pytest.raises(ValueError, match="too many values"):
        host_shaping.squeeze([1, 2], [0])


def chain(x: torch.Tensor) -> torch.Tensor:
    """What exporters write for x.reshape(batch, -1), twice the length by a float scale, and a broadcast."""
    sizes = host_shaping.shape(x)
    batch = host_shaping.unsqueeze(host_indexing.gather(sizes, 0), [0])
    rest = host_reductions.reduce_product(host_indexing.slice_(sizes, [1], [FAR]), keepdims=1)
    flat = x.reshape(host_shaping.concat(batch, rest, axis=0))
    length = host_arithmetic.cast(host_arithmetic.multiply(host_arithmetic.cast(rest, to=1), 2.0), to=7)
    length = host_arithmetic.divide(host_arithmetic.add(length, 1), 2)
    wanted = host_arithmetic.where(
        host_arithmetic.equal([-1, 1], -1), host_shaping.concat(batch, length, axis=0), [1, 1]
    )
    return flat + torch.ones(host_arithmetic.maximum(wanted, 1))


def test_one_compiled_program_serves_every_size() -> None:
    programs = []

    def backend(module: Any, _: Any) -> Any:
        programs.append(module)
        return module.forward

    compiled = torch.compile(chain, backend=backend, fullgraph=True, dynamic=True)
    for batch, length in ((3, 5), (4, 5), (7, 6)):
        x = torch.randn(batch, length, 2)
        assert torch.equal(compiled(x), x.flatten(1) + 1)
    assert len(programs) == 1


def test_exports_with_a_free_batch() -> None:
    class Chain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return chain(x)

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Chain(), (torch.randn(3, 4, 2),), dynamic_shapes=({0: batch},))
    x = torch.randn(9, 4, 2)
    assert torch.equal(program.module()(x), x.flatten(1) + 1)
