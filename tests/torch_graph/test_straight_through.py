"""The quantizers for training: codes of onnxruntime, gradients of the papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compressor.torch_graph.operators import quantized
from compressor.torch_graph.operators.straight_through import (
    dequantize_codes,
    fake_quantize,
    learned_fake_quantize,
    quantize_codes,
    round_ste,
)
from tests.torch_graph.one_node import both


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * 3


X = drawn(4, 6)
GRIDS: list[tuple[Tensor, Tensor | None, dict[str, int]]] = [
    (torch.tensor(0.1), None, {}),
    (torch.tensor([0.1]), torch.tensor([3], dtype=torch.int8), {}),
    (torch.rand(4) / 9 + 0.02, torch.tensor([0, 5, -9, 100], dtype=torch.int8), {"axis": 0}),
    (torch.rand(6) / 9 + 0.02, None, {"axis": -1}),
    (torch.rand(4, 2) / 9 + 0.02, torch.ones(4, 2, dtype=torch.int8), {"axis": 1, "block_size": 3}),
    (torch.rand(4, 2) / 9 + 0.02, None, {"axis": 1, "block_size": 4}),
]


@pytest.mark.parametrize(("scale", "zero", "grid"), GRIDS)
def test_values_and_codes_are_to_the_bit_those_of_the_integer_operators(
    scale: Tensor, zero: Tensor | None, grid: dict[str, int]
) -> None:
    signed = torch.zeros(scale.shape, dtype=torch.int8) if zero is None else zero
    codes = quantized.quantize_linear(X, scale, signed, **grid)
    values = quantized.dequantize_linear(codes, scale, signed, **grid)
    assert torch.equal(fake_quantize(X, scale, zero, low=-128, high=127, **grid), values)
    assert torch.equal(learned_fake_quantize(X, scale, zero, low=-128, high=127, **grid), values)
    found = quantize_codes(X, scale, zero, low=-128, high=127, **grid)
    assert torch.equal(found, codes.float())
    assert torch.equal(dequantize_codes(found, scale, zero, **grid), values)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20), st.floats(2**-10, 2, width=32))
def test_codes_are_those_of_onnxruntime(values: list[float], step: float) -> None:
    x, scale, zero = np.array(values, np.float32), np.array(step, np.float32), np.array(7, np.int8)
    _, (theirs,) = both(quantized.KERNELS, "QuantizeLinear", [x, scale, zero])
    ours = quantize_codes(*map(torch.from_numpy, (x, scale, zero)), low=-128, high=127)
    np.testing.assert_array_equal(ours.numpy(), theirs)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20))
def test_twice_equals_once(values: list[float]) -> None:
    once = fake_quantize(torch.tensor(values), torch.tensor(0.25), low=-8, high=7)
    assert torch.equal(fake_quantize(once, torch.tensor(0.25), low=-8, high=7), once)


def test_rounding_goes_to_even_and_lets_the_gradient_through() -> None:
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5], requires_grad=True)
    y = round_ste(x)
    assert y.tolist() == [-2, 0, 0, 2, 2]
    y.backward(torch.arange(5.0))
    assert torch.equal(x.grad, torch.arange(5.0))


@pytest.mark.parametrize("zero", [None, torch.tensor(2)])
def test_the_gradient_passes_inside_the_range_and_stops_outside(zero: Tensor | None) -> None:
    x = torch.tensor([-1.0, 0.2, 0.6, 5.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.5), zero, low=0, high=4).backward(torch.full((4,), 3.0))
    # -1 is the code -2 of an unsigned grid; with a zero point of 2 it is its lowest code
    assert x.grad.tolist() == [0 if zero is None else 3, 3, 3, 0]


def test_codes_have_the_gradient_of_the_division() -> None:
    x = torch.tensor([-9.0, 0.2, 9.0], requires_grad=True)
    quantize_codes(x, torch.tensor(0.5), low=-8, high=7).sum().backward()
    assert x.grad.tolist() == [0, 2, 0]


def test_codes_and_values_together_give_the_gradient_of_learned_steps_without_its_factor() -> None:
    x, scale = drawn(200), torch.tensor(0.5, requires_grad=True)
    # Between the last code and half a step beyond, the paper clips and the codes round.
    x = x[((x / 0.5).abs() < 7) | ((x / 0.5).abs() > 8.5)][:50]
    other = scale.detach().clone().requires_grad_()
    codes = quantize_codes(x, scale, low=-8, high=7)
    dequantize_codes(codes, scale).sum().backward()
    learned_fake_quantize(x, other, low=-8, high=7).sum().backward()
    torch.testing.assert_close(scale.grad / math.sqrt(50 * 7), other.grad)


@pytest.mark.parametrize(("scale", "zero", "grid"), GRIDS)
def test_a_learned_step_has_the_gradient_of_the_paper(
    scale: Tensor, zero: Tensor | None, grid: dict[str, int]
) -> None:
    step, low, high = scale.clone().requires_grad_(), -20, 20
    weights = drawn(4, 6).flip(0)
    shift = zero
    if zero is not None:
        shift = zero.clamp(-5, 5)
    learned_fake_quantize(X, step, shift, low=low, high=high, **grid).backward(weights)
    expected = paper_gradient(scale, shift, weights, grid)
    torch.testing.assert_close(step.grad, expected, rtol=1e-4, atol=1e-5)


def paper_gradient(scale: Tensor, zero: Tensor | None, upstream: Tensor, grid: dict[str, int]) -> Tensor:
    """1902.08153, equation 3 times the factor of section 2.2, element by element."""
    total = torch.zeros_like(scale).flatten()
    zeros = torch.zeros_like(scale) if zero is None else zero.float()
    share = X.numel() // scale.numel()
    for row in range(4):
        for column in range(6):
            at = cell(scale, grid, row, column)
            step, shift = scale.flatten()[at], zeros.flatten()[at]
            below, above = shift + 20, 20 - shift
            v = X[row, column] / step
            slope = v.round() - v if -below < v < above else (-below if v <= -below else above)
            total[at] += upstream[row, column] * slope / torch.sqrt(share * above)
    return total.reshape(scale.shape)


def cell(scale: Tensor, grid: dict[str, int], row: int, column: int) -> int:
    """Which scale an element has."""
    if scale.numel() == 1:
        return 0
    if "block_size" in grid:
        return row * scale.shape[1] + column // grid["block_size"]
    return row if grid["axis"] == 0 else column


@pytest.mark.parametrize("quantizer", [fake_quantize, learned_fake_quantize])
def test_a_learned_grid_passes_the_gradient_of_its_input_inside_only(quantizer: Any) -> None:
    x = torch.tensor([-9.0, 0.3, 9.0], requires_grad=True)
    quantizer(x, torch.tensor(0.5), low=-8, high=7).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]


def test_learning_the_step_finds_a_smaller_error() -> None:
    x, step = drawn(1000), torch.tensor(2.0, requires_grad=True)
    optimizer = torch.optim.SGD([step], lr=0.05)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        error = (learned_fake_quantize(x, step, low=-8, high=7) - x).square().sum()
        error.backward()
        errors.append(error.item())
        torch.nn.utils.clip_grad_value_(step, 1.0)
        optimizer.step()
    assert errors[-1] < errors[0] / 2


def test_unsigned_grids_whose_zero_point_is_the_greatest_code_still_learn() -> None:
    x, step = torch.tensor([-3.3]), torch.tensor(1.0, requires_grad=True)
    learned_fake_quantize(x, step, torch.tensor(255), low=0, high=255).sum().backward()
    torch.testing.assert_close(step.grad, torch.tensor(0.3))
