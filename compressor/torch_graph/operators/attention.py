"""ONNX's Attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.operators import attention_core as core
from compressor.torch_graph.values import Kernel, torch_type

_STAGES = ("scores", "capped", "masked", "probabilities")
"""The fourth output by `qk_matmul_output_mode`."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    outputs: int = 1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Tensor, ...]:
    """Scaled dot-product attention -> y, present key, present value, the scores at the stage of the mode.

    q is [B, N, S, H], or with `q_num_heads` [B, S, N * H], as y then is. The keys of a cache come before k;
    `nonpad_kv_seqlen` says how many keys of each sequence count, the last S of them being the queries' own.
    """
    flat = q.dim() == 3
    if q_num_heads and kv_num_heads and flat:
        q, k, v = core.heads(q, q_num_heads), core.heads(k, kv_num_heads), core.heads(v, kv_num_heads)
    past = 0
    if past_key is not None and past_value is not None:
        k, v, past = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2), past_key.shape[2]
    bounds = (left_window_size, 0 if is_causal else right_window_size)
    # torch's own causal mask counts from the first key.
    causal = bounds == (-1, 0) and attn_mask is None and nonpad_kv_seqlen is None and not past
    precision = None if softmax_precision is None else torch_type(softmax_precision)
    if outputs < 4 and not softcap and precision in (None, q.dtype, torch.float32):
        mask = None if causal else _mask(q, k, attn_mask, past, nonpad_kv_seqlen, bounds)
        y = core.fused(q, k, v, mask, causal=causal, scale=scale)
        return (core.merged(y) if flat else y, k, v)[:outputs]
    mask = _mask(q, k, attn_mask, past, nonpad_kv_seqlen, bounds)
    seen = core.explicit(q, k, v, mask, scale=scale, softcap=softcap, precision=precision)
    stage: Tensor = getattr(seen, _STAGES[qk_matmul_output_mode])
    return (core.merged(seen.y) if flat else seen.y, k, v, stage)[:outputs]


def _mask(
    q: Tensor, k: Tensor, given: Tensor | None, past: int, lengths: Tensor | None, bounds: tuple[int, int]
) -> Tensor | None:
    """The given mask, the window, and the valid lengths as one."""
    queries, keys = q.shape[2], k.shape[2]
    mask = None if given is None else _padded(given, keys, q.dtype)
    if lengths is None:
        return core.both(mask, core.window((queries, keys), past, bounds, q.device))
    lengths = lengths.view(-1, 1, 1, 1)
    mask = core.both(mask, core.window((queries, keys), lengths - queries, bounds, q.device))
    return core.both(mask, torch.arange(keys, device=q.device) < lengths)


def _padded(mask: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """A mask that ends early excludes the keys it does not name."""
    missing = keys - mask.shape[-1]
    if mask.dtype != torch.bool:
        mask = mask.to(dtype)
    if missing > 0:
        mask = F.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else -torch.inf)
    return mask.unsqueeze(0) if mask.dim() == 1 else mask


KERNELS: dict[str, Kernel] = {"Attention": attention}
