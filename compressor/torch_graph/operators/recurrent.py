"""LSTM, GRU and RNN: torch's fused kernels where they know the variant, a loop over time where they do not.

For D directions, G gates, T steps and a batch of B: X is [T, B, I], or [B, T, I] with layout 1; W [D, G * H, I],
R [D, G * H, H], B [D, 2 * G * H], its second half R's; the states [D, B, H], or [B, D, H] with layout 1. Y is
[T, D, B, H], or [B, T, D, H] with layout 1, and zero past a sequence's length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compressor.torch_graph.operators.recurrent_cells import activations as named
from compressor.torch_graph.operators.recurrent_cells import gru_step, lstm_step, rnn_step
from compressor.torch_graph.operators.recurrent_layers import Layer, fused, looped
from compressor.torch_graph.values import Kernel

Floats = list[float] | None
_LSTM, _GRU = ["sigmoid", "tanh", "tanh"], ["sigmoid", "tanh"]


def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: list[int] | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: Floats = None,
    activation_beta: Floats = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Long short-term memory -> Y, Y_h, Y_c; gates in the order i, o, f, c."""
    layer = Layer("LSTM", x, w, r, b, (initial_h, initial_c), sequence_lens, direction, layout)
    names = _lower(activations) or _LSTM * layer.directions
    if names == _LSTM * layer.directions and p is None and not clip and not input_forget:
        return fused(layer, torch.lstm, _ifco)
    functions = named(names, activation_alpha, activation_beta)
    return looped(layer, lstm_step, functions, peepholes=p, clip=clip, switch=bool(input_forget))


def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: list[int] | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Floats = None,
    activation_beta: Floats = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    linear_before_reset: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Gated recurrent unit -> Y, Y_h; gates in the order z, r, h. Only `linear_before_reset` has a fused form."""
    layer = Layer("GRU", x, w, r, b, (initial_h,), sequence_lens, direction, layout)
    names = _lower(activations) or _GRU * layer.directions
    if names == _GRU * layer.directions and linear_before_reset and not clip:
        return fused(layer, torch.gru, _rzn)
    functions = named(names, activation_alpha, activation_beta)
    return looped(layer, gru_step, functions, clip=clip, switch=bool(linear_before_reset))


def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: list[int] | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Floats = None,
    activation_beta: Floats = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """The simple recurrent layer H' = f(W x + R H) -> Y, Y_h."""
    layer = Layer("RNN", x, w, r, b, (initial_h,), sequence_lens, direction, layout)
    # The schema's default names two activations, for whatever number of directions.
    names = (_lower(activations) or ["tanh"] * layer.directions)[: layer.directions]
    kernels = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
    if len(set(names)) == 1 and names[0] in kernels and not clip:
        return fused(layer, kernels[names[0]], _as_is)
    return looped(layer, rnn_step, named(names, activation_alpha, activation_beta), clip=clip)


def _lower(names: Sequence[str] | None) -> list[str]:
    return [name.lower() for name in names or ()]


def _ifco(weight: Tensor) -> Tensor:
    """The rows i, o, f, c of ONNX as torch's i, f, c, o: a copy each way, no zero-filled gradients."""
    i, o, f, c = weight.chunk(4)
    return torch.cat((i, f, c, o))


def _rzn(weight: Tensor) -> Tensor:
    z, r, n = weight.chunk(3)
    return torch.cat((r, z, n))


def _as_is(weight: Tensor) -> Tensor:
    return weight


KERNELS: dict[str, Kernel] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
