"""A recurrent layer as its node gives it, run by one of torch's fused kernels or step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from compressor.errors import ModelError
from compressor.torch_graph.operators.recurrent_cells import (
    Activation,
    Cell,
    Linear,
    Step,
    reversed_in_time,
    unrolled,
)

_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


@dataclass(frozen=True, eq=False)
class Layer:
    """The inputs and attributes that LSTM, GRU and RNN share.

    Raises:
        ModelError: the direction is unknown or needs other weights, a state has another shape than the input needs,
            or a sequence is longer than the input.
    """

    operator: str
    x: Tensor
    w: Tensor
    r: Tensor
    bias: Tensor | None
    initial: tuple[Tensor | None, ...]
    lengths: list[int] | None
    direction: str
    layout: int

    def __post_init__(self) -> None:
        """Refuse what torch's kernels would not."""
        if self.direction not in _DIRECTIONS:
            known = ", ".join(_DIRECTIONS)
            raise ModelError(f"{self.operator}: no direction {self.direction!r}. Known: {known}.")
        if self.w.shape[0] != self.directions:
            given = f"{self.direction} needs weights of {self.directions} direction(s), got {self.w.shape[0]}"
            raise ModelError(f"{self.operator}: {given}.")
        steps = self.x.shape[1 if self.layout else 0]
        if self.lengths is not None and not all(0 <= length <= steps for length in self.lengths):
            given = f"sequence_lens must lie in 0..{steps}, the steps of the input, got {self.lengths!r}"
            raise ModelError(f"{self.operator}: {given}.")

    @property
    def directions(self) -> int:
        """D."""
        return _DIRECTIONS[self.direction]

    def time_first(self) -> Tensor:
        """The input as [T, B, I]."""
        return self.x.transpose(0, 1) if self.layout else self.x

    def states(self) -> tuple[Tensor, ...]:
        """The initial states [D, B, H], zeros where the node has none."""
        batch = self.x.shape[0 if self.layout else 1]
        expected = (self.directions, batch, self.r.shape[-1])
        return tuple(self._state(state, expected) for state in self.initial)

    def _state(self, state: Tensor | None, expected: tuple[int, ...]) -> Tensor:
        if state is None:
            return self.x.new_zeros(expected)
        found = state.transpose(0, 1) if self.layout else state
        if tuple(found.shape) != expected:  # torch's kernel would read past the end of the state
            raise ModelError(
                f"{self.operator}: an initial state has the shape {tuple(found.shape)} where this input needs "
                f"{expected}. Run the model at the batch size it was exported with, or make its state dynamic."
            )
        return found

    def weights(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """W, R and their two biases of each direction, zeros where the node has none."""
        rows = self.w.shape[:2]
        bias = self.w.new_zeros(rows[0], 2 * rows[1]) if self.bias is None else self.bias
        found = []
        for w, r, b in zip(_each(self.w), _each(self.r), _each(bias), strict=True):
            of_w, of_r = b.chunk(2)
            found.append((w, r, of_w, of_r))
        return found

    def uneven(self) -> list[int] | None:
        """The lengths of the sequences, None when all have the input's."""
        steps = self.x.shape[1 if self.layout else 0]
        lengths = self.lengths
        return None if lengths is None or all(length == steps for length in lengths) else lengths

    def lengths_tensor(self) -> Tensor | None:
        """The lengths of the sequences on the input's device, None when all have the input's."""
        lengths = self.uneven()
        return None if lengths is None else torch.tensor(lengths, device=self.x.device)

    def outputs(self, y: Tensor, states: Sequence[Tensor], lengths: Tensor | None) -> tuple[Tensor, ...]:
        """y [T, D, B, H] and the last states [D, B, H] in the node's layout.

        The last state of an empty sequence is zero, as in onnxruntime.
        """
        if lengths is not None:
            states = [state.masked_fill((lengths == 0).unsqueeze(1), 0.0) for state in states]
        if not self.layout:
            return (y, *states)
        return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states))


def _each(tensor: Tensor) -> Sequence[Tensor]:
    """The tensor of each direction; a single one as a view, whose gradient needs no copy."""
    return tensor.unbind() if len(tensor) > 1 else (tensor.squeeze(0),)


def fused(
    layer: Layer, kernel: Callable[..., Any], reorder: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ...]:
    """The layer by a kernel of torch; `reorder` brings the rows of a weight from ONNX's gate order to torch's.

    torch.compile breaks here, as at torch's own modules: traced, the LSTM of CPUs fails, and so do packed sequences.
    """
    result: tuple[Tensor, ...] = _untraced(layer, kernel, reorder)
    return result


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _untraced(
    layer: Layer, kernel: Callable[..., Any], reorder: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ...]:
    x, initial, lengths = layer.time_first(), layer.states(), layer.uneven()
    each = layer.lengths_tensor()
    if layer.direction == "reverse":
        x = reversed_in_time(x, each)
    weights = [reorder(tensor) for direction in layer.weights() for tensor in direction]
    # cuDNN keeps what the backward pass needs only when told that it trains.
    switches = (True, 1, 0.0, torch.is_grad_enabled(), layer.directions == 2)
    if lengths is None:
        y, *states = kernel(x, _held(initial), weights, *switches, False)
    else:
        y, *states = _packed(kernel, x, lengths, initial, (weights, *switches))
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


def looped(
    layer: Layer,
    step: Step,
    functions: Sequence[Activation],
    *,
    peepholes: Tensor | None = None,
    clip: float | None = None,
    switch: bool = False,
    linear: Linear = F.linear,
) -> tuple[Tensor, ...]:
    """The layer step by step; the functions are those of all directions, the rest is as in `Cell`."""
    x, initial, lengths = layer.time_first(), layer.states(), layer.lengths_tensor()
    per_direction = len(functions) // layer.directions
    outputs, finals = [], []
    for at, (w, r, w_bias, r_bias) in enumerate(layer.weights()):
        own = functions[at * per_direction : (at + 1) * per_direction]
        peephole = None if peepholes is None else peepholes[at]
        cell = Cell(r, r_bias, own, clip, peephole, switch, linear)
        backward = layer.direction == "reverse" or at == 1
        gates = linear(reversed_in_time(x, lengths) if backward else x, w, w_bias)
        y, states = unrolled(partial(step, cell), gates, tuple(state[at] for state in initial), lengths)
        outputs.append(reversed_in_time(y, lengths) if backward else y)
        finals.append(states)
    final = [torch.stack(state) for state in zip(*finals, strict=True)]
    return layer.outputs(torch.stack(outputs, 1), final, lengths)
