"""onnxruntime's normalizations that take what precedes them: residual sums, embeddings, biases (com.microsoft)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.values import Kernel


def skip_layer_normalization(
    input: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Layer normalization of input + skip + bias over the last axis; skip may lack the batch.

    The further outputs are the mean, 1 / standard deviation and the sum.
    """
    total = _sum(input, skip, bias)
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    if outputs == 1:
        return y
    var, mean = torch.var_mean(total.float(), -1, correction=0, keepdim=True)
    return (y, mean, torch.rsqrt(var + epsilon), total)[:outputs]


def skip_rms_normalization(
    input: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Division of input + skip + bias by its root mean square over the last axis.

    The further outputs are the mean, which is not computed, 1 / root mean square and the sum.
    """
    total = _sum(input, skip, bias)
    y = F.rms_norm(total, total.shape[-1:], gamma, epsilon)
    if outputs == 1:
        return y
    inverse = torch.rsqrt(total.float().square().mean(-1, keepdim=True) + epsilon)
    return (y, torch.zeros_like(inverse), inverse, total)[:outputs]


def _sum(input: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    total = input + skip
    return total if bias is None else total + bias


def embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Layer normalization of word + position + segment embeddings; ids are (batch, sequence).

    The further outputs are the number of ones in each row of the mask, zero without a mask, and the sum.
    """
    length = input_ids.shape[1]
    positions = (
        position_embedding[:length] if position_ids is None else F.embedding(position_ids, position_embedding)
    )
    total = F.embedding(input_ids, word_embedding) + positions
    if segment_ids is not None and segment_embedding is not None:
        total = total + F.embedding(segment_ids, segment_embedding)
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    if outputs == 1:
        return y
    if mask is None:
        count = input_ids.new_zeros(input_ids.shape[0], dtype=torch.int32)
    else:
        count = (mask == 1).sum(1, dtype=torch.int32)
    return (y, count, total)[:outputs]


def group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
) -> Tensor:
    """Group normalization, with `activation` 1 then SiLU; channels are the last axis, or the second."""
    planes = x.movedim(-1, 1) if channels_last else x
    y = F.group_norm(planes.to(gamma.dtype), groups, gamma, beta, epsilon).to(x.dtype)
    y = F.silu(y) if activation else y
    return y.movedim(1, -1) if channels_last else y


def skip_group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    skip: Tensor,
    bias: Tensor | None = None,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """Group normalization of x + skip + bias; skip may be (N, C). The second output is the sum."""
    if skip.dim() == 2:
        skip = skip[:, None, None, :] if channels_last else skip[:, :, None, None]
    if bias is not None and not channels_last:
        bias = bias[:, None, None]
    total = _sum(x, skip, bias)
    y = group_norm(
        total, gamma, beta, activation=activation, channels_last=channels_last, epsilon=epsilon, groups=groups
    )
    return y if outputs == 1 else (y, total)


def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """x + bias + skip, with bias along the last axis."""
    return x + bias + skip


def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The left half of x + bias along the last axis, times the GELU of the right half."""
    left, right = (x + bias).chunk(2, dim=-1)
    return left * F.gelu(right)


KERNELS: dict[str, Kernel] = {
    "com.microsoft::BiasAdd": bias_add,
    "com.microsoft::BiasSplitGelu": bias_split_gelu,
    "com.microsoft::EmbedLayerNormalization": embed_layer_normalization,
    "com.microsoft::GroupNorm": group_norm,
    "com.microsoft::SkipGroupNorm": skip_group_norm,
    "com.microsoft::SkipLayerNormalization": skip_layer_normalization,
    "com.microsoft::SkipSimplifiedLayerNormalization": skip_rms_normalization,
}
