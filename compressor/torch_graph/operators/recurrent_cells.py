"""One step of each recurrent cell, written out, and the loop over time: for what the fused kernels do not know.

That is activations other than the default, clipping, peepholes, coupled gates, GRU's reset before the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.errors import ModelError, did_you_mean

Activation = Callable[[Tensor], Tensor]
Linear = Callable[[Tensor, Tensor, Tensor], Tensor]
Step = Callable[..., tuple[Tensor, ...]]
"""The gates' share of one input [B, G * H] and the states [B, H], the hidden state first -> the next states."""

_ALPHA = {
    "affine": 1.0,
    "leakyrelu": 0.01,
    "thresholdedrelu": 1.0,
    "scaledtanh": 1.0,
    "hardsigmoid": 0.2,
    "elu": 1.0,
}
_BETA = {"affine": 0.0, "scaledtanh": 1.0, "hardsigmoid": 0.5}
_ACTIVATIONS: dict[str, Callable[[float, float, Tensor], Tensor]] = {
    "relu": lambda a, b, x: x.relu(),
    "tanh": lambda a, b, x: x.tanh(),
    "sigmoid": lambda a, b, x: x.sigmoid(),
    "affine": lambda a, b, x: a * x + b,
    "leakyrelu": lambda a, b, x: F.leaky_relu(x, a),
    "thresholdedrelu": lambda a, b, x: torch.where(x >= a, x, 0.0),
    "scaledtanh": lambda a, b, x: a * torch.tanh(b * x),
    "hardsigmoid": lambda a, b, x: (a * x + b).clamp(0, 1),
    "elu": lambda a, b, x: F.elu(x, a),
    "softsign": lambda a, b, x: F.softsign(x),
    "softplus": lambda a, b, x: F.softplus(x),
}


def activations(
    names: Sequence[str], alphas: Sequence[float] | None, betas: Sequence[float] | None
) -> list[Activation]:
    """The functions by name, in any case; those that take an alpha or a beta consume the lists in their order.

    Raises:
        ModelError: no activation has that name.
    """
    alpha, beta = iter(alphas or ()), iter(betas or ())
    return [_activation(name.lower(), alpha, beta) for name in names]


def _activation(name: str, alphas: Iterator[float], betas: Iterator[float]) -> Activation:
    if name not in _ACTIVATIONS:
        raise ModelError(f"No activation named {name!r}. {did_you_mean(name, _ACTIVATIONS)}")
    alpha = next(alphas, _ALPHA[name]) if name in _ALPHA else 0.0
    beta = next(betas, _BETA[name]) if name in _BETA else 0.0
    return partial(_ACTIVATIONS[name], alpha, beta)


@dataclass(frozen=True)
class Cell:
    """What one direction of a layer computes with, besides its input.

    Args:
        weight: R, [G * H, H].
        bias: R's half of the bias, [G * H].
        functions: the activations f, g, h as far as the cell has them.
        clip: bound of the inputs of the activations, None for no bound.
        peephole: the LSTM's weights from the cell state to the gates i, o, f: [3 * H].
        switch: `input_forget` of the LSTM, `linear_before_reset` of the GRU.
        linear: how the hidden state is multiplied by R.
    """

    weight: Tensor
    bias: Tensor
    functions: Sequence[Activation]
    clip: float | None = None
    peephole: Tensor | None = None
    switch: bool = False
    linear: Linear = F.linear

    def recur(self, hidden: Tensor) -> Tensor:
        """The hidden state's share of the gates, [B, G * H]."""
        return self.linear(hidden, self.weight, self.bias)

    def bounded(self, x: Tensor) -> Tensor:
        """x within [-clip, clip]."""
        return x.clamp(-self.clip, self.clip) if self.clip else x


def rnn_step(cell: Cell, gates: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    """H' = f(gates + R H)."""
    return (cell.functions[0](cell.bounded(gates + cell.recur(hidden))),)


def lstm_step(cell: Cell, gates: Tensor, hidden: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    """i, o, f = f(.), c = g(.), C' = f C + i c, H' = o h(C'); peepholes see C in i and f, C' in o.

    With `input_forget` the forget gate is 1 - i, as onnxruntime has it.
    """
    f, g, h = cell.functions
    i, o, forget, c = (gates + cell.recur(hidden)).chunk(4, dim=-1)
    peep_i = peep_o = peep_f = None
    if cell.peephole is not None:
        peep_i, peep_o, peep_f = cell.peephole.chunk(3)
    i = f(cell.bounded(_seen(i, peep_i, state)))
    forget = 1 - i if cell.switch else f(cell.bounded(_seen(forget, peep_f, state)))
    state = forget * state + i * g(cell.bounded(c))
    o = f(cell.bounded(_seen(o, peep_o, state)))
    return o * h(state), state


def _seen(gate: Tensor, peephole: Tensor | None, state: Tensor) -> Tensor:
    return gate if peephole is None else gate + peephole * state


def gru_step(cell: Cell, gates: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    """z, r = f(.), n = g(.), H' = (1 - z) n + z H; the reset gate acts on H, or with `linear_before_reset` on R H."""
    f, g = cell.functions
    z, r, n = gates.chunk(3, dim=-1)
    if cell.switch:
        from_z, from_r, from_n = cell.recur(hidden).chunk(3, dim=-1)
        n = n + f(cell.bounded(r + from_r)) * from_n
    else:
        both = 2 * hidden.shape[-1]
        from_z, from_r = cell.linear(hidden, cell.weight[:both], cell.bias[:both]).chunk(2, dim=-1)
        reset = f(cell.bounded(r + from_r)) * hidden
        n = n + cell.linear(reset, cell.weight[both:], cell.bias[both:])
    z = f(cell.bounded(z + from_z))
    return ((1 - z) * g(cell.bounded(n)) + z * hidden,)


def unrolled(
    step: Step, gates: Tensor, states: tuple[Tensor, ...], lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The hidden state after each step [T, B, H], zero past each sequence's length, and the states at its end."""
    outputs = []
    for time, current in enumerate(gates.unbind()):
        following = step(current, *states)
        if lengths is not None:
            running = (lengths > time).unsqueeze(1)
            pairs = zip(following, states, strict=True)
            following = tuple(torch.where(running, new, old) for new, old in pairs)
            outputs.append(torch.where(running, following[0], 0.0))
        else:
            outputs.append(following[0])
        states = following
    return torch.stack(outputs), states


def reversed_in_time(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [T, B, ...] with each sequence's own steps in reverse order; what lies past its length stays."""
    if lengths is None:
        return x.flip(0)
    time = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    index = torch.where(time < lengths, lengths - 1 - time, time)
    return x[index, torch.arange(x.shape[1], device=x.device)]
