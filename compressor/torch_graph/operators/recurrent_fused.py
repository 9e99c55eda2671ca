"""Recurrent layers by torch's fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from compressor.torch_graph.operators.recurrent_cells import reversed_in_time
from compressor.torch_graph.operators.recurrent_layers import Layer, Weights


@dataclass(frozen=True)
class Fused:
    """A kernel of torch by its name, and the place in ONNX's order of each of its gates."""

    kernel: str
    gates: tuple[int, ...]

    def ordered(self, weights: Sequence[Weights]) -> list[Weights]:
        """The rows of weights with ONNX's order of gates in the kernel's order."""
        return [tuple(map(self._ordered, direction)) for direction in weights]

    def _ordered(self, weight: Tensor) -> Tensor:
        if len(self.gates) == 1:
            return weight
        # A copy each way, where indices would give zero-filled gradients.
        gates = weight.chunk(len(self.gates))
        return torch.cat([gates[gate] for gate in self.gates])


_LSTM = Fused("lstm", (0, 2, 3, 1))  # ONNX has i, o, f, c
_GRU = Fused("gru", (1, 0, 2))  # ONNX has z, r, h
_RNN = {"tanh": Fused("rnn_tanh", (0,)), "relu": Fused("rnn_relu", (0,))}


def fused_form(
    operator: str,
    directions: int,
    activations: Sequence[str] | None,
    clip: float | None,
    *,
    input_forget: int = 0,
    linear_before_reset: int = 0,
) -> Fused | None:
    """What runs a layer with these attributes and no peepholes; None where torch has no kernel for it."""
    if clip or input_forget:
        return None
    names = tuple(name.lower() for name in activations or ())
    if operator == "LSTM":
        return _LSTM if names in ((), ("sigmoid", "tanh", "tanh") * directions) else None
    if operator == "GRU":
        return _GRU if linear_before_reset and names in ((), ("sigmoid", "tanh") * directions) else None
    used = set(names[:directions] or ("tanh",))
    return _RNN.get(used.pop()) if len(used) == 1 else None


def fused(layer: Layer, form: Fused) -> tuple[Tensor, ...]:
    """The outputs of a layer whose weights have ONNX's order of gates."""
    return _run(replace(layer, weights=form.ordered(layer.weights)), form.kernel)


def fused_layer(
    x: Tensor,
    weights: Sequence[Weights],
    sequence_lens: list[int] | None,
    *initial: Tensor | None,
    operator: str,
    kernel: str,
    direction: str,
    layout: int,
) -> tuple[Tensor, ...]:
    """The outputs of an operator whose weights have the kernel's order of gates, by direction."""
    return _run(Layer(operator, x, weights, initial, sequence_lens, direction, layout), kernel)


def _run(layer: Layer, kernel: str) -> tuple[Tensor, ...]:
    """torch.compile breaks here, as at torch's own modules: traced, the CPU's LSTM and packed sequences fail."""
    result: tuple[Tensor, ...] = _untraced(layer, kernel)
    return result


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _untraced(layer: Layer, kernel: str) -> tuple[Tensor, ...]:
    x, initial, lengths = layer.time_first(), layer.states(), layer.uneven()
    each = layer.lengths_tensor()
    if layer.direction == "reverse":
        x = reversed_in_time(x, each)
    weights = [tensor for direction in layer.weights for tensor in direction]
    biased = len(layer.weights[0]) > 2
    # cuDNN keeps what the backward pass needs only when told that it trains.
    switches = (biased, 1, 0.0, torch.is_grad_enabled(), layer.directions == 2)
    run = getattr(torch, kernel)
    if lengths is None:
        y, *states = run(x, _held(initial), weights, *switches, False)
    else:
        y, *states = _packed(run, x, lengths, initial, (weights, *switches))
    if layer.direction == "reverse":
        y = reversed_in_time(y, each)
    y = y.unflatten(2, (layer.directions, -1)).transpose(1, 2)
    if each is not None:  # torch packs no empty sequence: it ran for one step
        y = y.masked_fill((each == 0).unsqueeze(1), 0.0)
    return layer.outputs(y, states, each)


def _held(states: Sequence[Tensor]) -> Sequence[Tensor] | Tensor:
    return states if len(states) > 1 else states[0]


def _packed(
    kernel: Callable[..., Any],
    x: Tensor,
    lengths: list[int],
    initial: Sequence[Tensor],
    rest: tuple[Any, ...],
) -> list[Tensor]:
    """y [T, B, D * H] and the states after each sequence's own last step."""
    packed = pack_padded_sequence(x, torch.tensor(lengths).clamp(min=1), enforce_sorted=False)
    assert packed.sorted_indices is not None
    assert packed.unsorted_indices is not None
    sorted_states = [state.index_select(1, packed.sorted_indices) for state in initial]
    data, *states = kernel(packed.data, packed.batch_sizes, _held(sorted_states), *rest)
    y, _ = pad_packed_sequence(packed._replace(data=data), total_length=x.shape[0])
    return [y, *(state.index_select(1, packed.unsorted_indices) for state in states)]
