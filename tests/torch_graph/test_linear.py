"""Matrix products against onnxruntime, and the cost of Gemm against nn.Linear's."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.errors import ModelError
from compressor.torch_graph.operators.linear import fused_gemm, gemm, matmul
from tests.conftest import drawn
from tests.torch_graph.one_node import agree

WHOLE = np.arange(12, dtype=np.int32).reshape(3, 4)


class Calls(TorchDispatchMode):
    """The names of the torch operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
@pytest.mark.parametrize(("trans_a", "trans_b"), [*product([0, 1], repeat=2)])
def test_gemm_transposes_and_scales_as_onnxruntime(opset: int, trans_a: int, trans_b: int) -> None:
    a, b = drawn(*((4, 3) if trans_a else (3, 4))), drawn(*((5, 4) if trans_b else (4, 5)), seed=1)
    agree("Gemm", [a, b, drawn(5)], at_opset=opset, transA=trans_a, transB=trans_b)
    agree("Gemm", [a, b, drawn(5)], at_opset=opset, transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)


@pytest.mark.parametrize("shape", [(5,), (1,), (3, 1), (1, 5), (3, 5)])
def test_the_third_input_of_gemm_broadcasts(shape: tuple[int, ...]) -> None:
    agree("Gemm", [drawn(3, 4), drawn(4, 5), drawn(*shape)])
    agree("Gemm", [drawn(3, 4), drawn(5, 4), drawn(*shape)], transB=1)


def test_gemm_needs_no_third_input_and_takes_integers() -> None:
    agree("Gemm", [drawn(3, 4), drawn(4, 5)])
    agree("Gemm", [drawn(3, 4), drawn(4, 5)], alpha=3.0)
    ones = torch.ones(2, 3, dtype=torch.int32)
    assert gemm(ones, ones, ones[:, :2], alpha=2.0, transB=1).tolist() == [[7, 7], [7, 7]]
    wide = ones.to(torch.uint32)
    assert gemm(wide, wide, transB=1).dtype == torch.uint32


def test_gemm_runs_what_linear_runs() -> None:
    x, weight, bias = torch.randn(2, 4), torch.randn(3, 4), torch.randn(3)
    turned = weight.t().contiguous()
    with Calls() as ours:
        gemm(x, weight, bias, alpha=1.0, beta=1.0, transA=0, transB=1)
    with Calls() as native:
        torch.nn.functional.linear(x, weight, bias)
    with Calls() as untransposed:
        gemm(x, turned, bias, alpha=1.0, beta=1.0, transA=0, transB=0)
    assert ours.names == native.names
    assert untransposed.names == ["aten.addmm"]


@pytest.mark.parametrize(
    "shapes",
    [((3,), (3,)), ((3,), (2, 3, 4)), ((2, 3, 4), (4,)), ((3, 4), (4, 2)), ((2, 1, 3, 4), (5, 4, 2))],
)
def test_matmul_broadcasts_as_onnxruntime(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    agree("MatMul", [drawn(*shapes[0]), drawn(*shapes[1])], at_opset=9)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
def test_matmul_of_integers(dtype: Any) -> None:
    agree("MatMul", [WHOLE.astype(dtype), WHOLE.T.astype(dtype)])


def test_matmul_of_unsigned_integers_wraps() -> None:
    most = torch.tensor([[2**32 - 1]], dtype=torch.int64).to(torch.uint32)
    assert matmul(most, most).to(torch.int64).item() == 1


@pytest.mark.parametrize(
    "equation", ["ij,jk->ik", "ij,jk", " i j , j k -> k i ", "...j,jk->...k", "ij,kj->", "ii,ij"]
)
def test_einsum_as_onnxruntime(equation: str) -> None:
    agree("Einsum", [drawn(4, 4), drawn(4, 4, seed=1)], equation=equation)


@pytest.mark.parametrize(("trans_a", "trans_b", "batch_a", "batch_b"), [*product([0, 1], repeat=4)])
def test_fused_matmul_moves_axes_as_onnxruntime(
    trans_a: int, trans_b: int, batch_a: int, batch_b: int
) -> None:
    def shaped(rows: int, columns: int, transposed: int, batch_inside: int) -> np.ndarray:
        first, last = (columns, rows) if transposed else (rows, columns)
        return drawn(first, 2, 3, last) if batch_inside else drawn(2, 3, first, last)

    agree(
        "com.microsoft::FusedMatMul",
        [shaped(4, 5, trans_a, batch_a), shaped(5, 6, trans_b, batch_b)],
        transA=trans_a,
        transB=trans_b,
        transBatchA=batch_a,
        transBatchB=batch_b,
        alpha=0.5,
    )


def test_fused_matmul_without_attributes_and_of_a_vector() -> None:
    agree("com.microsoft::FusedMatMul", [drawn(3, 4), drawn(4, 5)])
    agree("com.microsoft::FusedMatMul", [drawn(4), drawn(4, 5)], transA=1)


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [
        ("Relu", {}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("LeakyRelu", {"activation_alpha": 0.3}),
        ("Elu", {"activation_alpha": 0.3}),
        ("ThresholdedRelu", {"activation_alpha": 0.3}),
        ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.6}),
    ],
)
def test_fused_gemm_activates_as_onnxruntime(activation: str, parameters: dict[str, float]) -> None:
    inputs = [drawn(3, 4), drawn(5, 4), drawn(5)]
    agree("com.microsoft::FusedGemm", inputs, activation=activation, transB=1, alpha=0.5, **parameters)


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(ModelError, match=r"activation 'Rleu', which is not known\. Did you mean 'Relu'\?"):
        fused_gemm(torch.ones(1, 1), torch.ones(1, 1), activation="Rleu")
