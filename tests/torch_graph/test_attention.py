"""Attention and rotary embedding: values of onnxruntime, the fused form against the written-out one, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.torch_graph.operators import (
    attention,
    attention_core,
    grouped_attention,
    microsoft_attention,
    rotary,
)
from tests.torch_graph.one_node import both

DRAW = np.random.default_rng(0)
MS = "com.microsoft::"
KERNELS = attention.KERNELS | microsoft_attention.KERNELS | grouped_attention.KERNELS | rotary.KERNELS


def floats(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def agree(operator: str, inputs: list[Any], **given: Any) -> None:
    ours, theirs = both(KERNELS, operator, inputs, **given)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        if given.get("num_heads") and mine.ndim == 4:
            mine = np.where(other == 0, 0, mine)  # onnxruntime clears a cache behind its end
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=2e-5)  # float32 sums in another order


B, S, L, N, M, H = 2, 3, 5, 4, 2, 6
Q4, K4, V4 = floats(B, N, S, H), floats(B, M, L, H), floats(B, M, L, 8)
Q3, K3, V3 = floats(B, S, N * H), floats(B, L, N * H), floats(B, L, N * 8)
CACHE = [floats(B, M, 2, H), floats(B, M, 2, 8)]
CORE: list[tuple[list[Any], dict[str, Any]]] = [
    ([Q4, K4, V4], {}),
    ([Q4, K4, V4], {"is_causal": 1}),
    ([Q4, K4, V4], {"scale": 0.3, "softcap": 0.7, "outputs": 4}),
    ([Q3, K3, V3], {"q_num_heads": N, "kv_num_heads": N, "outputs": 3}),
    ([Q4, K4, V4, floats(S, L)], {}),
    ([Q4, K4, V4, DRAW.random((B, 1, S, L)) > 0.3], {"is_causal": 1}),
    ([Q4, K4, V4, None, *CACHE], {"outputs": 3}),
    ([Q4, K4, V4, floats(S, L + 2), *CACHE], {"outputs": 4, "is_causal": 1, "qk_matmul_output_mode": 3}),
    ([Q4, K4, V4, floats(S, L)], {"outputs": 4}),
]


@pytest.mark.parametrize(("inputs", "given"), CORE)
def test_attention_of_onnx_equals_onnxruntime(inputs: list[Any], given: dict[str, Any]) -> None:
    agree("Attention", inputs, at_opset=23, **given)


D = N * H
MASKS = [None, ints(3, 5), ints(3, 5, 1, 0), ints([1, 1, 0, 1, 1], [1, 1, 1, 1, 0])]
MASKS.append(DRAW.integers(0, 2, (B, L, L)).astype(np.int32))


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(None if mask is None else mask.shape))
@pytest.mark.parametrize("one_way", [0, 1])
def test_the_projecting_attention_equals_onnxruntime(mask: np.ndarray | None, one_way: int) -> None:
    inputs = [floats(B, L, 7), floats(7, 3 * D), floats(3 * D), mask]
    agree(MS + "Attention", inputs, num_heads=N, unidirectional=one_way, outputs=2)


@pytest.mark.parametrize(
    ("inputs", "given"),
    [
        ([floats(B, L, 7), floats(7, 3 * D), floats(3 * D)], {}),
        (
            [floats(B, L, 7), floats(7, 2 * D + 8), floats(2 * D + 8)],
            {"qkv_hidden_sizes": [D, D, 8], "scale": 0.2},
        ),
        ([floats(B, S, 7), floats(7, 3 * D), floats(3 * D), None, floats(2, B, N, 2, H)], {"outputs": 2}),
        ([floats(B, S, 7), floats(7, 3 * D), floats(3 * D), None, None, floats(1, N, S, S)], {}),
    ],
)
def test_the_projecting_attention_takes_what_onnxruntime_takes(
    inputs: list[Any], given: dict[str, Any]
) -> None:
    agree(MS + "Attention", inputs, num_heads=N, **given)


X, KEYS, VALUES, BIAS = floats(B, S, D), floats(B, L, D), floats(B, L, N * 8), floats(2 * D + N * 8)
MULTI: list[tuple[list[Any], dict[str, Any]]] = [
    ([X, KEYS, VALUES], {}),
    ([X, KEYS, VALUES, BIAS], {"scale": 0.3}),
    ([X, KEYS, VALUES, None, ints(3, 5)], {}),
    ([X, KEYS, VALUES, None, ints([1, 1, 0, 1, 1], [1, 1, 1, 1, 0])], {"mask_filter_value": -5.0}),
    ([X, KEYS, VALUES, BIAS, None, floats(B, N, S, L)], {}),
    ([X, floats(B, N, L, H), floats(B, N, L, H)], {}),
    (
        [X, X, X, None, None, None, floats(B, N, 2, H), floats(B, N, 2, H)],
        {"outputs": 3, "unidirectional": 1},
    ),
]


@pytest.mark.parametrize(("inputs", "given"), MULTI)
def test_multi_head_attention_equals_onnxruntime(inputs: list[Any], given: dict[str, Any]) -> None:
    agree(MS + "MultiHeadAttention", inputs, num_heads=N, **given)


def test_packed_keys_and_values_are_the_separate_ones() -> None:
    kernel = microsoft_attention.multi_head_attention
    packed = torch.from_numpy(floats(B, S, N, 3, H))
    q, k, v = (part.flatten(2) for part in packed.unbind(3))
    (apart,) = kernel(q, k, v, num_heads=N, unidirectional=1)
    assert torch.equal(kernel(packed, num_heads=N, unidirectional=1)[0], apart)
    assert torch.equal(kernel(q, packed[:, :, :, 1:], num_heads=N, unidirectional=1)[0], apart)


def test_the_fourth_output_of_multi_head_attention_is_the_scaled_products() -> None:
    q, k, v = (torch.from_numpy(floats(B, S, D)) for _ in range(3))
    *_, products = microsoft_attention.multi_head_attention(q, k, v, num_heads=1, scale=0.25, outputs=4)
    torch.testing.assert_close(products, 0.25 * q.unsqueeze(1) @ k.unsqueeze(1).mT)


HEAD = 16  # GroupQueryAttention wants a multiple of it
TABLES = [np.cos(floats(16, HEAD // 2)), np.sin(floats(16, HEAD // 2))]


def grouped(steps: int, past: int, lengths: list[int], packed: bool = False) -> list[Any]:
    """Inputs for `steps` new keys, a cache of `past`, and sequences of the given lengths."""
    batch, q, kv = len(lengths), N * HEAD, M * HEAD
    new = [floats(batch, steps, q), floats(batch, steps, kv), floats(batch, steps, kv)]
    if packed:
        new = [floats(batch, steps, q + 2 * kv), None, None]
    cache = [floats(batch, M, past, HEAD), floats(batch, M, past, HEAD)] if past else [None, None]
    return [*new, *cache, ints(*lengths) - 1, ints(max(lengths))]


GROUPED: list[tuple[list[Any], dict[str, Any]]] = [
    (grouped(5, 0, [5, 5]), {}),
    (grouped(5, 0, [5, 5], packed=True), {"scale": 0.2}),
    ([*grouped(5, 0, [5, 5]), *TABLES], {"do_rotary": 1}),
    ([*grouped(5, 0, [5, 5]), *TABLES], {"do_rotary": 1, "rotary_interleaved": 1}),
    (grouped(5, 0, [5, 5]), {"local_window_size": 2}),
    (grouped(5, 0, [5, 5]), {"softcap": 0.6}),
    (grouped(5, 0, [5, 5]), {"smooth_softmax": 1}),
    ([*grouped(5, 0, [5, 5]), None, None, None, None, floats(N)], {}),
    ([*grouped(5, 0, [5, 5]), None, None, None, floats(B, N, 5, 5)], {}),
    # Without the present outputs onnxruntime reads memory that it did not write.
    ([*grouped(1, 4, [5, 3]), *TABLES], {"do_rotary": 1, "outputs": 3}),
    (grouped(1, 8, [5, 3]), {"outputs": 3}),
    (grouped(3, 4, [7]), {"local_window_size": 3, "outputs": 3}),
]


@pytest.mark.parametrize(("inputs", "given"), GROUPED)
def test_group_query_attention_equals_onnxruntime(inputs: list[Any], given: dict[str, Any]) -> None:
    agree(MS + "GroupQueryAttention", inputs, num_heads=N, kv_num_heads=M, **given)


@pytest.mark.parametrize("stage", [1, 2])
def test_group_query_attention_gives_its_scores(stage: int) -> None:
    inputs = grouped(5, 0, [5, 5])
    ours, theirs = both(
        KERNELS, MS + "GroupQueryAttention", inputs, outputs=4, num_heads=N, kv_num_heads=M, qk_output=stage
    )
    seen = np.tril(np.ones((5, 5), bool))  # onnxruntime leaves what is masked as it was
    np.testing.assert_allclose(ours[3][..., seen], theirs[3][..., seen], rtol=1e-4, atol=2e-5)


def test_attention_in_both_directions_sees_only_the_keys_that_are_there() -> None:
    inputs = grouped(5, 0, [5, 3])
    agree(MS + "GroupQueryAttention", inputs, num_heads=N, kv_num_heads=M, causal=0)


POSITIONS = np.array([[0, 1, 2], [3, 1, 0]], np.int64)


@pytest.mark.parametrize(
    ("operator", "inputs", "given"),
    [
        ("RotaryEmbedding", [Q4, floats(9, 3), floats(9, 3), POSITIONS], {}),
        ("RotaryEmbedding", [Q4, floats(B, S, 3), floats(B, S, 3)], {"interleaved": 1}),
        (
            "RotaryEmbedding",
            [Q3, floats(9, 2), floats(9, 2), POSITIONS],
            {"num_heads": N, "rotary_embedding_dim": 4},
        ),
        (MS + "RotaryEmbedding", [Q3, POSITIONS, floats(9, 3), floats(9, 3)], {}),
        (
            MS + "RotaryEmbedding",
            [Q4, np.array([2]), floats(9, 3), floats(9, 3)],
            {"interleaved": 1, "scale": 2.0},
        ),
        (
            MS + "RotaryEmbedding",
            [Q3, POSITIONS, floats(9, 2), floats(9, 2)],
            {"num_heads": N, "rotary_embedding_dim": 4},
        ),
    ],
)
def test_rotary_embedding_equals_onnxruntime(operator: str, inputs: list[Any], given: dict[str, Any]) -> None:
    agree(operator, inputs, at_opset=23, **given)


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.double).requires_grad_() for s in shapes]


@pytest.mark.parametrize("given", [{}, {"is_causal": 1}, {"softcap": 0.5}, {"left_window_size": 1}])
def test_gradients_are_those_of_the_values(given: dict[str, Any]) -> None:
    q, k, v = tensors((1, 4, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2))
    assert torch.autograd.gradcheck(lambda *x: attention.attention(*x, **given)[0], (q, k, v))


def test_the_fused_form_equals_the_written_out_one() -> None:
    q, k, v = tensors((1, 4, 3, 2), (1, 2, 5, 2), (1, 2, 5, 2))
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[1] = False
    fused, seen = attention_core.fused(q, k, v, mask), attention_core.explicit(q, k, v, mask)
    torch.testing.assert_close(fused, seen.y)
    assert not seen.y[:, :, 1].any()


def test_a_window_of_no_keys_on_either_side_leaves_the_query_its_own() -> None:
    q, k, v = tensors((1, 1, 3, 2), (1, 1, 3, 2), (1, 1, 3, 2))
    (y,) = attention.attention(q, k, v, left_window_size=0, right_window_size=0)
    torch.testing.assert_close(y, v)


def test_the_keys_past_a_sequences_length_do_not_count() -> None:
    q, k, v = tensors((1, 1, 2, 2), (1, 1, 5, 2), (1, 1, 5, 2))
    (short,) = attention.attention(q, k, v, nonpad_kv_seqlen=torch.tensor([3]))
    (cut,) = attention.attention(q, k[:, :, :3], v[:, :, :3])
    torch.testing.assert_close(short, cut)


@pytest.mark.parametrize(
    ("operator", "given", "text"),
    [
        ("Attention", {"weights": torch.zeros(6, 18), "do_rotary": 1}, "do_rotary is not supported"),
        (
            "Attention",
            {"weights": torch.zeros(6, 18), "mask_index": torch.zeros(7)},
            r"a mask of shape \(7,\) is not supported; give one of shape \(2, 5\)",
        ),
        (
            "MultiHeadAttention",
            {"cache_indirection": torch.zeros(1)},
            "MultiHeadAttention: cache_indirection is not supported; export the model without it.",
        ),
    ],
)
def test_what_only_a_generation_loop_uses_is_refused(operator: str, given: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        KERNELS[MS + operator](torch.zeros(2, 5, 6), num_heads=1, **given)
