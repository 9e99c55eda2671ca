from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import DataError, OptionError
from compressor.fusion import kernels
from compressor.graph import constant, nodes
from compressor.low_bit.coded_weights import block_size, coded_weights
from compressor.low_bit.codes import Method
from compressor.low_bit.expanding import expand
from compressor.low_bit.methods import encode
from compressor.low_bit.storage import store
from compressor.opset import upgrade
from compressor.pipeline import Change, Context, Pipeline
from compressor.prepare import infer_shapes
from compressor.runtime import Session, optimized_graph, to_bytes
from compressor.weight_codes import encode as encode_table
from compressor.weight_codes import in_blocks
from passes.quantize_weights import QuantizeWeights
from tests.low_bit.networks import mlp, samples

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def build(
    made: list[onnx.NodeProto],
    weights: Mapping[str, np.ndarray | np.generic],
    x: Sequence[int | str | None],
    opset: int = 13,
    kind: int = TensorProto.FLOAT,
) -> ir.Model:
    """A model x -> y."""
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))
    infer_shapes(model)
    return model


def node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, name=f"{operator}_{outputs[-1]}", **attributes)


def matmul(opset: int = 13, x: list[int | str | None] | None = None, size: int = 64) -> ir.Model:
    return build([node("MatMul", ["x", "w"], ["y"])], {"w": normal(size, size)}, x or [None, size], opset)


def quantizer(**options: Any) -> QuantizeWeights:
    return QuantizeWeights(**options)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return Session(model).run({"x": x})[0]


def apply(model: ir.Model, **options: Any) -> tuple[ir.Model, Change]:
    """The model as it is stored, unprepared, so that nothing is folded; and what the pass itself says."""
    work = model.clone()
    expand(work)
    assert upgrade(work, QuantizeWeights.opset) is None
    change = quantizer(**options).apply(work, Context())
    store(work, Context())
    return work, change


def rounded(array: np.ndarray, axes: tuple[int, ...], bits: int) -> np.ndarray:
    """The weight that codes stand for, with a scale over all of `axes`."""
    order = (*(axis for axis in range(array.ndim) if axis not in axes), *axes)
    turned = array.transpose(order)
    rows = turned.reshape(-1, prod(array.shape[axis] for axis in axes))
    made = encode(rows, Method("uniform", bits)).decoded().reshape(turned.shape)
    return np.ascontiguousarray(made.transpose(np.argsort(order)))


def operators(model: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in nodes(model))


def replaced(model: ir.Model, weights: dict[str, np.ndarray]) -> ir.Model:
    """The float model with other weights."""
    work = model.clone()
    for name, array in weights.items():
        work.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return work


CASES = {
    "Conv": ([node("Conv", ["x", "w"], ["y"])], {"w": normal(16, 8, 3, 3)}, [1, 8, 9, 9], (1, 2, 3)),
    "ConvTranspose": (
        [node("ConvTranspose", ["x", "w"], ["y"])],
        {"w": normal(8, 16, 3, 3)},
        [1, 8, 5, 5],
        (0, 2, 3),
    ),
    "Gemm": (
        [node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        {"w": normal(32, 64), "b": normal(32)},
        [3, 64],
        (1,),
    ),
    "MatMul": ([node("MatMul", ["x", "w"], ["y"])], {"w": normal(2, 64, 32)}, [3, 64], (1,)),
    "MatMul left": ([node("MatMul", ["w", "x"], ["y"])], {"w": normal(32, 64)}, [64, 5], (1,)),
    "Gather": (
        [node("Gather", ["w", "i"], ["z"]), node("Add", ["z", "x"], ["y"])],
        {"w": normal(64, 32)},
        [32],
        (1,),
    ),
}
CASES["Gather"][1]["i"] = np.array([3, -1, 0])


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("opset", [9, 13, 21])
@pytest.mark.parametrize("case", CASES)
def test_the_folded_form_computes_with_the_decoded_weights_at_float_speed(
    case: str, opset: int, bits: int
) -> None:
    made, weights, shape, axes = CASES[case]
    model = build(made, weights, shape, opset)
    work, change = apply(model, bits=bits, form="fold")
    x = normal(*shape)
    expected = run(replaced(model, {"w": rounded(weights["w"], axes, bits)}), x)
    assert np.array_equal(run(work, x), expected)
    assert change.touched == ("w",)
    assert operators(optimized_graph(work)) == operators(optimized_graph(model))
    onnx.checker.check_model(ir.to_proto(work), full_check=True)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("columns", [60, 61, 64])
def test_blocks_have_their_own_scales(bits: int, columns: int) -> None:
    weight = normal(columns, 32) * np.geomspace(1, 100, columns, dtype=np.float32)[:, None]
    model = build([node("MatMul", ["x", "w"], ["y"])], {"w": weight}, [2, columns])
    work, change = apply(model, bits=bits, block=16, form="fold")
    size = block_size(columns, 16)
    padded = np.pad(weight.T, ((0, 0), (0, -columns % size)), mode="edge").reshape(-1, size)
    rows = encode(padded, Method("uniform", bits)).decoded().reshape(32, -1)[:, :columns]
    x = normal(2, columns)
    assert np.array_equal(run(work, x), run(replaced(model, {"w": np.ascontiguousarray(rows.T)}), x))
    assert np.square(weight - rows.T).sum() < np.square(weight - rounded(weight, (0,), bits)).sum()
    assert change.figures["tensors"] == 1
    assert operators(optimized_graph(work)) == {"MatMul": 1}


@pytest.mark.parametrize(("bits", "least"), [(8, 3.7), (4, 7.0), (3, 9.0), (2, 17.0)])
def test_the_file_shrinks(bits: int, least: float) -> None:
    model = matmul(size=256)
    work, change = apply(model, bits=bits)
    assert len(to_bytes(model)) / len(to_bytes(work)) > least
    before, after = (float(change.figures[f"weight bytes {k}"]) for k in ("before", "after"))
    assert before / after > least


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("width", [64, 50])
@pytest.mark.parametrize("indices", [[], [3], [2, None]])
def test_embedding_rows_are_unpacked_after_the_lookup_and_exact(
    bits: int, block: int, width: int, indices: list[int | None]
) -> None:
    table = normal(80, width)
    model = build([node("Gather", ["w", "x"], ["y"])], {"w": table}, indices, 13, TensorProto.INT64)
    work, change = apply(model, bits=bits, block=block)
    ids = RNG.integers(-80, 80, [4 if d is None else d for d in indices])
    coded = encode_table(in_blocks(table[:, :, None], block or width)[..., 0], (2,), bits)
    decoded = coded.decoded().reshape(80, -1)[:, :width]
    assert np.array_equal(run(work, ids), decoded[ids])
    assert change.touched == ("w",)
    held = [v.const_value for v in optimized_graph(work).graph.initializers.values()]
    assert max(t.nbytes for t in held if t is not None) < table.nbytes / 2
    onnx.checker.check_model(ir.to_proto(work), full_check=True)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(("bits", "block"), [(8, 0), (8, 32), (4, 0), (4, 32), (2, 64)])
def test_matmulnbits_computes_with_the_decoded_weights(bits: int, block: int, transposed: int) -> None:
    weight, bias, size = normal(200, 48), normal(48), block or 128
    made = [node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)]
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    model = build(made, {"w": stored, "b": bias}, [1, 200])
    work, _ = apply(model, bits=bits, block=block, form="matmulnbits")
    count = -(-200 // size)
    padded = np.pad(weight.T, ((0, 0), (0, count * size - 200))).reshape(48, count, size)
    decoded = encode_table(padded, (2,), bits, with_zero=True).decoded().reshape(48, -1)[:, :200]
    x = normal(1, 200)
    assert operators(optimized_graph(work))["MatMulNBits"] == 1
    assert work.graph.opset_imports["com.microsoft"] == 1
    # each activation is rounded to int8 with a scale of max|x| / 127 at most
    bound = np.abs(x).max() / 127 / 2 * np.abs(decoded).sum(1) * 1.01 + 1e-4
    assert np.all(np.abs(run(work, x) - (x @ decoded.T + bias))[0] <= bound)


def test_auto_takes_the_low_bit_kernel_only_for_one_large_row() -> None:
    def taken(x: list[int | str | None], size: int, bits: int = 4) -> bool:
        return operators(apply(matmul(x=x, size=size), bits=bits)[0])["MatMulNBits"] == 1

    assert taken([1, 512], 512)
    assert taken([1, 1, 512], 512, 8)
    assert not taken([1, 100], 100)


def test_products_that_disagree_about_the_layout_are_left_to_a_reason() -> None:
    made = [node("Gemm", ["x", "w"], ["a"]), node("Gemm", ["a", "w"], ["y"], transB=1)]
    work, change = apply(build(made, {"w": normal(64, 64)}, [1, 64]), form="matmulnbits")
    assert operators(work) == {"Gemm": 2}
    assert change.declined["w"] == "storing it as codes takes as much, or its readers need different layouts"


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights_are_stored_as_codes(operator: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    weights = {"w": normal(2, gates * 32, 48), "r": normal(2, gates * 32, 32)}
    made = [node(operator, ["x", "w", "r"], ["y"], hidden_size=32, direction="bidirectional")]
    model = build(made, weights, [5, 1, 48])
    work, change = apply(model, bits=4)
    decoded = {name: rounded(array, (2,), 4) for name, array in weights.items()}
    x = normal(5, 1, 48)
    assert np.array_equal(run(work, x), run(replaced(model, decoded), x))
    assert set(change.touched) == {"w", "r"}


def test_a_shared_weight_is_decoded_once_for_all_its_readers() -> None:
    made = [
        node("Gather", ["w", "i"], ["a"]),
        node("MatMul", ["x", "w"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    weights = {"w": normal(64, 64), "i": np.array([1])}
    model = build(made, weights, [2, 64])
    work, change = apply(model, bits=4)
    x = normal(2, 64)
    decoded = rounded(weights["w"], (0,), 4)
    assert np.array_equal(run(work, x), run(replaced(model, {"w": decoded}), x))
    assert operators(work)["Mul"] == 1
    assert change.touched == ("w",)


def branches(outer: bool, weight: np.ndarray | None = None) -> ir.Model:
    """y = if sum(x) > 0: x @ w else: x, with w in the body or outside."""
    array = normal(64, 64) if weight is None else weight
    held = [numpy_helper.from_array(array, "w")]
    y = [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    z = [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    then = helper.make_graph([node("MatMul", ["x", "w"], ["t"])], "then", [], y, [] if outer else held)
    other = helper.make_graph([node("Identity", ["x"], ["e"])], "else", [], z)
    weights = {"zero": np.float32(0)} | ({"w": array} if outer else {})
    made = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    return build(made, weights, [2, 64])


@pytest.mark.parametrize("outer", [True, False])
def test_weights_of_a_branch_are_stored_as_codes(outer: bool) -> None:
    array = normal(64, 64)
    model = branches(outer, array)
    work, change = apply(model, bits=4)
    decoded = branches(outer, rounded(array, (0,), 4))
    x = np.abs(normal(2, 64))
    assert change.touched == ("w",)
    assert np.array_equal(run(work, x), run(decoded, x))
    assert np.array_equal(run(work, -x), -x)
    onnx.checker.check_model(ir.to_proto(work))
    assert len(to_bytes(work)) < len(to_bytes(model)) / 2
    assert operators(optimized_graph(work)) == operators(optimized_graph(model))


def test_reports_what_it_declined_and_why() -> None:
    broken, small = normal(64, 64), normal(4, 4)
    broken[3, 3] = np.nan
    made = [
        node("MatMul", ["x", "broken"], ["a"]),
        node("MatMul", ["a", "skipped"], ["b"]),
        node("MatMul", ["b", "good"], ["c"]),
        node("Gather", ["small", "i"], ["d"]),
        node("Gather", ["thin", "i"], ["f"]),
        node("Conv", ["image", "k"], ["e"]),
        node("Identity", ["c"], ["y"]),
    ]
    weights = {"broken": broken, "skipped": normal(64, 64), "good": normal(64, 64), "small": small}
    weights |= {
        "k": normal(8, 64, 3, 3),
        "image": normal(1, 64, 3, 3),
        "thin": normal(2048, 1),
        "i": np.array([0]),
    }
    model = build(made, weights, [1, 64])
    for name in ("d", "e", "f"):
        value = next(v for n in model.graph for v in n.outputs if v.name == name)
        value.dtype = ir.DataType.FLOAT
        model.graph.outputs.append(value)
    work = model.clone()
    change = quantizer(exclude=("skip*",), ops=("MatMul", "Gather")).apply(work, Context())
    assert change.touched == ("good",)
    assert dict(change.declined) == {
        "broken": "it contains NaN or infinity",
        "skipped": "excluded",
        "small": "it has 16 elements, fewer than min_elements",
        "thin": "storing it as codes takes as much, or its readers need different layouts",
        "k": "Conv is not among ops",
    }
    assert "good" not in work.graph.initializers


def test_other_float_types_and_outputs_stay() -> None:
    model = build([node("MatMul", ["h", "w"], ["m"]), node("Cast", ["m"], ["y"], to=1)], {}, [2, 64])
    made = [
        node("Cast", ["x"], ["h"], to=10),
        node("MatMul", ["h", "w"], ["m"]),
        node("Cast", ["m"], ["y"], to=1),
    ]
    model = build(made, {"w": normal(64, 64).astype(np.float16)}, [2, 64])
    assert apply(model)[1].declined["w"] == "it is not float32"
    model = matmul()
    model.graph.outputs.append(model.graph.initializers["w"])
    assert apply(model)[1].declined["w"] == "it is an output of the model"
    assert apply(matmul(), include=("v*",))[1].declined["w"] == "no include pattern fits it"


def test_without_weights_it_says_so_and_changes_nothing() -> None:
    model = build([node("Relu", ["x"], ["y"])], {}, [2])
    before = ir.to_proto(model).SerializeToString()
    work, change = apply(model)
    assert change.declined == {"model": "no float32 weight to store as codes"}
    assert ir.to_proto(work).SerializeToString() == before


def test_twice_gives_the_same_file_and_a_second_pass_finds_nothing() -> None:
    model = matmul()
    first, second = apply(model, bits=4)[0], apply(model, bits=4)[0]
    assert to_bytes(first) == to_bytes(second)
    assert apply(first, bits=4)[1].declined["w"] == "it is quantized already: uniform 4"
    assert constant(model.graph.initializers["w"]) is not None


def test_options_are_refused_by_name_and_survive_the_text_form() -> None:
    with pytest.raises(OptionError, match=r"quantize-weights: no weights in 'Relu' of ops\. Known: .*MatMul"):
        apply(matmul(), ops=("Relu",))
    with pytest.raises(OptionError, match="option 'bits' must be one of 8, 4, 3 or 2, got 5"):
        quantizer(bits=5)
    held = Pipeline(quantizer(bits=4, block=32, exclude=("a*",)))
    assert Pipeline.parse(str(held)) == held


def calibrated(model: ir.Model) -> Context:
    return Context(calibration=samples(model), threads=1)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_compensation_and_matching_bring_the_network_nearer_to_the_original(bits: int) -> None:
    model = mlp()
    x = np.random.default_rng(7).standard_normal((64, 32)).astype(np.float32)
    expected = run(model, x)

    def error(**options: Any) -> float:
        done = Pipeline(quantizer(bits=bits, form="fold", **options)).run(model, calibrated(model))
        return float(np.linalg.norm(Session(done.model).run({"x": x})[0] - expected))

    assert error(reconstruct="gptq") < error()
    assert bits == 4 or error(match_outputs=True) < error()


def test_int8_activations_make_integer_kernels_of_the_codes() -> None:
    model = mlp()
    done = Pipeline(quantizer(bits=3, activations="int8")).run(model, calibrated(model))
    assert kernels(done.model).floating == ()
    assert done.changes[1].figures["quantized"] == 3


def test_a_sensitive_layer_gets_more_bits(tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    file.write_text(json.dumps({"layers": {"w2": {"bits": {"8": 0.0, "2": 0.5}}}}))
    work = mlp()
    change = quantizer(bits=2, sensitivity=str(file)).apply(work, Context())
    assert {found.name: str(found.method) for found in coded_weights(work)} == {
        "w1": "uniform 2",
        "w2": "uniform 8",
        "w3": "uniform 2",
    }
    assert change.figures["more bits"] == "w2 8 bits: too sensitive"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"form": "matmulnbits", "bits": 3},
            "MatMulNBits takes 2, 4 or 8 bits, got bits=3; give form='fold'",
        ),
        (
            {"form": "matmulnbits", "reconstruct": "gptq"},
            "form='matmulnbits' rounds each weight by itself; leave out reconstruct='gptq'",
        ),
        ({"form": "matmulnbits", "sensitivity": "f.json"}, "leave out sensitivity='f.json'"),
        ({"block": 32, "activations": "int8"}, "block=32 gives an output channel several scales"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        quantizer(**options)


def test_samples_and_files_are_asked_for_before_anything_is_done() -> None:
    with pytest.raises(DataError, match="quantize-weights: match_outputs=True needs calibration samples"):
        Pipeline(quantizer(match_outputs=True)).run(matmul(), Context())
    with pytest.raises(OptionError, match=r"there is no file 'none\.json'"):
        Pipeline(quantizer(sensitivity="none.json")).run(matmul(), Context())
