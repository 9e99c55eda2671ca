"""Functions of mathematics on floats, element by element, and the determinant."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.torch_graph.values import Kernel


def arc_cosine(input: Tensor) -> Tensor:
    """The angle in [0, pi] whose cosine is x; NaN outside [-1, 1]."""
    return torch.acos(input)


def area_cosine(input: Tensor) -> Tensor:
    """The number not below 0 whose hyperbolic cosine is x; NaN below 1."""
    return torch.acosh(input)


def arc_sine(input: Tensor) -> Tensor:
    """The angle in [-pi/2, pi/2] whose sine is x; NaN outside [-1, 1]."""
    return torch.asin(input)


def area_sine(input: Tensor) -> Tensor:
    """The number whose hyperbolic sine is x."""
    return torch.asinh(input)


def arc_tangent(input: Tensor) -> Tensor:
    """The angle in (-pi/2, pi/2) whose tangent is x."""
    return torch.atan(input)


def area_tangent(input: Tensor) -> Tensor:
    """The number whose hyperbolic tangent is x; NaN outside [-1, 1]."""
    return torch.atanh(input)


def cosine(input: Tensor) -> Tensor:
    """The cosine of an angle in radians."""
    return torch.cos(input)


def hyperbolic_cosine(input: Tensor) -> Tensor:
    """The hyperbolic cosine."""
    return torch.cosh(input)


def error_function(input: Tensor) -> Tensor:
    """The Gauss error function."""
    return torch.erf(input)


def exponential(input: Tensor) -> Tensor:
    """e ** x."""
    return torch.exp(input)


def logarithm(input: Tensor) -> Tensor:
    """The natural logarithm; NaN below 0."""
    return torch.log(input)


def sine(input: Tensor) -> Tensor:
    """The sine of an angle in radians."""
    return torch.sin(input)


def hyperbolic_sine(input: Tensor) -> Tensor:
    """The hyperbolic sine."""
    return torch.sinh(input)


def square_root(input: Tensor) -> Tensor:
    """The square root; NaN below 0, with an infinite gradient at 0."""
    return torch.sqrt(input)


def tangent(input: Tensor) -> Tensor:
    """The tangent of an angle in radians."""
    return torch.tan(input)


def determinant(x: Tensor) -> Tensor:
    """The determinant of the matrices in the last two axes: [..., M, M] -> [...]."""
    result: Tensor = torch.linalg.det(x)
    return result


KERNELS: dict[str, Kernel] = {
    "Acos": arc_cosine,
    "Acosh": area_cosine,
    "Asin": arc_sine,
    "Asinh": area_sine,
    "Atan": arc_tangent,
    "Atanh": area_tangent,
    "Cos": cosine,
    "Cosh": hyperbolic_cosine,
    "Det": determinant,
    "Erf": error_function,
    "Exp": exponential,
    "Log": logarithm,
    "Sin": sine,
    "Sinh": hyperbolic_sine,
    "Sqrt": square_root,
    "Tan": tangent,
}
