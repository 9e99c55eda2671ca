"""Running sums and products along one axis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressor.torch_graph.operators.unsigned import through_int64
from compressor.torch_graph.values import Kernel


@through_int64
def cumulative_sum(x: Tensor, axis: int | list[int], *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """The sum of the elements up to each one, that one included unless `exclusive`; from the end on `reverse`."""
    return _running(torch.cumsum, x, axis, 0 if exclusive else None, reverse)


@through_int64
def cumulative_product(x: Tensor, axis: int | list[int], *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """The product of the elements up to each one, that one included unless `exclusive`; from the end on `reverse`."""
    return _running(torch.cumprod, x, axis, 1 if exclusive else None, reverse)


def _running(
    function: Callable[..., Tensor], x: Tensor, axis: int | list[int], first: int | None, reverse: int
) -> Tensor:
    """`first`: what an exclusive result starts with, None where each element is included."""
    dim = axis if isinstance(axis, int) else axis[0]
    if reverse:
        x = x.flip(dim)
    if first is not None and x.shape[dim]:
        start = torch.full_like(x.narrow(dim, 0, 1), first)
        x = torch.cat([start, x.narrow(dim, 0, x.shape[dim] - 1)], dim)
    result = function(x, dim, dtype=x.dtype)
    return result.flip(dim) if reverse else result


KERNELS: dict[str, Kernel] = {"CumProd": cumulative_product, "CumSum": cumulative_sum}
