"""onnxruntime's GroupQueryAttention, what language models call at every layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.operators import attention_core as core
from compressor.torch_graph.operators.rotary import rotated
from compressor.torch_graph.values import Kernel


def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: int | list[int],
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    *,
    causal: int = 1,
    do_rotary: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    outputs: int = 1,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, ...]:
    """Causal attention with a cache -> y [B, S, N * H], present key and value [B, M, T, H], the scores asked for.

    Sequence b holds `seqlens_k[b]` + 1 keys: those of the cache, then the S of this step, written behind them. When
    S is the total length this is the prompt: nothing of the cache counts, and what follows the end of a sequence is
    computed and means nothing. `local_window_size` counts the query's
    own key; `qk_output` 1 gives the scores before, 2 after the softmax.
    """
    q, k, v = _parted(query, key, value, num_heads, kv_num_heads)
    total = total_sequence_length if isinstance(total_sequence_length, int) else total_sequence_length[0]
    steps = q.shape[2]
    past = (seqlens_k + 1 - steps if steps < total else torch.zeros_like(seqlens_k)).long().view(-1, 1)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        places = past + torch.arange(steps, device=q.device) if position_ids is None else position_ids
        cos, sin = cos_cache[places].unsqueeze(1), sin_cache[places].unsqueeze(1)
        q, k = (rotated(x, cos, sin, interleaved=bool(rotary_interleaved)) for x in (q, k))
    if past_key is not None and past_value is not None:
        k, v = _appended(past_key, k, past, total), _appended(past_value, v, past, total)
    present = (k, v)
    k, v = k[:, :, :total], v[:, :, :total]
    before = local_window_size - 1 if local_window_size > 0 else -1
    fused = not (softcap or smooth_softmax or head_sink is not None or outputs > 3)
    if fused and causal and steps == total and before < 0 and attention_bias is None:
        return (core.merged(core.fused(q, k, v, None, causal=True, scale=scale or None)), *present)[:outputs]
    offset = past.view(-1, 1, 1, 1)
    mask = core.both(
        attention_bias, core.window((steps, total), offset, (before, 0 if causal else -1), q.device)
    )
    if not causal:
        mask = core.both(mask, torch.arange(total, device=q.device) <= seqlens_k.view(-1, 1, 1, 1))
    if fused:
        return (core.merged(core.fused(q, k, v, mask, scale=scale or None)), *present)[:outputs]
    sink = None
    if smooth_softmax or head_sink is not None:
        sink = q.new_zeros(1) if head_sink is None else head_sink.view(-1, 1, 1)
    seen = core.explicit(q, k, v, mask, scale=scale or None, softcap=softcap, sink=sink)
    return (core.merged(seen.y), *present, seen.masked if qk_output == 1 else seen.probabilities)[:outputs]


def _parted(
    query: Tensor, key: Tensor | None, value: Tensor | None, count: int, shared: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, N, S, H], k and v [B, M, S, H]; packed they lie behind each other in the query."""
    if key is None or value is None:
        size = query.shape[-1] // (count + 2 * shared)
        query, key, value = torch.split(query, [count * size, shared * size, shared * size], dim=-1)
    return core.heads(query, count), core.heads(key, shared), core.heads(value, shared)


def _appended(cache: Tensor, new: Tensor, past: Tensor, total: int) -> Tensor:
    """The cache [B, M, P, H], lengthened to the total, with the new entries behind each sequence's past [B, 1]."""
    buffer = F.pad(cache, (0, 0, 0, max(total - cache.shape[2], 0)))
    places = (past + torch.arange(new.shape[2], device=new.device)).view(len(past), 1, -1, 1)
    return buffer.scatter(2, places.expand_as(new), new)


KERNELS: dict[str, Kernel] = {"com.microsoft::GroupQueryAttention": group_query_attention}
