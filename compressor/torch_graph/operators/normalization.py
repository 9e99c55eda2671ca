"""Normalizations that act the same in training and inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.values import Kernel, torch_type


def layer_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    outputs: int = 1,
    stash_type: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Normalize over the axes from `axis` on; scale and b broadcast to them.

    The further outputs are the mean and 1 / standard deviation, in the type `stash_type`, those axes of length 1.
    """
    shape = x.shape[axis:]
    if scale.shape == shape and scale.dtype == x.dtype:
        y = F.layer_norm(x, shape, scale, b, epsilon)
    else:
        y = F.layer_norm(x, shape, None, None, epsilon).to(scale.dtype) * scale
        y = y if b is None else y + b
    if outputs == 1:
        return y
    axes = tuple(range(-len(shape), 0))
    var, mean = torch.var_mean(x.to(torch_type(stash_type)), axes, correction=0, keepdim=True)
    return (y, mean, torch.rsqrt(var + epsilon))[:outputs]


def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, outputs: int = 1, stash_type: int = 1
) -> Tensor | tuple[Tensor, Tensor]:
    """Divide by the root mean square over the axes from `axis` on; scale broadcasts to them.

    The second output, of onnxruntime's SimplifiedLayerNormalization, is 1 / root mean square.
    """
    shape = x.shape[axis:]
    if scale.shape == shape and scale.dtype == x.dtype:
        y = F.rms_norm(x, shape, scale, epsilon)
    else:
        y = F.rms_norm(x, shape, None, epsilon).to(scale.dtype) * scale
    if outputs == 1:
        return y
    squares = x.to(torch_type(stash_type)).square()
    return y, torch.rsqrt(squares.mean(tuple(range(-len(shape), 0)), keepdim=True) + epsilon)


def instance_normalization(input: Tensor, scale: Tensor, b: Tensor, *, epsilon: float) -> Tensor:
    """Normalize each channel of each sample over the spatial axes."""
    return torch.instance_norm(input, scale, b, None, None, True, 0.0, epsilon, torch.backends.cudnn.enabled)


def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float, num_groups: int, stash_type: int = 1
) -> Tensor:
    """Normalize groups of channels; scale and bias are per channel, or per group as in opset 18.

    16-bit x is computed in float32, which is the default `stash_type`.
    """
    repeats = x.shape[1] // scale.shape[0]
    if repeats > 1:
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def lp_normalization(input: Tensor, *, axis: int, p: int) -> Tensor:
    """Divide by the p-norm along the axis; where that is zero the result is zero."""
    norm = torch.linalg.vector_norm(input, ord=p, dim=axis, keepdim=True)
    return torch.div(input, norm.masked_fill(norm == 0, 1.0))


def lrn(x: Tensor, *, alpha: float, beta: float, bias: float, size: int) -> Tensor:
    """x / (bias + alpha * mean of the squares of `size` neighbouring channels) ** beta.

    Channels beyond the ends count as zeros; of an even size the longer side lies behind.
    """
    squares = x.square().flatten(2).unsqueeze(1)
    around = F.pad(squares, (0, 0, (size - 1) // 2, size // 2))
    means = F.avg_pool2d(around, (size, 1), stride=1).view(x.shape)
    return x / (bias + alpha * means).pow(beta)


def mean_variance_normalization(x: Tensor, *, axes: list[int]) -> Tensor:
    """(x - mean) / (standard deviation + 1e-9) over the axes."""
    std, mean = torch.std_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (std + 1e-9)


KERNELS: dict[str, Kernel] = {
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
    "SimplifiedLayerNormalization": rms_normalization,
    "com.microsoft::LayerNormalization": layer_normalization,
    "com.microsoft::SimplifiedLayerNormalization": rms_normalization,
}
