"""Quantized operators: codes and values of onnxruntime, gradients where an input is a float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.torch_graph.operators import (
    dynamic_quantized,
    low_bits,
    microsoft_attention,
    quantized,
    quantized_layers,
)
from tests.torch_graph.one_node import both

DRAW = np.random.default_rng(0)
KERNELS = quantized.KERNELS | quantized_layers.KERNELS | dynamic_quantized.KERNELS | low_bits.KERNELS
KERNELS |= microsoft_attention.KERNELS


def codes(*shape: int, kind: type = np.uint8) -> np.ndarray:
    info = np.iinfo(kind)
    return DRAW.integers(info.min, info.max + 1, shape).astype(kind)


def floats(*shape: int, kind: type = np.float32) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(kind)


def steps(*shape: int) -> np.ndarray:
    return DRAW.uniform(0.01, 0.05, shape).astype(np.float32)


def at(value: int, kind: type = np.uint8) -> np.ndarray:
    return np.array(value, kind)


U, I8, MS = codes(2, 6), codes(2, 6, kind=np.int8), "com.microsoft::"
S, T, Z = steps(), steps(), at(120)
GRID = [S, Z, T, at(130)]
IMAGE, FILTERS = codes(1, 4, 5, 5), codes(6, 2, 3, 3, kind=np.int8)

EXACT: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("QuantizeLinear", [floats(3, 4), S, Z], {"at_opset": 10}),
    ("QuantizeLinear", [floats(3, 4), S], {"at_opset": 13}),
    ("QuantizeLinear", [floats(3, 4), steps(4), codes(4, kind=np.int8)], {"at_opset": 13}),
    ("QuantizeLinear", [floats(3, 4), steps(3), codes(3)], {"axis": 0, "at_opset": 19}),
    ("QuantizeLinear", [floats(3, 4), steps(3), codes(3)], {"axis": -2}),
    ("QuantizeLinear", [floats(3, 4), S / 500, at(300, np.uint16)], {}),
    ("QuantizeLinear", [floats(3, 4), S / 500], {"output_dtype": 5}),
    ("QuantizeLinear", [floats(3, 6), steps(3, 2), codes(3, 2)], {"block_size": 3}),
    ("QuantizeLinear", [floats(3, 4, kind=np.float16), np.float16(0.03).reshape(())], {"at_opset": 19}),
    (
        "QuantizeLinear",
        [np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9], np.float32), np.float32(1).reshape(())],
        {},
    ),
    ("DequantizeLinear", [U, S, Z], {"at_opset": 10}),
    ("DequantizeLinear", [U, S], {}),
    ("DequantizeLinear", [I8, steps(6), codes(6, kind=np.int8)], {"at_opset": 13}),
    ("DequantizeLinear", [codes(2, 3, kind=np.int32), steps(2)], {"axis": 0}),
    (
        "DequantizeLinear",
        [codes(2, 6, kind=np.int16), steps(2, 3), codes(2, 3, kind=np.int16)],
        {"block_size": 2},
    ),
    ("DynamicQuantizeLinear", [floats(3, 4)], {"outputs": 3}),
    ("DynamicQuantizeLinear", [np.zeros((3, 4), np.float32)], {"outputs": 3}),
    ("DynamicQuantizeLinear", [np.abs(floats(3, 4))], {"outputs": 3}),
    ("MatMulInteger", [codes(2, 3, 4), codes(4, 5)], {}),
    ("MatMulInteger", [codes(3, 4), codes(4, 5, kind=np.int8), Z, codes(5, kind=np.int8)], {"fed": 1}),
    ("ConvInteger", [IMAGE, codes(6, 4, 3, 3)], {}),
    (
        "ConvInteger",
        [IMAGE, codes(6, 2, 3, 3), Z, at(3)],
        {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1]},
    ),
    (MS + "QuantizeLinear", [floats(3, 4), S, Z], {}),
    (MS + "QuantizeLinear", [floats(3, 4), steps(3), codes(3)], {"axis": 0}),
    (MS + "DequantizeLinear", [codes(3, 4), steps(4), codes(4)], {"axis": 1}),
]
NEAR: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("QLinearMatMul", [codes(3, 4), S, Z, codes(4, 5), T, at(100), np.float32(0.9).reshape(()), at(110)], {}),
    (
        "QLinearMatMul",
        [
            codes(3, 4),
            S,
            Z,
            codes(4, 5, kind=np.int8),
            steps(5),
            codes(5, kind=np.int8) * 0,
            steps() * 9,
            at(110),
        ],
        {"fed": 3},
    ),
    ("QLinearConv", [IMAGE, S, Z, FILTERS, T, at(0, np.int8), steps() * 9, at(128)], {"group": 2}),
    (
        "QLinearConv",
        [
            IMAGE,
            S,
            Z,
            FILTERS,
            steps(6),
            np.zeros(6, np.int8),
            steps() * 9,
            at(128),
            codes(6, kind=np.int16).astype("i4"),
        ],
        {"group": 2, "auto_pad": "SAME_UPPER", "fed": 3},
    ),
    (MS + "QLinearAdd", [U, S, Z, codes(6), T, at(7), steps() * 2, at(90)], {}),
    (MS + "QLinearAdd", [I8, S, at(3, np.int8), I8, T, at(-4, np.int8), steps() * 2], {}),
    (MS + "QLinearMul", [U, S, Z, codes(6), T, at(7), steps() * 3, at(90)], {}),
    (MS + "QLinearMul", [I8, S, at(3, np.int8), I8, T, at(-4, np.int8), steps() * 2], {}),
    (MS + "QLinearSigmoid", [U, *GRID], {"fed": 1}),
    (MS + "QLinearLeakyRelu", [U, *GRID], {"fed": 1}),
    (MS + "QLinearLeakyRelu", [U, *GRID], {"fed": 1, "alpha": 0.3}),
    (MS + "QLinearSoftmax", [U, S, Z, np.float32(1 / 256).reshape(()), at(0)], {"opset": 13, "axis": -1}),
    (MS + "QLinearSoftmax", [IMAGE, S, Z, np.float32(1 / 256).reshape(()), at(0)], {"opset": 12, "axis": 1}),
    (MS + "QLinearAveragePool", [IMAGE, *GRID], {"kernel_shape": [3, 3]}),
    (
        MS + "QLinearAveragePool",
        [IMAGE, *GRID],
        {"kernel_shape": [3, 2], "channels_last": 1, "pads": [1, 0, 1, 1], "count_include_pad": 1},
    ),
    (MS + "QLinearGlobalAveragePool", [IMAGE, *GRID], {}),
    (MS + "QLinearGlobalAveragePool", [IMAGE, *GRID], {"channels_last": 1}),
    (MS + "QLinearConcat", [T, at(130), U, S, Z, codes(2, 3), steps(), at(9)], {"axis": 1}),
    (MS + "QLinearWhere", [codes(2, 6) > 99, U, S, Z, U, T, at(9), steps(), at(40)], {}),
    (MS + "QGemm", [codes(3, 4), S, Z, codes(4, 5), T, at(9), None, steps() * 9, at(128)], {}),
    (
        MS + "QGemm",
        [
            codes(4, 3),
            S,
            Z,
            codes(5, 4),
            T,
            at(9),
            codes(5, kind=np.int16).astype("i4"),
            steps() * 9,
            at(128),
        ],
        {"transA": 1, "transB": 1, "alpha": 0.5},
    ),
]


def identity(case: tuple[str, list[Any], dict[str, Any]]) -> str:
    return case[0] + "".join(f"-{key}{value}" for key, value in case[2].items())


@pytest.mark.parametrize(("operator", "inputs", "given"), EXACT, ids=map(identity, EXACT))
def test_codes_equal_those_of_onnxruntime(operator: str, inputs: list[Any], given: dict[str, Any]) -> None:
    ours, theirs = both(KERNELS, operator, inputs, **given)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize(("operator", "inputs", "given"), NEAR, ids=map(identity, NEAR))
def test_requantized_results_are_within_a_step_of_onnxruntime(
    operator: str, inputs: list[Any], given: dict[str, Any]
) -> None:
    (ours,), (theirs,) = both(KERNELS, operator, inputs, **given)
    assert ours.dtype == theirs.dtype
    assert len(np.unique(theirs)) > 2  # not all saturated
    # onnxruntime folds scales into one factor in float32: a value next to a tie may round to the other side
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_a_missing_zero_point_is_zero() -> None:
    zero = torch.zeros((), dtype=torch.uint8)
    x, scale = torch.from_numpy(U), torch.tensor(0.1)
    for operator in ("QLinearSigmoid", "QLinearLeakyRelu"):
        kernel = KERNELS[MS + operator]
        assert torch.equal(kernel(x, scale, None, scale), kernel(x, scale, zero, scale, zero))


MATRIX = codes(8, 5), steps(5), codes(5)


@pytest.mark.parametrize(
    ("operator", "inputs", "given"),
    [
        ("DynamicQuantizeMatMul", [floats(2, 3, 8), *MATRIX, floats(5)], {}),
        ("DynamicQuantizeMatMul", [floats(3, 8), MATRIX[0], S], {}),
        ("MatMulIntegerToFloat", [codes(3, 8), MATRIX[0], S, MATRIX[1], Z, MATRIX[2], floats(5)], {}),
        ("MatMulIntegerToFloat", [codes(3, 8), MATRIX[0], S, T], {}),
        ("QGemm", [codes(3, 4), S, Z, codes(4, 5), steps(5), codes(5)], {}),
        ("QAttention", [codes(2, 3, 4), codes(4, 24), floats(24), S, T, None, Z, Z], {"num_heads": 2}),
        (
            "QAttention",
            [
                codes(2, 3, 4),
                codes(4, 24),
                floats(24),
                S,
                T,
                np.array([3, 2], np.int32),
                Z,
                Z,
                floats(2, 2, 2, 5, 4),
            ],
            {"num_heads": 2, "unidirectional": 1, "outputs": 2},
        ),
    ],
)
def test_products_in_float_equal_those_of_onnxruntime(
    operator: str, inputs: list[Any], given: dict[str, Any]
) -> None:
    ours, theirs = both(KERNELS, MS + operator, inputs, **given)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            mine, other, rtol=1e-4, atol=1e-4
        )  # sums of products of size 100 in float32


def lstm_inputs(directions: int, per_channel: bool) -> list[Any]:
    scale = (directions, 16) if per_channel else (directions,)
    weights = [codes(directions, 3, 16), codes(directions, 4, 16)]
    x, bias, state = floats(5, 2, 3), floats(directions, 32), floats(directions, 2, 4)
    zeros = np.full(scale, 121, np.uint8)  # onnxruntime wants them equal
    grids = [steps(*scale) / 5, zeros, steps(*scale) / 5, zeros]
    return [x, *weights, bias, None, state, state, floats(directions, 12), *grids]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_lstm_with_quantized_weights_equals_onnxruntime(direction: str, per_channel: bool) -> None:
    inputs = lstm_inputs(2 if direction == "bidirectional" else 1, per_channel)
    ours, theirs = both(
        KERNELS, MS + "DynamicQuantizeLSTM", inputs, outputs=3, fed=1, direction=direction, hidden_size=4
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-6)


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis as bytes, low bits first."""
    parts = values.reshape(*values.shape[:-1], -1, 8 // bits).astype(np.uint32)
    return (parts << (np.arange(8 // bits) * bits)).sum(-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("bits", "zeros"),
    [
        (b, z) for b in (2, 4, 8) for z in ("none", "packed", "float") if (b, z) != (8, "float")
    ],  # not in onnxruntime
)
def test_a_product_with_packed_weights_equals_onnxruntime(bits: int, zeros: str) -> None:
    wide, high, size, blocks = 40, 6, 16, 3
    weights = DRAW.integers(0, 2**bits, (high, blocks * size))
    scales = steps(high, blocks)
    points = None
    if zeros == "packed":
        per_byte = 8 // bits
        padded = -(-blocks // per_byte) * per_byte
        points = packed(DRAW.integers(0, 2**bits, (high, padded)), bits)
    if zeros == "float":
        points = DRAW.uniform(0, 2**bits, (high, blocks)).astype(np.float32)
    inputs = [
        floats(2, 3, wide),
        packed(weights, bits).reshape(high, blocks, -1),
        scales,
        points,
        None,
        floats(high),
    ]
    if points is None:
        inputs = inputs[:3]
    (ours,), (theirs,) = both(
        KERNELS, MS + "MatMulNBits", inputs, fed=1, K=wide, N=high, bits=bits, block_size=size
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_column_may_name_its_block() -> None:
    order = torch.tensor([1] * 16 + [0] * 16)
    b, scales = torch.from_numpy(codes(4, 2, 16)), torch.tensor(steps(4, 2))
    a = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    kernel = low_bits.mat_mul_n_bits
    moved = kernel(a, b, scales, g_idx=order, K=32, N=4, bits=8, block_size=16)
    assert torch.equal(moved, kernel(a, b, scales.flip(1), K=32, N=4, bits=8, block_size=16))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("with_zeros", [False, True])
def test_a_gather_from_packed_rows_equals_onnxruntime(bits: int, with_zeros: bool) -> None:
    table = packed(DRAW.integers(0, 2**bits, (7, 64)), bits)
    zeros = [packed(DRAW.integers(0, 2**bits, (7, 4)), bits)] if with_zeros else []
    inputs = [table, np.array([[0, 6, 3]]), steps(7, 4), *zeros]
    (ours,), (theirs,) = both(
        KERNELS, MS + "GatherBlockQuantized", inputs, bits=bits, block_size=16, gather_axis=0, quantize_axis=1
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_an_index_out_of_range_gathers_zeros() -> None:
    table = torch.from_numpy(codes(3, 32))
    rows = low_bits.gather_block_quantized(
        table, torch.tensor([-1, 2, 3, -4]), torch.ones(3, 2), bits=8, block_size=16
    )
    assert torch.equal(rows[0], rows[1])
    assert not rows[2:].any()


def test_scales_of_packed_weights_and_the_other_factor_have_gradients() -> None:
    b = torch.from_numpy(codes(4, 2, 16))
    a, scales = torch.randn(2, 32, dtype=torch.double), torch.rand(4, 2, dtype=torch.double)
    assert torch.autograd.gradcheck(
        lambda x, s: low_bits.mat_mul_n_bits(x, b, s, K=32, N=4, bits=8, block_size=16),
        (a.requires_grad_(), scales.requires_grad_()),
    )


def test_a_dynamically_quantized_factor_has_the_straight_through_gradient() -> None:
    a = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    b, scale = torch.from_numpy(codes(8, 5)), torch.tensor(0.1, requires_grad=True)
    dynamic_quantized.dynamic_quantize_mat_mul(a, b, scale).sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, (b.float() * scale.detach()).sum(1).expand(3, 8))
    assert scale.grad is not None


@pytest.mark.parametrize(
    ("kernel", "arguments", "text"),
    [
        (
            low_bits.unpacked,
            {"packed": torch.zeros(1), "bits": 3},
            "Codes of 3 bits cannot be read; known: 2, 4, 8.",
        ),
        (
            low_bits.mat_mul_n_bits,
            {"a": U, "b": U, "scales": S, "K": 1, "N": 1, "block_size": 16, "weight_prepacked": 2},
            "weight_prepacked=2 is a GPU's own layout",
        ),
        (
            low_bits.gather_block_quantized,
            {
                "data": torch.zeros(2, 2),
                "indices": torch.zeros(1),
                "scales": torch.zeros(1),
                "gather_axis": -1,
            },
            "it gathers along the axis 1 of its blocks",
        ),
    ],
)
def test_layouts_that_cannot_be_read_are_refused(kernel: Any, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        kernel(**arguments)
