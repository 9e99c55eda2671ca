"""Casts by value and by bits, with the corners of the 8-bit floats."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

from compressor.runtime import Session
from compressor.torch_graph import table, to_torch
from compressor.torch_graph.values import to_array, to_value

X = np.array([[-2.7, -0.0, 0.4], [1.5, 2.5, 300.0]], np.float32)
WHOLE = np.array([-129, -1, 0, 1, 200, 70000], np.int64)
FLOAT8 = [
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
]
EDGES = np.array([0, 1e-9, 0.3, 447, 449, 463, 465, 57344, 61000, 62000, 1e6, np.inf, np.nan], np.float32)
EDGES = np.concatenate([EDGES, -EDGES])


def check(
    operator: str, inputs: list[np.ndarray | None], fed: int = 9, opset: int = 18, **attributes: Any
) -> None:
    """One node by torch and by onnxruntime: the first `fed` inputs are the graph's, the others its constants."""
    names = [f"x{at}" if array is not None else "" for at, array in enumerate(inputs)]
    given = [(name, array) for name, array in zip(names, inputs, strict=True) if array is not None]
    node = helper.make_node(operator, names, ["y"], **attributes)
    types = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given[:fed]
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in given[fed:]]
    result = [helper.make_empty_tensor_value_info("y")]
    graph = helper.make_graph([node], "one", types, result, constants)
    opsets = [helper.make_opsetid("", opset)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    with torch.no_grad():
        ours = to_array(to_torch(model)(*(to_value(array) for _, array in given[:fed])))
    (theirs,) = Session(model).run(dict(given[:fed]))
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # a few roundings of float32


@pytest.mark.parametrize("opset", [7, 9, 13, 19, 21])
@pytest.mark.parametrize("to", ["FLOAT", "DOUBLE", "FLOAT16", "INT32", "INT64", "INT8", "BOOL"])
def test_casts_floats_as_onnxruntime(to: str, opset: int) -> None:
    values = np.clip(X, -100, 100)  # beyond the integer's range the result is not defined
    check("Cast", [values], opset=opset, to=int(ir.DataType[to]))


@pytest.mark.parametrize("to", ["INT8", "UINT8", "INT16", "UINT16", "UINT32", "UINT64", "FLOAT", "BOOL"])
def test_casts_integers_by_dropping_their_upper_bits(to: str) -> None:
    check("Cast", [WHOLE], to=int(ir.DataType[to]))


def test_what_is_not_zero_is_true() -> None:
    check("Cast", [np.array([0, -0.0, 1e-30, np.inf, -3], np.float32)], to=int(ir.DataType.BOOL))


@pytest.mark.parametrize("kind", FLOAT8)
@pytest.mark.parametrize("saturate", [0, 1])
def test_rounds_to_8_bit_floats_as_onnx_writes(kind: ir.DataType, saturate: int) -> None:
    cast = table.kernels()["Cast"]
    ours = to_array(cast(torch.from_numpy(EDGES), to=int(kind), saturate=saturate))
    end = float(ml_dtypes.finfo(kind.numpy()).max)
    expected = (EDGES.clip(-end, end) if saturate else EDGES).astype(kind.numpy())
    np.testing.assert_array_equal(ours.astype(np.float32), expected.astype(np.float32))


def test_8_bit_floats_saturate_unless_told_otherwise() -> None:
    greatest = table.kernels()["Cast"](torch.tensor([1e6, -np.inf]), to=int(ir.DataType.FLOAT8E4M3FN))
    assert greatest.float().tolist() == [448, -448]


@pytest.mark.parametrize(
    ("mode", "saturate", "x", "expected"),
    [
        ("up", 1, 1.1, 2),
        ("up", 1, 2.0, 2),
        ("down", 1, 1.9, 1),
        ("nearest", 1, 1.4, 1),
        ("nearest", 1, 1.5, 2),
        ("up", 1, 2.0**-127, 2.0**-127),
        ("up", 1, 0.0, 2.0**-127),
        ("up", 1, np.inf, 2.0**127),
        ("up", 1, 3e38, 2.0**127),
        ("up", 1, np.nan, np.nan),
        ("nearest", 0, 0.0, np.nan),
        ("nearest", 0, np.inf, np.nan),
        ("nearest", 0, 3.3e38, np.nan),
        ("nearest", 0, 2.0**-130, np.nan),
        ("nearest", 0, 4.0, 4),
    ],
)
def test_rounds_to_powers_of_two_by_the_mode(mode: str, saturate: int, x: float, expected: float) -> None:
    to = int(ir.DataType.FLOAT8E8M0)
    ours = table.kernels()["Cast"](
        torch.tensor([x], dtype=torch.float32), to=to, saturate=saturate, round_mode=mode
    )
    np.testing.assert_equal(to_array(ours).astype(np.float64), [expected])


def test_8_bit_floats_cast_among_each_other_through_float32() -> None:
    small = torch.tensor([0.3, 448.0]).to(torch.float8_e4m3fn)
    wide = table.kernels()["Cast"](small, to=int(ir.DataType.FLOAT8E5M2))
    assert torch.equal(wide.float(), small.float().to(torch.float8_e5m2).float())
    assert table.kernels()["Cast"](small, to=int(ir.DataType.FLOAT8E4M3FN)).dtype == torch.float8_e4m3fn


def test_casts_to_the_type_of_another_tensor() -> None:
    like = table.kernels()["CastLike"]
    assert like(to_value(X), torch.zeros(1, dtype=torch.float16)).dtype == torch.float16
    assert like(torch.tensor([1e6]), torch.zeros(1).to(torch.float8_e4m3fn)).float().tolist() == [448]
    unbounded = like(torch.tensor([1e6]), torch.zeros(1).to(torch.float8_e5m2), saturate=0)
    assert unbounded.float().tolist() == [np.inf]


@pytest.mark.parametrize(("to", "kind"), [("INT32", np.int32), ("UINT32", np.uint32), ("FLOAT", np.float32)])
def test_reads_the_same_bits_as_another_type(to: str, kind: type[np.generic]) -> None:
    ours = table.kernels()["BitCast"](to_value(X), to=int(ir.DataType[to]))
    np.testing.assert_array_equal(to_array(ours), X.view(kind))


def test_gradients_pass_between_floats() -> None:
    x = torch.tensor([0.5, 1.5], requires_grad=True)
    cast = table.kernels()["Cast"]
    (cast(cast(x, to=int(ir.DataType.FLOAT16)), to=int(ir.DataType.DOUBLE)) * 3).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3]


def test_identity_gives_what_it_gets() -> None:
    check("Identity", [X])
    several = [torch.ones(1)]
    assert table.kernels()["Identity"](several) is several
