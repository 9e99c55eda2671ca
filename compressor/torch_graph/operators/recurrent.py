"""LSTM, GRU and RNN: torch's fused kernels where they know the variant, a loop over time where they do not.

For D directions, G gates, T steps and a batch of B: X is [T, B, I], or [B, T, I] with layout 1; W [D, G * H, I],
R [D, G * H, H], B [D, 2 * G * H], its second half R's; the states [D, B, H], or [B, D, H] with layout 1. Y is
[T, D, B, H], or [B, T, D, H] with layout 1, and zero past a sequence's length.
"""

from __future__ import annotations

from torch import Tensor

from compressor.torch_graph.operators.recurrent_cells import activations as named
from compressor.torch_graph.operators.recurrent_cells import gru_step, lstm_step, rnn_step
from compressor.torch_graph.operators.recurrent_fused import fused, fused_form
from compressor.torch_graph.operators.recurrent_layers import Layer, by_direction, looped
from compressor.torch_graph.values import Kernel

Floats = list[float] | None
_LSTM, _GRU = ["Sigmoid", "Tanh", "Tanh"], ["Sigmoid", "Tanh"]


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
    weights, states = by_direction(w, r, b), (initial_h, initial_c)
    layer = Layer("LSTM", x, weights, states, sequence_lens, direction, layout)
    form = fused_form("LSTM", layer.directions, activations, clip, input_forget=input_forget)
    if form is not None and p is None:
        return fused(layer, form)
    functions = named(activations or _LSTM * layer.directions, activation_alpha, activation_beta)
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
    layer = Layer("GRU", x, by_direction(w, r, b), (initial_h,), sequence_lens, direction, layout)
    form = fused_form("GRU", layer.directions, activations, clip, linear_before_reset=linear_before_reset)
    if form is not None:
        return fused(layer, form)
    functions = named(activations or _GRU * layer.directions, activation_alpha, activation_beta)
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
    layer = Layer("RNN", x, by_direction(w, r, b), (initial_h,), sequence_lens, direction, layout)
    form = fused_form("RNN", layer.directions, activations, clip)
    if form is not None:
        return fused(layer, form)
    # The schema's default names two activations, for whatever number of directions.
    names = (activations or ["Tanh"] * layer.directions)[: layer.directions]
    return looped(layer, rnn_step, named(names, activation_alpha, activation_beta), clip=clip)


KERNELS: dict[str, Kernel] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
