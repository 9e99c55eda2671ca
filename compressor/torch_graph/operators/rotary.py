"""Rotary position embedding (RoFormer, 2104.09864), as ONNX and as onnxruntime write it."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.torch_graph.values import Kernel


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """x [..., H] with its first 2 * R components turned pairwise by the angles of cos and sin [..., R].

    Pairs are neighbours when interleaved, else component i and R + i; what lies past 2 * R stays.
    """
    size = 2 * cos.shape[-1]
    turned, kept = x[..., :size], x[..., size:]
    if interleaved:
        first, second = turned.reshape(*turned.shape[:-1], -1, 2).unbind(-1)
    else:
        first, second = turned.chunk(2, dim=-1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    turned = (
        torch.stack((real, imaginary), -1).flatten(-2) if interleaved else torch.cat((real, imaginary), -1)
    )
    return turned if kept.shape[-1] == 0 else torch.cat((turned, kept), -1)


def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """x [B, N, S, H], or [B, S, N * H] with `num_heads`.

    The caches are [P, R] and looked up by the positions [B, S], or without positions [B, S, R].
    """
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    if x.dim() == 4:
        return rotated(x, cos_cache.unsqueeze(1), sin_cache.unsqueeze(1), interleaved=bool(interleaved))
    apart = x.reshape(*x.shape[:-1], num_heads or 1, -1)
    return rotated(
        apart, cos_cache.unsqueeze(2), sin_cache.unsqueeze(2), interleaved=bool(interleaved)
    ).flatten(2)


def microsoft_rotary_embedding(
    input: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """com.microsoft's form: positions are [B, S] or the first one of all sequences, [1].

    Like onnxruntime's CPU kernel it has no use for `scale`; without `num_heads` the caches tell the size of a head.
    """
    length = input.shape[2 if input.dim() == 4 else 1]
    if position_ids.dim() == 1:
        position_ids = (position_ids + torch.arange(length, device=input.device)).unsqueeze(0)
    count = num_heads if num_heads and rotary_embedding_dim else 0
    if not count and input.dim() == 3:
        count = input.shape[-1] // (2 * cos_cache.shape[-1])
    return rotary_embedding(
        input, cos_cache, sin_cache, position_ids, interleaved=interleaved, num_heads=count
    )


KERNELS: dict[str, Kernel] = {
    "RotaryEmbedding": rotary_embedding,
    "com.microsoft::RotaryEmbedding": microsoft_rotary_embedding,
}
