"""Scaled dot-product attention: torch's fused kernel where nothing but the result is wanted, written out elsewhere.

Shapes: q [B, N, S, H], k [B, M, L, H], v [B, M, L, Hv]; N is a multiple of M, and each key and value head serves N / M
query heads in turn. A mask broadcasts with the scores [B, N, S, L]: booleans say which keys are attended, numbers are
added. A query that may attend no key gives 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Attended(NamedTuple):
    """What attention computes on its way, each [B, N, S, L] but y [B, N, S, Hv]."""

    y: Tensor
    scores: Tensor
    capped: Tensor
    masked: Tensor
    probabilities: Tensor


def fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """Attention by torch's kernel; `causal` without a mask lets query i attend the keys 0..i."""
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    precision: torch.dtype | None = None,
    sink: Tensor | None = None,
) -> Attended:
    """Attention written out: scores are capped to +-softcap by tanh, then masked; softmax runs in `precision`.

    The sink, broadcast to [B, N, S, 1], is the logit of a key without a value.
    """
    if q.shape[1] != k.shape[1]:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    half = (q.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    scores = (q * half) @ (k * half).transpose(-1, -2)
    capped = softcap * torch.tanh(scores / softcap) if softcap else scores
    masked = added(capped, mask)
    logits = masked.to(precision or masked.dtype)
    if sink is None:
        probabilities = torch.softmax(logits, -1)
    else:
        joined = torch.cat((logits, sink.to(logits.dtype).expand(*logits.shape[:-1], 1)), -1)
        probabilities = torch.softmax(joined, -1)[..., :-1]
    if mask is not None:
        blind = (added(torch.zeros_like(scores), mask) == -torch.inf).all(-1, keepdim=True)
        probabilities = probabilities.masked_fill(blind, 0.0)
    probabilities = probabilities.to(q.dtype)
    return Attended(probabilities @ v, scores, capped, masked, probabilities)


def added(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The scores with a mask applied."""
    if mask is None:
        return scores
    return torch.where(mask, scores, -torch.inf) if mask.dtype == torch.bool else scores + mask


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Two masks as one; the second, if there is one, holds booleans."""
    if first is None or second is None:
        return second if first is None else first
    return first & second if first.dtype == torch.bool else torch.where(second, first, -torch.inf)


def window(
    shape: tuple[int, int], offset: Tensor | int, bounds: tuple[int, int], device: torch.device
) -> Tensor | None:
    """Which keys each query may attend, [S, L], or for an offset [B, 1, 1, 1] of each sequence [B, 1, S, L].

    Query i stands at the position i + offset. The bounds say how many keys before and after it it sees, -1 for all:
    (-1, 0) is a causal mask. None when nothing is excluded.

    >>> window((2, 3), 1, (-1, 0), torch.device("cpu")).int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    before, after = bounds
    if before < 0 and after < 0:
        return None
    position = torch.arange(shape[0], device=device).unsqueeze(1) + offset
    ahead = torch.arange(shape[1], device=device) - position
    if before < 0:
        return ahead <= after
    return ahead >= -before if after < 0 else (ahead >= -before) & (ahead <= after)


def heads(x: Tensor, count: int) -> Tensor:
    """[B, S, N * H] as [B, N, S, H]."""
    return x.reshape(*x.shape[:-1], count, x.shape[-1] // count).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """[B, N, S, H] as [B, S, N * H]."""
    return x.transpose(1, 2).flatten(2)
