"""onnxruntime's Attention, MultiHeadAttention and QAttention; heads are joined in the last axis, [B, S, N * H]."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.torch_graph.operators import attention_core as core
from compressor.torch_graph.operators.grids import decoded
from compressor.torch_graph.values import Kernel


def attention(
    input: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    outputs: int = 1,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: list[int] | None = None,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, ...]:
    """Self-attention with the projection to q, k and v inside -> y [B, S, Dv] and the present keys and values.

    `weights` are [I, D + D + Dv]; `past` and the present are [2, B, N, P, H].
    """
    _refuse("Attention", do_rotary=do_rotary, past_present_share_buffer=past_present_share_buffer)
    projected = input @ weights if bias is None else input @ weights + bias
    sizes = qkv_hidden_sizes or [projected.shape[-1] // 3] * 3
    q, k, v = (core.heads(part, num_heads) for part in torch.split(projected, sizes, dim=-1))
    if past is not None:
        k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
    mask = _masked("Attention", q, k, mask_index, attention_bias, mask_filter_value)
    y = _attended(q, k, v, mask, unidirectional, scale)
    return (y, torch.stack((k, v)))[:outputs] if outputs > 1 else (y,)


def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    outputs: int = 1,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, ...]:
    """Attention of projected q, k and v -> y [B, S, Dv], present key and value [B, N, T, H], the scaled products.

    The three come apart; as q and packed key [B, L, N, 2, H]; packed in the query [B, S, N, 3, H]; or with key and
    value split into heads already, [B, N, L, H].
    """
    _refuse(
        "MultiHeadAttention", cache_indirection=cache_indirection, past_sequence_length=past_sequence_length
    )
    q, k, v = _parted(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
    mask = _masked("MultiHeadAttention", q, k, key_padding_mask, attention_bias, mask_filter_value)
    y = _attended(q, k, v, mask, unidirectional, scale)
    if outputs < 4:
        return (y, k, v)[:outputs]
    return y, k, v, core.explicit(q, k, v, None, scale=scale or None).scores


def q_attention(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    mask_index: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    weight_zero_point: Tensor | None = None,
    past: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    outputs: int = 1,
    past_present_share_buffer: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, ...]:
    """`attention` of a quantized input and quantized weights, whose scale is one number or one per column."""
    x = decoded(input, input_scale, input_zero_point)
    weights = decoded(weight, weight_scale, weight_zero_point)
    return attention(
        x,
        weights,
        bias,
        mask_index,
        past,
        do_rotary=do_rotary,
        mask_filter_value=mask_filter_value,
        num_heads=num_heads,
        outputs=outputs,
        past_present_share_buffer=past_present_share_buffer,
        scale=scale,
        unidirectional=unidirectional,
    )


def _refuse(operator: str, **given: object) -> None:
    """Raise for what only onnxruntime's generation loop uses."""
    for name, value in given.items():
        if isinstance(value, Tensor) or value:
            raise ModelError(
                f"com.microsoft::{operator}: {name} is not supported; export the model without it."
            )


def _parted(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as [B, N, S, H], the bias added."""
    if key is None:
        q, k, v = (part.flatten(2) for part in query.unbind(3))
    elif value is None:
        q, (k, v) = query, (part.flatten(2) for part in key.unbind(3))
    else:
        q, k, v = query, key, value
    if bias is not None:
        widths = [q.shape[-1], q.shape[-1], bias.shape[0] - 2 * q.shape[-1]]
        of_q, of_k, of_v = torch.split(bias, widths)
        q = q + of_q
        if k.dim() == 3:
            k, v = k + of_k, v + of_v
    if k.dim() == 4:
        return core.heads(q, count), k, v
    return core.heads(q, count), core.heads(k, count), core.heads(v, count)


def _masked(
    operator: str, q: Tensor, k: Tensor, padding: Tensor | None, bias: Tensor | None, filler: float
) -> Tensor | None:
    """What is added to the scores: the bias, and the filler where the padding mask has no key."""
    if padding is None:
        return bias
    batch, keys = q.shape[0], k.shape[2]
    position = torch.arange(keys, device=q.device)
    if padding.dim() == 1 and padding.shape[0] == batch:
        there = position < padding.view(batch, 1, 1, 1)
    elif padding.dim() == 1 and padding.shape[0] == 2 * batch:
        end, start = padding.view(2, batch, 1, 1, 1)
        there = (position < end) & (position >= start)
    elif padding.dim() in (2, 3) and padding.shape[-1] == keys:
        there = (padding != 0).view(batch, 1, -1, keys)
    else:
        given = f"a mask of shape {tuple(padding.shape)} is not supported"
        raise ModelError(f"com.microsoft::{operator}: {given}; give one of shape ({batch}, {keys}).")
    filled = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~there, filler)
    return filled if bias is None else filled + bias


def _attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, unidirectional: int, scale: float
) -> Tensor:
    """y [B, S, N * H]; in one direction the last query sees the last key."""
    past = k.shape[2] - q.shape[2]
    if unidirectional and (past or mask is not None):
        mask = core.both(mask, core.window((q.shape[2], k.shape[2]), past, (-1, 0), q.device))
        unidirectional = 0
    return core.merged(core.fused(q, k, v, mask, causal=bool(unidirectional), scale=scale or None))


KERNELS: dict[str, Kernel] = {
    "com.microsoft::Attention": attention,
    "com.microsoft::MultiHeadAttention": multi_head_attention,
    "com.microsoft::QAttention": q_attention,
}
