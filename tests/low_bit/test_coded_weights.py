"""Codes in a graph: every layout of a weight, the view of it in which rows share a scale, and back."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compressor.low_bit.coded_weights import (
    KEY,
    block_size,
    coded_value,
    coded_weights,
    rewrite,
    rows_of,
    write,
)
from compressor.low_bit.codes import Codes, Method
from compressor.low_bit.methods import encode
from compressor.packing import names_of
from compressor.prepare import prepare
from compressor.pruning.prunable import weights
from compressor.runtime import Session, Setup, to_bytes
from tests.conftest import build, drawn

UNIFORM = Method("uniform", 8)
HEAD = '<ir_version: 8, opset_import: ["" : 13]>\ng '


def model(signature: str, body: str, **arrays: np.ndarray) -> ir.Model:
    return ir.from_proto(build(f"{HEAD}{signature} {{ {body} }}", **arrays))


CASES = {
    "Conv": ("(float[1,8,5,5] x) => (float[1,6,3,3] y)", "y = Conv(x, w)", (6, 8, 3, 3), (6, 72), True),
    "Conv, grouped": (
        "(float[1,8,5,5] x) => (float[1,6,3,3] y)",
        "y = Conv <group = 2> (x, w)",
        (6, 4, 3, 3),
        (6, 36),
        True,
    ),
    "ConvTranspose": (
        "(float[1,8,5,5] x) => (float[1,6,7,7] y)",
        "y = ConvTranspose(x, w)",
        (8, 6, 3, 3),
        (6, 72),
        True,
    ),
    "ConvTranspose, grouped": (
        "(float[1,8,5,5] x) => (float[1,6,7,7] y)",
        "y = ConvTranspose <group = 2> (x, w)",
        (8, 3, 3, 3),
        (6, 36),
        False,
    ),
    "Gemm": ("(float[3,8] x) => (float[3,6] y)", "y = Gemm(x, w)", (8, 6), (6, 8), True),
    "Gemm, transB": (
        "(float[3,8] x) => (float[3,6] y)",
        "y = Gemm <transB = 1> (x, w)",
        (6, 8),
        (6, 8),
        True,
    ),
    "MatMul": ("(float[3,8] x) => (float[3,6] y)", "y = MatMul(x, w)", (8, 6), (6, 8), True),
    "MatMul, left": ("(float[8,3] x) => (float[6,3] y)", "y = MatMul(w, x)", (6, 8), (6, 8), True),
    "MatMul, several": (
        "(float[2,3,8] x) => (float[2,3,6] y)",
        "y = MatMul(x, w)",
        (2, 8, 6),
        (12, 8),
        False,
    ),
    "MatMul of a turned weight": (
        "(float[3,8] x) => (float[3,6] y)",
        "t = Transpose(w) y = MatMul(x, t)",
        (6, 8),
        (6, 8),
        True,
    ),
    "LSTM": (
        "(float[4,1,8] x) => (float[4,1,1,6] y)",
        "y = LSTM <hidden_size = 6> (x, w, r)",
        (1, 24, 8),
        (24, 8),
        True,
    ),
    "LSTM, both directions": (
        "(float[4,1,8] x) => (float[4,2,1,6] y)",
        'y = LSTM <hidden_size = 6, direction = "bidirectional"> (x, w, r)',
        (2, 24, 8),
        (48, 8),
        False,
    ),
}


def case(name: str) -> ir.Model:
    signature, body, shape, _, _ = CASES[name]
    arrays = {"w": drawn(*shape)}
    if "LSTM" in body:
        arrays["r"] = drawn(shape[0], 24, 6, seed=1)
    return model(signature, body, **arrays)


def replaced(float_model: ir.Model, name: str, array: np.ndarray) -> ir.Model:
    work = float_model.clone()
    work.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return work


def run(one: ir.Model) -> np.ndarray:
    feeds = {str(v.name): drawn(*v.shape.numpy(), seed=5) for v in one.graph.inputs if v.shape is not None}
    return Session(one, Setup(integers=False)).run(feeds)[0]


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("name", CASES)
def test_layers_read_what_the_codes_stand_for(name: str, block: int) -> None:
    original, work = case(name), case(name)
    weight = weights(work)[0]["w"]
    rows = rows_of(weight, block)
    coded = write(work, weight, encode(rows, UNIFORM), UNIFORM, block)
    decoded, array = coded.decoded(), original.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    half = float(coded.rows().scale.max()) / 2
    np.testing.assert_allclose(decoded, array, atol=half * (1 + 2**-20))
    assert np.array_equal(run(work), run(replaced(original, "w", decoded)))
    onnx.checker.check_model(ir.to_proto(work), full_check=True)


@pytest.mark.parametrize("name", CASES)
def test_rows_are_the_outputs_of_the_layer(name: str) -> None:
    _, _, shape, rows, in_place = CASES[name]
    work = case(name)
    weight = weights(work)[0]["w"]
    assert rows_of(weight).shape == rows
    coded = write(work, weight, encode(rows_of(weight), UNIFORM), UNIFORM)
    assert coded.in_place == in_place
    assert coded.codes.shape == (shape if in_place else rows)
    assert coded.rows().codes.shape == rows
    assert coded.scale.shape == rows[:1]


def test_the_rows_of_a_convolution_run_as_the_stored_weight_does() -> None:
    work = case("Conv")
    weight = weights(work)[0]["w"]
    assert np.array_equal(rows_of(weight), weight.array.reshape(6, -1))
    coded = write(work, weight, made := encode(rows_of(weight), UNIFORM), UNIFORM)
    assert np.array_equal(coded.rows().codes, made.codes)


@pytest.mark.parametrize(
    ("inputs", "block", "size"), [(576, 32, 32), (147, 32, 21), (37, 32, 19), (16, 32, 16), (64, 0, 64)]
)
def test_blocks_divide_the_inputs_or_are_of_even_size(inputs: int, block: int, size: int) -> None:
    assert block_size(inputs, block) == size


def test_blocks_that_do_not_divide_the_inputs_are_filled_up_and_cut_again() -> None:
    work = model("(float[3,37] x) => (float[3,6] y)", "y = MatMul(x, w)", w=drawn(37, 6))
    weight = weights(work)[0]["w"]
    rows = rows_of(weight, 32)
    assert rows.shape == (12, 19)
    assert np.array_equal(rows.reshape(6, 38)[:, 37], weight.array[36])
    original = work.clone()
    coded = write(work, weight, encode(rows, UNIFORM), UNIFORM, 32)
    assert coded.decoded().shape == (37, 6)
    assert np.array_equal(run(work), run(replaced(original, "w", coded.decoded())))


def test_the_weight_keeps_its_name_and_the_order_that_it_was_written_in() -> None:
    work = model(
        "(float[3,8] x) => (float[3,8] y)", "a = MatMul(x, v) y = MatMul(a, w)", v=drawn(8, 8), w=drawn(8, 8)
    )
    names = names_of(work)
    for weight in weights(work)[0].values():
        write(work, weight, encode(rows_of(weight), Method("twn")), Method("twn"), 0, names)
    assert [coded.name for coded in coded_weights(work)] == ["v", "w"]
    assert [coded.codes.name for coded in coded_weights(work)] == ["v_codes", "w_codes"]
    assert set(work.graph.initializers) == {"v_codes", "v_scale", "w_codes", "w_scale"}


def test_names_that_are_taken_are_not_taken_twice() -> None:
    work = model(
        "(float[3,8] x) => (float[3,8] y)",
        "a = MatMul(x, w) y = MatMul(a, w_codes)",
        w=drawn(8, 8),
        w_codes=drawn(8, 8),
    )
    for weight in weights(work)[0].values():
        write(work, weight, encode(rows_of(weight), UNIFORM), UNIFORM)
    assert [coded.name for coded in coded_weights(work)] == ["w", "w_codes"]
    onnx.checker.check_model(ir.to_proto(work), full_check=True)


def test_a_weight_in_a_body_is_coded_in_the_body() -> None:
    text = f"""{HEAD}(float[2,4] x, bool c) => (float[2,4] y) {{
      y = If (c) <
        then_branch = g1 () => (float[2,4] t) <float[4,4] w = {{{",".join(str(i - 7.5) for i in range(16))}}}>
          {{ t = MatMul(x, w) }},
        else_branch = g2 () => (float[2,4] e) {{ e = Identity(x) }}
      >
    }}"""
    work = ir.from_proto(onnx.parser.parse_model(text))
    weight = weights(work)[0]["w"]
    write(work, weight, encode(rows_of(weight), UNIFORM), UNIFORM)
    (coded,) = coded_weights(work)
    assert coded.node.graph is not work.graph
    onnx.checker.check_model(ir.to_proto(work), full_check=True)


def test_codes_are_known_again_in_a_file_and_behind_preparation() -> None:
    work = case("ConvTranspose, grouped")
    weight = weights(work)[0]["w"]
    before = write(work, weight, encode(rows_of(weight), Method("ttq")), Method("ttq")).decoded()
    again = ir.from_proto(onnx.load_from_string(to_bytes(work)))
    for found in (again, prepare(again).model):
        (coded,) = coded_weights(found)
        assert coded.method == Method("ttq")
        assert coded.name == "w"
        assert np.array_equal(coded.decoded(), before)


def test_other_dequantized_values_are_no_coded_weights() -> None:
    work = case("Gemm")
    weight = weights(work)[0]["w"]
    coded = write(work, weight, encode(rows_of(weight), UNIFORM), UNIFORM)
    assert coded_value(coded.value) is not None
    assert coded_value(work.graph.inputs[0]) is None
    assert coded_value(None) is None
    del coded.node.metadata_props[KEY]
    assert coded_weights(work) == []
    assert coded_value(coded.value) is None


def test_codes_can_be_rewritten_in_place() -> None:
    work = case("MatMul")
    weight = weights(work)[0]["w"]
    coded = write(work, weight, encode(rows_of(weight), UNIFORM), UNIFORM)
    codes, scale = encode(drawn(6, 8, seed=9), Method("optimal"))
    rewrite(coded, Codes(codes, scale), Method("optimal"))
    (found,) = coded_weights(work)
    assert found.method == Method("optimal")
    assert np.array_equal(found.rows().codes, codes)
    assert np.array_equal(found.decoded(), (codes * scale[:, None]).T)
