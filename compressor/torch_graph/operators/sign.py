"""Activations of two levels that train: a step in the forward pass, a window around it in the backward pass.

    y = scale  where x >= threshold,  -scale elsewhere

With u = (x - threshold) / (WINDOW * scale), how far x is from its step:

    gradient        dy/dx, 0 where |u| >= 1
    approximate     (2 - 2 |u|) / WINDOW      the slope of the nearest two parabolas (Bi-Real: Liu et al. 2018,
                                              arXiv:1808.00278, section 3.3)
    straight        1 / WINDOW                that of a straight line (Courbariaux et al. 2016, arXiv:1602.02830, eq. 4)

The papers' window is [-1, 1], for what BatchNormalization gave a deviation of 1. Here it grows with the scale, which is
the mean |x - threshold| where the network was calibrated: multiplying x, threshold and scale by a number changes no
gradient. dy/dthreshold = -dy/dx, summed (RSign: Liu et al. 2020, arXiv:2003.03488, section 4.2); dy/dscale is the sign,
summed, as the window is no function of the scale in this.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

WINDOW = 1.25
"""Half the width of the window in scales: the mean |x| of a normal distribution is 0.8 of its deviation."""


def binarize(
    x: Tensor, threshold: Tensor, scale: Tensor, *, gradient: Literal["approximate", "straight"]
) -> Tensor:
    """The value of two levels.

    Args:
        x: of any shape.
        threshold: broadcasts to the shape of x.
        scale: one number above 0.
        gradient: see the module.

    >>> x = torch.tensor([-3.0, 0.0, 0.5], requires_grad=True)
    >>> y = binarize(x, torch.zeros(1), torch.tensor(0.8), gradient="approximate")
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([-0.800000011920929, 0.800000011920929, 0.800000011920929], [0.0, 1.600000023841858, 0.800000011920929])
    """
    made: Tensor = _Binarize.apply(x, threshold, scale, gradient == "straight")  # type: ignore[no-untyped-call]
    return made


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, scale: Tensor, straight: bool) -> Tensor:
        above = x >= threshold
        distance = ((x - threshold) / (WINDOW * scale)).abs_()
        slope = (distance < 1) / WINDOW if straight else (1 - distance).clamp_(min=0).mul_(2 / WINDOW)
        ctx.save_for_backward(above, slope)
        ctx.shapes = threshold.shape, scale.shape
        return torch.where(above, scale, -scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        above, slope = ctx.saved_tensors
        thresholds, scales = ctx.shapes
        moved = gradient * slope
        signed = torch.where(above, gradient, -gradient)
        return moved, -moved.sum_to_size(thresholds), signed.sum().reshape(scales), None
