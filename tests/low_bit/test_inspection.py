"""Weights of few bits are recognized in every form, counted one by one, and their room in the file is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.inspection import inspect
from compressor.low_bit import kernel_form
from compressor.low_bit.coded_weights import coded_weights, rows_of, write
from compressor.low_bit.codes import Method
from compressor.low_bit.methods import encode
from compressor.low_bit.recognition import low_bit_weights
from compressor.measurement import size_of
from compressor.packing import Inserter, drop_unread, names_of
from compressor.pipeline import Context
from compressor.pruning.prunable import weights
from tests.conftest import build, drawn

HEADER = '<ir_version: 8, opset_import: ["" : 13]> g (float[N, 40] x) => (float[N, 8] y) '
TERNARY = np.random.default_rng(0).integers(-1, 2, (40, 8)).astype(np.int8)
SCALE = np.linspace(0.1, 0.8, 8, dtype=np.float32)


def coded(method: Method, block: int = 0) -> ir.Model:
    """x [N, 40] -> MatMul with a coded weight of 40 * 64 codes, enough to be worth packing."""
    text = HEADER.replace("[N, 8]", "[N, 64]") + "{ y = MatMul(x, w) }"
    model = ir.from_proto(build(text, w=drawn(40, 64)))
    weight = weights(model)[0]["w"]
    write(model, weight, encode(rows_of(weight, block), method), method, block)
    return model


def dequantized(codes: np.ndarray, scale: np.ndarray = SCALE, **zero: np.ndarray) -> ir.Model:
    """The same with codes of another tool, which have no mark."""
    inputs = ", ".join(("c", "s", *zero))
    text = f"{{ w = DequantizeLinear <axis = 1> ({inputs}) y = MatMul(x, w) }}"
    return ir.from_proto(build(HEADER + text, c=codes, s=scale, **zero))


def stored(model: ir.Model) -> ir.Model:
    from compressor.low_bit.storage import store

    copy = model.clone()
    store(copy, Context())
    return copy


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Method("twn"), "ternary, 2 bits, "),
        (Method("optimal"), "ternary, 2 bits, "),
        (Method("ttq"), "ternary, 2 bits, "),
        (Method("uniform", 2), "ternary, 2 bits, "),
        (Method("xnor"), "binary, 1 bit"),
        (Method("residual", 2), "binary, 2 bits"),
        (Method("uniform", 3), "uniform, 3 bits"),
        (Method("uniform", 4), "uniform, 4 bits"),
    ],
    ids=str,
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_says_what_a_weight_of_our_own_is(method: Method, words: str, packed: bool) -> None:
    plain = coded(method)
    (found,) = low_bit_weights(stored(plain) if packed else plain)
    assert (found.name, found.shape, found.parameters) == ("w", (40, 64), 40 * 64)
    assert str(found).startswith(words)
    assert [found.zeros] == [w.zeros for w in low_bit_weights(plain)]
    assert found.stored_bits is not None
    scales = 32 / 40
    assert (found.stored_bits < 7) if packed else (found.stored_bits == 8 + scales)


def test_zeros_are_a_share_of_the_weights() -> None:
    (found,) = low_bit_weights(dequantized(TERNARY))
    assert found.zeros == pytest.approx(np.mean(TERNARY == 0))
    assert str(found) == f"ternary, 2 bits, {100 * found.zeros:.0f} % zeros"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (dequantized(TERNARY), "ternary"),
        (dequantized(127 * TERNARY), "ternary"),
        (dequantized((TERNARY + np.int16(128)).astype(np.uint8), z=np.full(8, 128, np.uint8)), "ternary"),
        (dequantized((TERNARY + 1).astype(np.uint8), np.float32(0.1), z=np.array(1, np.uint8)), "ternary"),
        (dequantized(np.where(TERNARY > 0, 1, -1).astype(np.int8)), "binary, 1 bit"),
        (dequantized((TERNARY > 0).astype(np.uint8)), "binary, 1 bit"),
    ],
    ids=["int8", "scaled up", "uint8", "one zero point", "signs", "two values"],
)
def test_recognizes_codes_without_our_mark_by_their_values(model: ir.Model, words: str) -> None:
    (found,) = low_bit_weights(model)
    assert (found.name, str(found).startswith(words)) == ("c", True)


@pytest.mark.parametrize(
    "model",
    [
        dequantized(np.arange(-160, 160).clip(-127, 127).reshape(40, 8).astype(np.int8)),
        dequantized(np.full((40, 8), 3, np.int8)),
        dequantized((TERNARY + 1).astype(np.uint8)),
        ir.from_proto(build(HEADER + "{ y = MatMul(x, w) }", w=drawn(40, 8))),
    ],
    ids=["int8", "constant", "no zero in the middle", "float"],
)
def test_what_has_no_few_bits_is_not_listed(model: ir.Model) -> None:
    assert low_bit_weights(model) == []


def test_codes_with_a_scale_each_are_not_binary() -> None:
    """A depthwise 1x1 convolution scaled per channel has no codes but 127 and -127."""
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[N, 6, 4, 4] x) => (float[N, 6, 4, 4] y) '
    text += "{ w = DequantizeLinear <axis = 0> (c, s) y = Conv <group = 6> (x, w) }"
    codes = np.array([127, -127, 127, 127, -127, 127], np.int8).reshape(6, 1, 1, 1)
    assert low_bit_weights(ir.from_proto(build(text, c=codes, s=np.ones(6, np.float32)))) == []


def kernel(bits: int, codes: np.ndarray, *zero: np.ndarray) -> ir.Model:
    """MatMulNBits with codes [8, 40] in blocks of 32, the last filled up; codes from 0 on."""
    filled = np.pad(codes, ((0, 0), (0, 24))).reshape(8, 2, -1, 8 // bits)
    packed = (filled << (bits * np.arange(8 // bits))).sum(-1).astype(np.uint8)
    held = [numpy_helper.from_array(packed, "b"), numpy_helper.from_array(np.ones(16, np.float32), "s")]
    held += [numpy_helper.from_array(array, "z") for array in zero]
    node = helper.make_node(
        "MatMulNBits", ["x", *(t.name for t in held)], ["y"], K=40, N=8, bits=bits, block_size=32,
        domain="com.microsoft",
    )  # fmt: skip
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 40), ("y", 8))]
    graph = helper.make_graph([node], "g", values[:1], values[1:], held)
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))


def test_reads_the_codes_of_matmulnbits_of_any_tool() -> None:
    four = np.random.default_rng(0).integers(0, 16, (8, 40))
    (found,) = low_bit_weights(kernel(4, four))
    assert (str(found), found.shape) == ("uniform, 4 bits", (8, 40))
    assert found.zeros == pytest.approx(np.mean(four == 8))
    (found,) = low_bit_weights(kernel(2, TERNARY.T.astype(np.int64) + 2))
    assert (found.kind, found.zeros) == ("ternary", pytest.approx(np.mean(TERNARY == 0)))
    ones = np.full(8, 0b0101, np.uint8)  # two blocks a row, each with zero point 1, packed in a byte
    (found,) = low_bit_weights(kernel(2, TERNARY.T.astype(np.int64) + 1, ones))
    assert (found.kind, found.zeros) == ("ternary", pytest.approx(np.mean(TERNARY == 0)))
    (found,) = low_bit_weights(kernel(4, TERNARY.T.astype(np.int64) + 7, np.full((8, 2), 7, np.float32)))
    assert (found.kind, found.zeros) == ("ternary", pytest.approx(np.mean(TERNARY == 0)))


def test_recognizes_our_own_codes_in_matmulnbits_under_the_name_of_the_weight() -> None:
    model = coded(Method("optimal"))
    (plain,) = low_bit_weights(model)
    (weight,) = coded_weights(model)
    stored_as = kernel_form.matrix(weight)
    assert not isinstance(stored_as, str)
    kernel_form.store(Inserter(model, model.graph, weight.node, names_of(model)), weight, stored_as)
    drop_unread(model)
    assert [node.op_type for node in model.graph] == ["MatMulNBits"]
    (found,) = low_bit_weights(model)
    blocks = -(-40 // stored_as.block)
    each = stored_as.bits * stored_as.block + 32  # codes of the block, the last filled up, and its scale
    assert found.stored_bits == pytest.approx(64 * blocks * each / (40 * 64))
    assert replace(found, stored_bits=plain.stored_bits) == plain
    assert inspect(model).summary.quantized == "weights"
    assert (inspect(model).summary.parameters, inspect(model).summary.macs) == (2560, 2560)


def test_recognizes_codes_that_an_integer_operator_reads() -> None:
    text = HEADER.replace("float[N, 8]", "int32[N, 8]").replace("float[N, 40]", "uint8[N, 40]")
    model = ir.from_proto(build(text + "{ y = MatMulInteger(x, c) }", c=TERNARY))
    assert [str(w)[:7] for w in low_bit_weights(model)] == ["ternary"]


def test_a_weight_that_two_layers_read_is_listed_once() -> None:
    text = (
        HEADER.replace("[N, 8]", "[N, 40]")
        + "{ w = DequantizeLinear(c, s) h = MatMul(x, w) y = MatMul(h, w) }"
    )
    square = np.tile(TERNARY, 5)
    assert len(low_bit_weights(ir.from_proto(build(text, c=square, s=np.float32(0.1))))) == 1


def test_the_room_of_a_weight_is_all_that_it_is_computed_from() -> None:
    (found,) = low_bit_weights(dequantized(TERNARY, z=np.zeros(8, np.int8)))
    assert found.stored_bits == 8 * (TERNARY.nbytes + SCALE.nbytes + 8) / TERNARY.size


def test_what_weights_share_is_divided_among_them() -> None:
    text = (
        HEADER + "{ a = DequantizeLinear(c, s) b = DequantizeLinear(d, s) h = MatMul(x, a) y = MatMul(h, b) }"
    )
    wide, narrow = np.tile(TERNARY, 5), TERNARY
    model = ir.from_proto(build(text, c=wide, d=narrow, s=np.float32(0.1)))
    found = low_bit_weights(model)
    together = sum(w.stored_bits * w.parameters for w in found if w.stored_bits is not None)
    assert together == pytest.approx(8 * (wide.nbytes + narrow.nbytes + 4))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("block", [0, 16])
def test_packed_weights_count_as_what_they_unpack_to(block: int, packed: bool) -> None:
    """40 inputs in blocks of 16 are filled up to 42."""
    plain = coded(Method("optimal"), block)
    model = stored(plain) if packed else plain
    found = inspect(model)
    assert (found.summary.parameters, found.size.parameters) == (2560, 2560)
    zeros = round(low_bit_weights(plain)[0].zeros * 2560)
    assert (found.summary.nonzero, found.size.nonzero) == (2560 - zeros, 2560 - zeros)
    assert (found.summary.macs, found.summary.quantized) == (2560, "weights")
    assert [str(w)[:7] for w in found.low_bit] == ["ternary"]


def test_a_ternary_network_with_int8_activations_is_static() -> None:
    text = (
        HEADER
        + """{
      q = QuantizeLinear(x, a, z) d = DequantizeLinear(q, a, z)
      w = DequantizeLinear <axis = 1> (c, s) m = MatMul(d, w)
      r = QuantizeLinear(m, a, z) y = DequantizeLinear(r, a, z)
    }"""
    )
    scale, zero = np.float32(0.1), np.array(3, np.uint8)
    model = ir.from_proto(build(text, a=scale, z=zero, c=TERNARY, s=SCALE))
    assert inspect(model).summary.quantized == "static"


def test_bits_per_weight_are_those_of_all_constants() -> None:
    size = size_of(dequantized(TERNARY))
    assert size.weight_bytes == TERNARY.nbytes + SCALE.nbytes
    assert size.bits_per_weight == 8 * size.weight_bytes / TERNARY.size
    assert (
        size_of(ir.from_proto(build(HEADER + "{ y = MatMul(x, w) }", w=drawn(40, 8)))).bits_per_weight == 32
    )


def test_biases_count_as_weights_after_quantization_too() -> None:
    text = HEADER + "{ b = DequantizeLinear(i, t) w = DequantizeLinear(c, s) y = Gemm(x, w, b) }"
    bias = np.array([65536, 0, 1, 2, 3, 4, 5, 6], np.int32)
    model = ir.from_proto(build(text, c=TERNARY, s=np.float32(0.1), i=bias, t=np.float32(0.01)))
    size = size_of(model)
    assert (size.parameters, size.nonzero) == (320 + 8, np.count_nonzero(TERNARY) + 7)


def test_zeros_of_codes_are_counted_at_their_zero_point() -> None:
    size = size_of(dequantized((TERNARY + 1).astype(np.uint8), np.float32(0.1), z=np.array(1, np.uint8)))
    assert size.nonzero == np.count_nonzero(TERNARY)


def test_constants_of_bodies_and_nodes_are_bytes_of_the_file() -> None:
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[4] x) => (float[4] y) '
    text += "{ k = Constant <value = float[4] {1, 2, 3, 4}> () y = Add(x, k) }"
    assert size_of(ir.from_proto(build(text))).weight_bytes == 16
