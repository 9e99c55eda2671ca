"""Preparation: the same numbers, the same outputs, a simpler graph, and never a larger file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from compressor import prepare as module
from compressor.equivalence import difference
from compressor.model_io import as_written, invalid_reason
from compressor.prepare import Prepared, adopt, prepare
from compressor.runtime import to_bytes

RNG = np.random.default_rng(0)


def text(source: str, opset: int = 17, **arrays: Any) -> ir.Model:
    """A model from the ONNX text of a graph, `arrays` as initializers."""
    version = 10 if opset > 18 else 8
    proto = parser.parse_model(f'<ir_version: {version}, opset_import: ["" : {opset}]> {source}')
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


def checked(model: ir.Model) -> Prepared:
    """Prepare, and check what always holds."""
    raw = to_bytes(model)
    found = prepare(model)
    assert to_bytes(model) == raw
    assert difference(model, found.model, None) is None
    assert invalid_reason(found.model) is None
    assert [v.name for v in found.model.graph.outputs] == [v.name for v in model.graph.outputs]
    names = [node.name for graph in found.model.graphs() for node in graph]
    assert all(names)
    assert len(set(names)) == len(names)
    return found


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_a_badly_exported_model_becomes_the_well_exported_one() -> None:
    model = text(
        """g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
            i = Identity(x)
            v = Transpose<perm=[3,2,0,1]>(w)
            h = Conv<pads=[1,1,1,1]>(i, v)
            b = BatchNormalization(h, gamma, beta, mean, var)
            d = Dropout(b)
            dead = Relu(d)
            r = Relu(d)
            y = Identity(r)
        }""",
        w=floats(3, 3, 4, 3).transpose(0, 1, 3, 2).copy(),
        gamma=floats(4),
        beta=floats(4),
        mean=floats(4),
        var=np.ones(4, np.float32),
    )
    found = checked(model)
    assert ops(found.model) == ["Conv", "Relu"]
    assert not found.declined


def test_preparing_twice_equals_preparing_once() -> None:
    once = prepare(text("g (float[2,3] x) => (float[2,3] y) { i = Identity(x) y = Relu(i) }")).model
    assert to_bytes(prepare(once).model) == to_bytes(once)


def test_functions_are_inlined() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[n,3] x) => (float[n,3] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }"""
    )
    found = checked(ir.from_proto(proto))
    assert ops(found.model) == ["Add"]
    assert not found.model.functions


BRANCHES = """g (float[2] x, bool c) => (float[2] y) {
    y = If(c) <
        then_branch = t () => (float[2] a) { k = Constant<value = float[2] {1.0, 2.0}>() a = Add(x, k) },
        else_branch = e () => (float[2] b) { m = Constant<value = float[2] {3.0, 4.0}>() b = Mul(x, m) }
    >
}"""


def test_constants_in_branches_are_lifted_and_the_branches_kept() -> None:
    found = checked(text(BRANCHES))
    assert ops(found.model) == ["If"]
    assert [n.op_type for g in found.model.graphs() for n in g if g is not found.model.graph] == [
        "Add",
        "Mul",
    ]


def test_initializers_stop_being_inputs() -> None:
    model = text("g (float[n,2] x, float[2] w) => (float[n,2] y) { y = Add(x, w) }", w=floats(2))
    assert [v.name for v in checked(model).model.graph.inputs] == ["x"]


def test_a_model_of_ir_version_3_may_hold_constant_nodes() -> None:
    model = text(
        "g (float[n,2] x) => (float[n,2] y) { w = Constant<value_floats=[1.0, 2.0]>() y = Add(x, w) }", 13
    )
    model.ir_version = 3
    found = checked(model)
    assert found.model.ir_version >= 4
    assert ops(found.model) == ["Add"]


def test_a_tied_weight_stays_one_weight() -> None:
    model = text(
        """g (int64[n] i) => (float[n,40] y) {
            e = Gather(w, i)
            v = Transpose<perm=[1,0]>(w)
            y = MatMul(e, v)
        }""",
        w=floats(40, 8),
    )
    found = checked(model).model
    assert sum(v.const_value.size for v in found.graph.initializers.values() if v.const_value) == 320


def test_slices_of_one_weight_are_folded_together() -> None:
    model = text(
        """g (float[n,8] x) => (float[n,8] y) {
            a = Slice(w, zero, four)
            b = Slice(w, four, eight)
            v = Concat<axis=0>(b, a)
            y = MatMul(x, v)
        }""",
        w=floats(8, 8),
        zero=np.array([0]),
        four=np.array([4]),
        eight=np.array([8]),
    )
    assert ops(checked(model).model) == ["MatMul"]


@pytest.mark.parametrize(
    "source",
    [
        "g (float[300,300] x) => (float[300,300] y) { w = ConstantOfShape(s) y = Add(x, w) }",
        "g (float[300,300] x) => (float[300,300] y) { w = Expand(one, s) y = Add(x, w) }",
        "g (float[300,300] x) => (float[300,300] y) { w = Tile(one, s) y = Add(x, w) }",
        "g (float[300,300] x) => (float[300,300] y) { p = ReduceProd<keepdims=0>(s) z = Mul(p, ten)"
        " r = Range(zero, z, ten) f = Cast<to=1>(r) m = ReduceMax<keepdims=0>(f) y = Add(x, m) }",
    ],
    ids=["ConstantOfShape", "Expand", "Tile", "Range"],
)
def test_folding_never_grows_the_file(source: str) -> None:
    constants = {"s": np.array([300, 300]), "one": np.ones((1, 1), np.float32)}
    model = text(source, **constants, zero=np.array(0), ten=np.array(10))
    found = checked(model)
    assert len(to_bytes(as_written(found.model, {}))) <= len(to_bytes(as_written(model, {})))


def test_shape_arithmetic_is_folded() -> None:
    model = text(
        """g (float[4,2,3] x) => (float[4,6] y) {
            s = Shape(x)
            a = Gather(s, one)
            b = Gather(s, two)
            p = Mul(a, b)
            t = Concat<axis=0>(minus, p)
            y = Reshape(x, t)
        }""",
        one=np.array([1]),
        two=np.array([2]),
        minus=np.array([-1]),
    )
    assert ops(checked(model).model) == ["Reshape"]


@pytest.mark.parametrize(
    ("source", "left"),
    [
        pytest.param(
            "g (float[n] x) => (float[n] y) { y = Identity(x) }", ["Identity"], id="input to output"
        ),
        pytest.param(
            "g (float[n] x) => (float[n] y, float[n] z) { y = Relu(x) z = Identity(y) }",
            ["Relu", "Identity"],
            id="two outputs of one value",
        ),
        pytest.param(
            "g (float[n] x) => (float[n] y) { h = Relu(x) y = Dropout(h) }",
            ["Relu", "Dropout"],
            id="Dropout is output",
        ),
        pytest.param(
            "g (float[n] x) => (float[n] y) { h, m = Dropout(x) f = Cast<to=1>(m) y = Add(h, f) }",
            ["Dropout", "Cast", "Add", "Shape", "ConstantOfShape"],
            id="mask in use",
        ),
    ],
)
def test_an_identity_that_carries_a_name_keeps_the_outputs(source: str, left: list[str]) -> None:
    found = checked(text(source))
    assert set(ops(found.model)) <= set(left)


def test_an_unused_mask_does_not_keep_a_dropout() -> None:
    model = text("g (float[n] x) => (float[n] y) { h, m = Dropout(x) y = Relu(h) }")
    assert ops(checked(model).model) == ["Relu"]


POOLS: dict[str, tuple[str, bool]] = {
    "kernel_shape=[6,6]": ("AveragePool", True),
    "kernel_shape=[6,6], strides=[2,2], ceil_mode=1, count_include_pad=1": ("AveragePool", True),
    'kernel_shape=[6,6], auto_pad="VALID"': ("AveragePool", True),
    'kernel_shape=[6,6], auto_pad="NOTSET", pads=[0,0,0,0], dilations=[1,1]': ("AveragePool", True),
    "kernel_shape=[6,6], pads=[1,1,1,1]": ("AveragePool", False),
    "kernel_shape=[6,6], pads=[1,1,0,0], count_include_pad=1": ("AveragePool", False),
    'kernel_shape=[6,6], auto_pad="SAME_UPPER"': ("AveragePool", False),
    "kernel_shape=[3,3], dilations=[2,2]": ("AveragePool", False),
    "kernel_shape=[3,6]": ("AveragePool", False),
    "axes=[2,3]": ("ReduceMean", True),
    "axes=[-1,-2], keepdims=1": ("ReduceMean", True),
    "axes=[-1,2], keepdims=0": ("ReduceMean", True),
    "axes=[1,2]": ("ReduceMean", False),
    "axes=[3], keepdims=0": ("ReduceMean", False),
    "keepdims=1": ("ReduceMean", False),
}


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("last", [True, False], ids=["is output", "is read"])
def test_pooling_over_the_whole_map_is_written_as_global(attributes: str, last: bool) -> None:
    op, whole = POOLS[attributes]
    opset = 19 if "dilations" in attributes else 13
    rank = 2 if "keepdims=0" in attributes and whole else 3 if "keepdims=0" in attributes else 4
    dims = ",".join(f"d{i}" for i in range(rank))
    body = f"y = {op}<{attributes}>(x)" if last else f"h = {op}<{attributes}>(x) y = Relu(h)"
    found = checked(text(f"g (float[2,4,6,6] x) => (float[{dims}] y) {{ {body} }}", opset))
    assert ("GlobalAveragePool" in ops(found.model)) == whole
    assert not found.declined


@pytest.mark.parametrize(
    ("axes", "attributes", "whole"),
    [
        ([2, 3], "", True),
        ([-1, -2], "keepdims=0", True),
        ([], "noop_with_empty_axes=1", False),
        ([], "noop_with_empty_axes=0", False),
        ([1, 2, 3], "", False),
    ],
)
def test_a_mean_with_its_axes_as_input_is_pooled_too(axes: list[int], attributes: str, whole: bool) -> None:
    dims = "a,b" if "keepdims=0" in attributes else "a,b,c,d"
    body = f"ReduceMean<{attributes}>(x, axes)" if attributes else "ReduceMean(x, axes)"
    model = text(
        f"g (float[n,4,6,h] x) => (float[{dims}] y) {{ y = {body} }}", 18, axes=np.array(axes, np.int64)
    )
    assert ("GlobalAveragePool" in ops(checked(model).model)) == whole


def test_a_mean_of_integers_or_doubles_is_left() -> None:
    for kind in ("int32", "double"):
        model = text(f"g ({kind}[2,4,6,6] x) => ({kind}[2,4,1,1] y) {{ y = ReduceMean<axes=[2,3]>(x) }}", 13)
        assert ops(checked(model).model) == ["ReduceMean"]


def test_a_quantized_model_keeps_its_pairs() -> None:
    model = text(
        """g (float[n,3] x) => (float[n,3] y) {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            v = DequantizeLinear(w, s, k)
            y = MatMul(d, v)
        }""",
        s=np.float32(0.1),
        z=np.uint8(3),
        k=np.int8(0),
        w=np.eye(3, dtype=np.int8),
    )
    expected = ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]
    assert ops(checked(model).model) == expected


def test_an_empty_tensor_is_no_obstacle() -> None:
    model = text(
        "g (float[2,3] x) => (float[2,3] y) { h = Concat<axis=1>(x, w) y = Relu(h) }",
        w=np.zeros((2, 0), np.float32),
    )
    checked(model)


def test_a_model_without_inputs_is_prepared() -> None:
    found = prepare(text("g () => (float[2] y) { y = Relu(w) }", w=floats(2)))
    assert [v.name for v in found.model.graph.outputs] == ["y"]


def test_a_step_that_changes_the_result_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(model: ir.Model) -> None:
        for value in model.graph.initializers.values():
            value.const_value = ir.tensor(np.full((2,), 7, np.float32), name=value.name)

    def unload(model: ir.Model) -> None:
        model.graph[0].op_type = "NoSuchOperator"

    steps = (module.STEPS[0], ("corrupt", corrupt), ("unload", unload), *module.STEPS[1:])
    monkeypatch.setattr(module, "STEPS", steps)
    model = text("g (float[n,2] x) => (float[n,2] y) { i = Identity(x) y = Add(i, w) }", w=floats(2))
    found = checked(model)
    assert set(found.declined) == {"prepare: corrupt", "prepare: unload"}
    assert "output 'y': differs by" in found.declined["prepare: corrupt"]
    assert "onnxruntime cannot load the model" in found.declined["prepare: unload"]
    assert ops(found.model) == ["Add"]


def test_a_model_that_does_not_run_is_left_as_it_is() -> None:
    model = text("g (float[2,2] x) => (float[2,2] y) { i = Identity(x) y = Relu(i) }")
    model.graph[1].op_type = "NoSuchOperator"
    found = prepare(model)
    assert ops(found.model) == ["Identity", "NoSuchOperator"]
    reason = "the original does not run on made-up inputs, so nothing could be compared"
    assert all(said.startswith(reason) for said in found.declined.values())


def test_sequences_and_maps_are_compared_item_by_item() -> None:
    source = """g (float[n,2] x) => (seq(float[n,2]) y) {{ h = Add(x, w) i = {op}(h) y = SequenceConstruct(i, h) }}"""
    model = text(source.format(op="Identity"), w=floats(2))
    other = text(source.format(op="Neg"), w=constant(model, "w"))
    assert "Identity" not in ops(checked(model).model)
    assert "differs by" in str(difference(model, other, None))


def constant(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("float[2,2] y) { y = Neg(x) }", "differs by"),
        ("float[2] y) { y = ReduceMax<axes=[0], keepdims=0>(x) }", "float32[2, 2] became float32[2]"),
        ("float[2,2] y) { z = Sub(x, x) y = Div(x, z) }", "other values became infinite or NaN"),
        ("float[2,2] y, float[2,2] z) { y = Relu(x) z = Neg(x) }", "1 outputs became 2"),
    ],
)
def test_says_how_two_models_differ(body: str, said: str) -> None:
    model = text("g (float[2,2] x) => (float[2,2] y) { y = Relu(x) }", 13)
    other = text(f"g (float[2,2] x) => ({body}", 13)
    assert said in str(difference(model, other, None))


def test_says_when_an_output_loses_its_name() -> None:
    model = text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    other = text("g (float[2] x) => (float[2] z) { z = Relu(x) }")
    assert difference(model, other, None) == "outputs ['y'] became ['z']"


def test_says_how_many_integers_differ() -> None:
    model = text("g (float[2,2] x) => (bool[2,2] y) { y = Greater(x, w) }", w=np.zeros(1, np.float32))
    other = text("g (float[2,2] x) => (bool[2,2] y) { y = Less(x, w) }", w=np.zeros(1, np.float32))
    assert "100.00% of the values changed" in str(difference(model, other, None))


def test_half_precision_has_a_tolerance_of_its_own() -> None:
    for factor, same in ((1.003, True), (1.03, False)):
        w, v = (np.full(2, f, np.float16) for f in (1.0, factor))
        source = "g (float16[2,2] x) => (float16[2,2] y) { y = Mul(x, w) }"
        assert (difference(text(source, w=w), text(source, w=v), None) is None) == same


def test_adopt_keeps_the_metadata_of_the_model() -> None:
    model, other = text("g (float[2] x) => (float[2] y) { y = Relu(x) }"), text(BRANCHES)
    model.metadata_props["kept"] = "yes"
    adopt(model, other)
    assert ops(model) == ["If"]
    assert model.metadata_props["kept"] == "yes"
