"""The gradient of a loss, batch after batch, for a module as it is deployed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Loss = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""(outputs, labels) -> a scalar."""
Given = tuple[Sequence[Tensor], Tensor | None]
"""What one pass takes: inputs, and labels or None, each [n, ...]."""


def batch_gradients(
    module: nn.Module, parameters: Mapping[str, Tensor], loss: Loss, batches: Iterable[Given]
) -> Iterator[dict[str, Tensor]]:
    """Name -> gradient, for each batch; 0 where the loss does not reach.

    The module is in eval mode until the iterator ends or is dropped; gradients that it holds stay as they are.

    Args:
        module: gives one output or a sequence of them.
        parameters: of the module, each requiring a gradient.
        loss: of a batch.
        batches: on the device of the module.
    """
    with _evaluating(module):
        for inputs, labels in batches:
            outputs = module(*inputs)
            value = loss((outputs,) if isinstance(outputs, Tensor) else outputs, labels)
            found = torch.autograd.grad(
                value, list(parameters.values()), allow_unused=True, materialize_grads=True
            )
            yield dict(zip(parameters, found, strict=True))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, every part of it put back to its own mode at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
