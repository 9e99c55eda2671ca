"""Kernels for the unsigned 16-, 32- and 64-bit integers, which torch stores but hardly computes with."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor

from compressor.torch_graph.values import Kernel

UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})


def through_int64(kernel: Kernel) -> Kernel:
    """The kernel with unsigned 16-, 32- and 64-bit inputs widened to int64, and its integer result narrowed back.

    The first input's dtype decides. uint64 keeps its bits: sums, differences and products wrap as they should, but
    the order and the quotient of values from 2^63 on are those of negative numbers.
    """

    @wraps(kernel)
    def widened(*inputs: Any, **attributes: Any) -> Any:
        kind = inputs[0].dtype
        if kind not in UNSIGNED:
            return kernel(*inputs, **attributes)
        result = kernel(*(x.long() if isinstance(x, Tensor) else x for x in inputs), **attributes)
        return result.to(kind) if result.dtype == torch.int64 else result

    return widened
