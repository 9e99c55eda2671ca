"""A recurrent layer as its node gives it, and the way to run it step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.errors import ModelError
from compressor.torch_graph.operators.recurrent_cells import (
    Activation,
    Cell,
    Linear,
    Step,
    reversed_in_time,
    unrolled,
)

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
Weights = tuple[Tensor, ...]
"""Of one direction: W [G * H, I], R [G * H, H] and, where there are any, their biases [G * H]."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The inputs and attributes that LSTM, GRU and RNN share, the weights by direction.

    Raises:
        ModelError: the direction is unknown or needs other weights, a state has another shape than the input needs,
            or a sequence is longer than the input.
    """

    operator: str
    x: Tensor
    weights: Sequence[Weights]
    initial: tuple[Tensor | None, ...]
    lengths: list[int] | None
    direction: str
    layout: int

    def __post_init__(self) -> None:
        """Refuse what torch's kernels would not."""
        if self.direction not in DIRECTIONS:
            known = ", ".join(DIRECTIONS)
            raise ModelError(f"{self.operator}: no direction {self.direction!r}. Known: {known}.")
        if len(self.weights) != self.directions:
            needed = f"{self.direction} needs weights of {self.directions} direction(s)"
            raise ModelError(f"{self.operator}: {needed}, got {len(self.weights)}.")
        steps = self.x.shape[1 if self.layout else 0]
        if self.lengths is not None and not all(0 <= length <= steps for length in self.lengths):
            given = f"sequence_lens must lie in 0..{steps}, the steps of the input, got {self.lengths!r}"
            raise ModelError(f"{self.operator}: {given}.")

    @property
    def directions(self) -> int:
        """D."""
        return DIRECTIONS[self.direction]

    def time_first(self) -> Tensor:
        """The input as [T, B, I]."""
        return self.x.transpose(0, 1) if self.layout else self.x

    def states(self) -> tuple[Tensor, ...]:
        """The initial states [D, B, H], zeros where the node has none."""
        batch = self.x.shape[0 if self.layout else 1]
        expected = (self.directions, batch, self.weights[0][1].shape[-1])
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


def by_direction(w: Tensor, r: Tensor, b: Tensor | None) -> list[Weights]:
    """The weights of a node, W [D, G * H, I], R [D, G * H, H] and B [D, 2 * G * H], without biases where B is None."""
    if b is None:
        return list(zip(_each(w), _each(r), strict=True))
    each = zip(_each(w), _each(r), _each(b), strict=True)
    return [(of_w, of_r, *biases.chunk(2)) for of_w, of_r, biases in each]


def _each(tensor: Tensor) -> Sequence[Tensor]:
    """The tensor of each direction; a single one as a view, whose gradient needs no copy."""
    return tensor.unbind() if len(tensor) > 1 else (tensor.squeeze(0),)


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
    for at, (w, r, *biases) in enumerate(layer.weights):
        w_bias, r_bias = biases or (w.new_zeros(len(w)), w.new_zeros(len(w)))
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
