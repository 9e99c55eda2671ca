"""Scan: a body that runs once per element of sequences, with states carried from one element to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


class Scanned(torch.nn.Module):
    """Scan (opset 9 and newer): the body runs once per element of the scan inputs."""

    def __init__(self, body: fx.GraphModule, states: int, options: dict[str, list[int]]) -> None:
        super().__init__()
        self.body = body
        self.states = states
        self.options = options
        self.scans = len(options["scan_input_directions"])

    def forward(self, *values: Any) -> Any:
        """The last states, then the scan outputs, stacked along their axes."""
        state = list(values[: self.states])
        scanned = values[self.states : self.states + self.scans]
        captured = values[self.states + self.scans :]
        columns = [
            tensor.flip(axis).unbind(axis) if backward else tensor.unbind(axis)
            for tensor, axis, backward in zip(
                scanned, self.options["scan_input_axes"], self.options["scan_input_directions"], strict=True
            )
        ]
        rows = []
        for items in zip(*columns, strict=True):
            results = self.body(*state, *items, *captured)
            state = list(results[: self.states])
            rows.append(results[self.states :])
        outputs = [
            torch.stack(column[::-1] if backward else column, axis)
            for column, axis, backward in zip(
                zip(*rows, strict=True),
                self.options["scan_output_axes"],
                self.options["scan_output_directions"],
                strict=True,
            )
        ]
        return (*state, *outputs) if len(state) + len(outputs) > 1 else (*state, *outputs)[0]


class BatchScanned(torch.nn.Module):
    """Scan of opset 8: states and sequences have a batch axis before the others, and each sample its own length."""

    def __init__(self, scan: Scanned) -> None:
        super().__init__()
        self.scan = scan

    def forward(self, lengths: torch.Tensor | None, *values: Any) -> Any:
        """The last states [batch, ...], then the scan outputs [batch, longest, ...], zero past a sample's length."""
        at = self.scan.states + self.scan.scans
        states, scanned, captured = values[: self.scan.states], values[self.scan.states : at], values[at:]
        longest = scanned[0].shape[1]
        samples = []
        for number in range(scanned[0].shape[0]):
            steps = longest if lengths is None else int(lengths[number])
            given = (*(state[number] for state in states), *(items[number, :steps] for items in scanned))
            results = self.scan(*given, *captured)
            results = results if isinstance(results, tuple) else (results,)
            rows = (_padded(rows, longest) for rows in results[self.scan.states :])
            samples.append((*results[: self.scan.states], *rows))
        outputs = tuple(torch.stack(column) for column in zip(*samples, strict=True))
        return outputs if len(outputs) > 1 else outputs[0]


def _padded(rows: torch.Tensor, longest: int) -> torch.Tensor:
    missing = longest - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
