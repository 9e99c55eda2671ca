"""Attention and rotary embeddings as operators of their own: heads, shared heads, widths."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.channels import cut, find
from tests.channels.law import assert_law, groups, plain, reasons
from tests.conftest import build, drawn

HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'


def attention(heads: int, shared: int, attributes: str = "", before: str = "", **more: np.ndarray):
    """x [N, 5, 4] -> q, k, v of width 4 and 6 -> Attention -> 3."""
    text = f"""{HEAD} g (float[N, 5, 4] x) => (float[N, 5, 3] y) {{
      q = MatMul(x, wq)
      k = MatMul(x, wk)
      v = MatMul(x, wv)
      {before}
      a = Attention <q_num_heads = {heads}, kv_num_heads = {shared}{attributes}> (q, k, v)
      y = MatMul(a, u)
    }}"""
    weights = {
        "wq": drawn(4, heads * 4),
        "wk": drawn(4, shared * 4, seed=1),
        "wv": drawn(4, shared * 6, seed=2),
    }
    return build(text, **weights, u=drawn(heads * 6, 3), **more)


def test_heads_and_the_widths_of_keys_and_values_are_cut():
    proto = attention(3, 3)
    assert groups(proto) == {"wq": 3, "wq#2": 4, "wv": 6}
    assert_law(proto)


def test_heads_that_share_a_key_are_cut_together_or_alike_in_every_share():
    proto = attention(6, 2)
    assert groups(proto) == {"wq": 2, "wq#2": 3, "wq#3": 4, "wv": 6}
    assert_law(proto)


def test_the_scale_stays_that_of_the_whole_head():
    model = plain(attention(2, 2))
    found = find(model)
    width = next(group for group in found.groups if group.size == 4)
    cut(model, found, {width: np.array([True, False, True, False])})
    node = next(node for node in model.graph if node.op_type == "Attention")
    assert node.attributes["scale"].as_float() == 0.5


def test_heads_may_have_an_axis_of_their_own():
    text = f"""{HEAD} g (float[N, 5, 4] x) => (float[N, 5, 3] y) {{
      q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
      q1 = Reshape(q, into4) q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
      k1 = Reshape(k, into4) k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
      v1 = Reshape(v, into6) v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
      a, pk, pv, s = Attention <is_causal = 1> (q2, k2, v2)
      b = Transpose <perm = [0, 2, 1, 3]> (a) c = Reshape(b, flat) y = MatMul(c, u)
    }}"""
    proto = build(
        text,
        wq=drawn(4, 12),
        wk=drawn(4, 12),
        wv=drawn(4, 18),
        into4=np.array([0, 0, 3, 4]),
        into6=np.array([0, 0, 3, 6]),
        flat=np.array([0, 0, -1]),
        u=drawn(18, 3),
    )
    assert sorted(groups(proto).values()) == [3, 4, 6]
    assert_law(proto)


def test_a_mask_per_head_goes_with_its_head():
    text = f"""{HEAD} g (float[N, 5, 4] x) => (float[N, 5, 3] y) {{
      q = MatMul(x, w) k = MatMul(x, w2)
      a = Attention <q_num_heads = 3, kv_num_heads = 3> (q, k, k, m)
      y = MatMul(a, u)
    }}"""
    proto = build(text, w=drawn(4, 12), w2=drawn(4, 12), m=drawn(3, 5, 5), u=drawn(12, 3))
    assert groups(proto) == {"w": 3, "w#2": 4}
    assert_law(proto)


def test_keys_kept_for_the_next_call_keep_their_heads():
    text = f"""{HEAD} g (float[N, 5, 4] x, float[N, 2, P, 4] pk, float[N, 2, P, 6] pv)
      => (float[N, 5, 3] y, float[N, 2, T, 4] nk, float[N, 2, T, 6] nv) {{
      q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
      a, nk, nv = Attention <q_num_heads = 6, kv_num_heads = 2> (q, k, v, , pk, pv)
      y = MatMul(a, u)
    }}"""
    proto = build(text, wq=drawn(4, 24), wk=drawn(4, 8), wv=drawn(4, 12), u=drawn(36, 3))
    assert groups(proto) == {"wq": 3}
    assert reasons(proto)["wv"].startswith("'pv' comes from outside")
    assert_law(
        proto,
        lambda n: {"x": drawn(n, 5, 4), "pk": drawn(n, 2, 2, 4), "pv": drawn(n, 2, 2, 6)},
    )


ROTARY = {"halves": ", interleaved = 0", "neighbours": ", interleaved = 1"}


@pytest.mark.parametrize("order", ROTARY.values(), ids=ROTARY)
@pytest.mark.parametrize("turned", [0, 2])
def test_rotated_pairs_go_together(order, turned):
    pairs = (turned or 4) // 2
    rotary = f"""
      qr = RotaryEmbedding <num_heads = 3, rotary_embedding_dim = {turned}{order}> (q, c, s)
      kr = RotaryEmbedding <num_heads = 3, rotary_embedding_dim = {turned}{order}> (k, c, s)"""
    text = f"""{HEAD} g (float[2, 5, 4] x) => (float[2, 5, 3] y) {{
      q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) {rotary}
      a = Attention <q_num_heads = 3, kv_num_heads = 3> (qr, kr, v)
      y = MatMul(a, u)
    }}"""
    angle = drawn(2, 5, pairs)
    proto = build(
        text,
        wq=drawn(4, 12),
        wk=drawn(4, 12),
        wv=drawn(4, 18),
        c=np.cos(angle),
        s=np.sin(angle),
        u=drawn(18, 3),
    )
    assert groups(proto) == {"wq": 3, "wq#2": 2, "wv": 6}  # two pairs, or the two channels that pass
    assert_law(proto)


def fused(body: str, **weights: np.ndarray):
    return build(
        f"{HEAD} g (float[N, 5, 4] x) => (float[N, 5, 3] y) {{ {body} y = MatMul(a, u) }}", **weights
    )


@pytest.mark.parametrize("sizes", ["", ", qkv_hidden_sizes = [12, 12, 12]"])
def test_merged_weights_are_cut_in_all_three_parts(sizes):
    proto = fused(
        f"a = com.microsoft.Attention <num_heads = 3{sizes}> (x, w, b)",
        w=drawn(4, 36),
        b=drawn(36),
        u=drawn(12, 3),
    )
    assert groups(proto) == {"w": 3, "w#2": 4, "w#3": 4}
    assert_law(proto)


@pytest.mark.parametrize("bias", ["", ", b"])
def test_fused_multi_head_attention(bias):
    weights = {"b": drawn(12 + 12 + 18)} if bias else {}
    proto = fused(
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
        f"a = com.microsoft.MultiHeadAttention <num_heads = 3> (q, k, v{bias})",
        wq=drawn(4, 12),
        wk=drawn(4, 12),
        wv=drawn(4, 18),
        u=drawn(18, 3),
        **weights,
    )
    assert sorted(groups(proto).values()) == [3, 4, 6]
    assert_law(proto)


def test_fused_grouped_attention():
    body = """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
      a, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 6, kv_num_heads = 2> (q, k, v, , , lengths, total)"""
    proto = fused(
        body,
        wq=drawn(4, 48),
        wk=drawn(4, 16),
        wv=drawn(4, 16),
        u=drawn(48, 3),
        lengths=np.array([4, 4], np.int32),
        total=np.array(5, np.int32),
    )
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert groups(proto) == {"wq": 2, "wq#2": 3}
    assert_law(proto)


def test_fused_rotary_embedding():
    body = """q = MatMul(x, wq) k = MatMul(x, wk)
      qr = com.microsoft.RotaryEmbedding (q, places, c, s)
      kr = com.microsoft.RotaryEmbedding (k, places, c, s)
      a = com.microsoft.MultiHeadAttention <num_heads = 3> (qr, kr, q)"""
    angle = drawn(9, 2)
    proto = fused(
        body,
        wq=drawn(4, 12),
        wk=drawn(4, 12),
        places=np.array([0]),
        c=np.cos(angle),
        s=np.sin(angle),
        u=drawn(12, 3),
    )
    assert sorted(groups(proto).values()) == [2, 3]
    assert_law(proto)
