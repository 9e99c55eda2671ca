"""Products of float inputs, quantized on the way, with quantized weights.

The inputs get the straight-through gradient, and so do the scales of the weights and the biases.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.torch_graph.operators.grids import decoded, dynamic_grid
from compressor.torch_graph.operators.recurrent_cells import activations as named
from compressor.torch_graph.operators.recurrent_cells import lstm_step
from compressor.torch_graph.operators.recurrent_layers import Layer, by_direction, looped
from compressor.torch_graph.operators.straight_through import fake_quantize
from compressor.torch_graph.values import Kernel


def dynamically_quantized(x: Tensor) -> Tensor:
    """x on the 256 levels between its own extremes (zero included), with the straight-through gradient."""
    scale, zero_point = dynamic_grid(x)
    return fake_quantize(x, scale, zero_point, low=0, high=255)


def dynamic_quantize_mat_mul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """a @ b with a quantized by its own range; b's grid per tensor or per column."""
    product = dynamically_quantized(a) @ decoded(b, b_scale, b_zero_point, axis=-1)
    return product if bias is None else product + bias


def mat_mul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """a @ b in float; the grids per tensor or per column."""
    left = decoded(a, a_scale, a_zero_point, axis=-1)
    product = left @ decoded(b, b_scale, b_zero_point, axis=-1)
    return (product if bias is None else product + bias).to(a_scale.dtype)


def dynamic_quantize_lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: list[int] | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero_point: Tensor,
    r_scale: Tensor,
    r_zero_point: Tensor,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[Tensor, ...]:
    """LSTM with quantized weights W [D, I, 4 * H] and R [D, H, 4 * H]; x and each hidden state by their own range.

    Their scales and zero points are [D] or [D, 4 * H].
    """
    weights = by_direction(_weights(w, w_scale, w_zero_point), _weights(r, r_scale, r_zero_point), b)
    layer = Layer("DynamicQuantizeLSTM", x, weights, (initial_h, initial_c), sequence_lens, direction, 0)
    names = activations or ["Sigmoid", "Tanh", "Tanh"] * layer.directions
    functions = named(names, activation_alpha, activation_beta)
    return looped(
        layer, lstm_step, functions, peepholes=p, clip=clip, switch=bool(input_forget), linear=_dynamic_linear
    )


def _dynamic_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(dynamically_quantized(x), weight, bias)


def _weights(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Codes [D, K, 4 * H] as the float weights [D, 4 * H, K] of LSTM."""
    scale, zero_point = (grid.reshape(len(codes), 1, -1) for grid in (scale, zero_point))
    return ((codes.int() - zero_point.int()) * scale).transpose(1, 2)


KERNELS: dict[str, Kernel] = {
    "com.microsoft::DynamicQuantizeLSTM": dynamic_quantize_lstm,
    "com.microsoft::DynamicQuantizeMatMul": dynamic_quantize_mat_mul,
    "com.microsoft::MatMulIntegerToFloat": mat_mul_integer_to_float,
}
