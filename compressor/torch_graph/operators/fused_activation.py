"""The activations that onnxruntime's fused operators name by an attribute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.errors import ModelError, did_you_mean

_DEFAULTS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "Clip": (float("-inf"), float("inf")),
        "Elu": (1.0,),
        "HardSigmoid": (0.2, 0.5),
        "LeakyRelu": (0.01,),
        "ThresholdedRelu": (1.0,),
    }
)

_ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "": lambda y: y,
        "Clip": torch.clamp,
        "Elu": F.elu,
        "HardSigmoid": lambda y, alpha, beta: (alpha * y + beta).clamp(0, 1),
        "LeakyRelu": F.leaky_relu,
        "Relu": torch.relu,
        "Selu": torch.selu,
        "Sigmoid": torch.sigmoid,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "Tanh": torch.tanh,
        "ThresholdedRelu": lambda y, alpha: torch.where(y > alpha, y, 0.0),
    }
)


def activated(y: Tensor, activation: str, parameters: Sequence[float | None] = ()) -> Tensor:
    """The named activation of y; parameters that are missing or None take the defaults of the ONNX operator.

    >>> activated(torch.tensor([-2.0, 3.0]), "LeakyRelu", [0.5])
    tensor([-1.,  3.])

    Raises:
        ModelError: no activation of that name.
    """
    if activation not in _ACTIVATIONS:
        known = did_you_mean(activation, filter(None, _ACTIVATIONS))
        raise ModelError(f"A fused operator names the activation {activation!r}, which is not known. {known}")
    defaults = _DEFAULTS.get(activation, ())
    given = [*parameters, *[None] * len(defaults)]
    values = (default if value is None else value for value, default in zip(given, defaults, strict=False))
    return _ACTIVATIONS[activation](y, *values)
