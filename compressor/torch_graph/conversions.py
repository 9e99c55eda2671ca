"""What the module computes between kernels: tensors to Python numbers and back, one output of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def first(values: Any) -> Any:
    """The only output that is used, of a kernel that may give several."""
    return values[0] if isinstance(values, tuple) else values


def item(values: Sequence[Any], index: int) -> Any:
    """One of several outputs, or of several numbers."""
    return values[index]


def to_host(tensor: Any, kind: str = "list") -> Any:
    """The numbers of a tensor, or as "number" its first one (None of none); waits for the device that computes it."""
    if kind == "number":
        return tensor.reshape(-1).tolist()[0] if len(tensor.reshape(-1)) else None
    return tensor.tolist()


def from_host(numbers: Any, dtype: torch.dtype, anchor: torch.Tensor | None) -> torch.Tensor:
    """Python numbers as a tensor beside `anchor`; single ones stay on the CPU, where every device can use them."""
    device = anchor.device if anchor is not None and isinstance(numbers, list | tuple) else None
    return torch.tensor(numbers, dtype=dtype, device=device)


def beside(made: Any, anchor: Any) -> Any:
    """A new tensor on the device of another one; what is no tensor stays as it is."""
    both = isinstance(made, torch.Tensor) and isinstance(anchor, torch.Tensor)
    return made.to(anchor.device) if both else made
