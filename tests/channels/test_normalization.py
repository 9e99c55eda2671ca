"""Normalizations: exact per channel, marked where statistics are taken over channels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compressor.channels import Found, cut, find
from compressor.runtime import Session, Setup
from tests.channels.law import assert_law, groups, plain
from tests.conftest import build, drawn

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
POSITIVE = np.abs(drawn(8, seed=3)) + 0.5


def convolved(body: str, head: str = HEAD, **weights: np.ndarray):
    """x -> 1x1 Conv w, 8 channels -> body from h to n -> Relu -> 1x1 Conv v, 3 channels."""
    text = f"""{head} g (float[N, 4, 3, 3] x) => (float[N, 3, 3, 3] y) {{
      h = Conv(x, w, b) {body} r = Relu(n) y = Conv(r, v)
    }}"""
    return build(text, w=drawn(8, 4, 1, 1), b=drawn(8), v=drawn(3, 8, 1, 1), **weights)


def normalized(proto) -> Mapping[str, bool]:
    """Group -> whether it is under a normalization."""
    return {group.name: group.normalized is not None for group in find(plain(proto)).groups}


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("n = BatchNormalization(h, s, t, m, q)", {"m": drawn(8), "q": POSITIVE}),
        ("n = InstanceNormalization(h, s, t)", {}),
    ],
    ids=["batch", "instance"],
)
def test_statistics_per_channel_are_cut_exactly(body, weights):
    proto = convolved(body, s=drawn(8, seed=1), t=drawn(8, seed=2), **weights)
    assert normalized(proto) == {"w": False}
    assert_law(proto)


def test_channels_normalized_by_themselves_do_not_move_the_others():
    """A masked channel has no variance, so only what reads it is masked."""
    keep, x = np.array([True, False] * 4), drawn(2, 4, 3, 3)
    proto = convolved("n = MeanVarianceNormalization(h)")
    model = plain(proto)
    found = find(model)
    cut(model, found, {found.groups[0]: keep})
    reading = next(i for i in proto.graph.initializer if i.name == "v")
    reading.CopyFrom(onnx.numpy_helper.from_array(drawn(3, 8, 1, 1) * keep.reshape(-1, 1, 1), "v"))
    expected, got = (Session(m, Setup(threads=1)).run({"x": x})[0] for m in (plain(proto), model))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_norm_over_channels_that_are_zero_when_masked_is_cut_exactly():
    proto = convolved("n = LpNormalization <axis = 1, p = 2> (h)")
    assert normalized(proto) == {"w": False}
    assert_law(proto)


@pytest.mark.parametrize(
    "body", ["a = Sigmoid(h) n = LpNormalization <axis = 1> (a)", "n = LRN <size = 3> (h)"]
)
def test_a_norm_that_reads_masked_channels_keeps_them(body):
    assert groups(convolved(body)) == {}


PARAMETERS = {
    "per channel": (HEAD, {"s": drawn(8, seed=1), "t": drawn(8, seed=2)}),
    "per group": (HEAD.replace("21", "18"), {"s": drawn(4, seed=1), "t": drawn(4, seed=2)}),
}


@pytest.mark.parametrize(("head", "weights"), PARAMETERS.values(), ids=PARAMETERS)
def test_whole_groups_of_a_group_normalization_are_cut_exactly(head, weights):
    proto = convolved("n = GroupNormalization <num_groups = 4> (h, s, t)", head, **weights)
    assert list(normalized(proto).values()) == [False, True]
    assert_law(proto)


def test_the_number_of_groups_follows_a_cut():
    model = plain(
        convolved("n = GroupNormalization <num_groups = 4> (h, s, t)", **PARAMETERS["per channel"][1])
    )
    found = find(model)
    cut(model, found, {found.groups[0]: np.array([True, False, True, True])})
    assert [n.attributes["num_groups"].as_int() for n in model.graph if "num_groups" in n.attributes] == [3]


def test_a_group_normalization_as_exported_is_cut_by_groups():
    body = """a = Reshape(h, into) i = InstanceNormalization(a, s, t) o = Shape(h) c = Reshape(i, o)
      d = Mul(c, e) n = Add(d, f)"""
    proto = convolved(
        body,
        into=np.array([0, 4, -1]),
        s=np.ones(4, np.float32),
        t=np.zeros(4, np.float32),
        e=drawn(8, 1, 1, seed=1),
        f=drawn(8, 1, 1, seed=2),
    )
    assert list(normalized(proto).values()) == [False, True]
    assert_law(proto)


def cut_one(proto, channels: np.ndarray) -> tuple[ir.Model, Found]:
    model = plain(proto)
    found = find(model)
    group = next(group for group in found.groups if group.normalized)
    cut(model, found, {group: channels})
    return model, found


def test_a_cut_inside_groups_normalizes_what_stays():
    """Mask before the norm, with the reduced count: the statistics are those of the channels that stay."""
    proto = convolved("n = GroupNormalization <num_groups = 2> (h, s, t)", **PARAMETERS["per channel"][1])
    keep = np.array([True, False, True, True])
    x, w = drawn(2, 4, 3, 3), {i.name: np.array(ir.from_proto(i).numpy()) for i in proto.graph.initializer}
    h = np.einsum("nihw,oi->nohw", x, w["w"][:, :, 0, 0]) + w["b"].reshape(-1, 1, 1)
    stays = np.tile(keep, 2)
    groups_ = h[:, stays].reshape(2, 2, -1)
    centred = (groups_ - groups_.mean(-1, keepdims=True)) / np.sqrt(groups_.var(-1, keepdims=True) + 1e-5)
    n = centred.reshape(2, 6, 3, 3) * w["s"][stays].reshape(-1, 1, 1) + w["t"][stays].reshape(-1, 1, 1)
    expected = np.einsum("nihw,oi->nohw", np.maximum(n, 0), w["v"][:, stays, 0, 0])
    model, _ = cut_one(proto, keep)
    got = Session(model, Setup(threads=1)).run({"x": x})[0]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


STREAM = {
    "LayerNormalization": ("n = LayerNormalization <axis = -1> (r, s, t)", True),
    "RMSNormalization": ("n = RMSNormalization(r, s)", False),
    "SimplifiedLayerNormalization": ("n = SimplifiedLayerNormalization <axis = -1> (r, s)", False),
    "decomposed LayerNorm": (
        "m = ReduceMean(r, last) c = Sub(r, m) p = Mul(c, c) v2 = ReduceMean(p, last) e2 = Add(v2, eps)"
        "d = Sqrt(e2) z = Div(c, d) g = Mul(z, s) n = Add(g, t)",
        True,
    ),
    "decomposed RMSNorm": (
        "p = Pow(r, two) v2 = ReduceMean(p, last) e2 = Add(v2, eps) d = Sqrt(e2) q = Reciprocal(d)"
        "z = Mul(r, q) n = Mul(z, s)",
        False,
    ),
}


@pytest.mark.parametrize(("body", "centred"), STREAM.values(), ids=STREAM)
def test_a_residual_stream_is_marked_and_cut_as_if_it_had_been_narrower(body, centred):
    """Mask before the norm, with the reduced count."""
    head = HEAD.replace("21", "23") if "RMSN" in body else HEAD
    text = f"""{head} g (float[N, 5, 4] x) => (float[N, 5, 3] y) {{
      h = MatMul(x, w) k = MatMul(x, u) r = Add(h, k) {body} y = MatMul(n, v)
    }}"""
    small = {"last": np.array([-1]), "eps": np.float32(1e-5), "two": np.float32(2)}
    used = {name: array for name, array in small.items() if f"{name})" in body or f", {name}" in body}
    weights = {"w": drawn(4, 8), "u": drawn(4, 8, seed=5), "s": POSITIVE, "v": drawn(8, 3)}
    weights |= {"t": drawn(8, seed=2)} if centred else {}
    proto = build(text, **weights, **used)
    assert normalized(proto) == {"w": True}
    keep = np.array([True, False] * 4)
    x = drawn(2, 5, 4, seed=9)
    r = (x @ weights["w"] + x @ weights["u"])[..., keep]
    c = r - r.mean(-1, keepdims=True) if centred else r
    n = c / np.sqrt((c**2).mean(-1, keepdims=True) + 1e-5) * weights["s"][keep]
    expected = (n + (weights["t"][keep] if centred else 0)) @ weights["v"][keep]
    model, _ = cut_one(proto, keep)
    got = Session(model, Setup(threads=1)).run({"x": x})[0]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_what_a_layer_normalization_does_not_average_over_is_cut_exactly():
    """Heads, when the norm runs over the channels of each head."""
    text = (
        f"{HEAD} g (float[N, 4] x) => (float[N, 3] y) {{ h = MatMul(x, w) a = Reshape(h, into)"
        "n = LayerNormalization <axis = -1> (a, s, t) f = Flatten(n) y = MatMul(f, v) }"
    )
    proto = build(
        text, w=drawn(4, 12), into=np.array([0, 3, 4]), s=drawn(4), t=drawn(4, seed=2), v=drawn(12, 3)
    )
    assert normalized(proto) == {"w": False, "w#2": True}
    assert_law(proto)


@pytest.mark.parametrize("simplified", [False, True])
def test_fused_skip_normalizations_join_what_they_add(simplified):
    op = "SkipSimplifiedLayerNormalization" if simplified else "SkipLayerNormalization"
    rest = "s, b" if simplified else "s, t, b"
    text = (
        f"{HEAD} g (float[N, 5, 4] x) => (float[N, 5, 3] y) {{ h = MatMul(x, w) k = MatMul(x, u)"
        f"n, m, i, a = com.microsoft.{op} (h, k, {rest}) c = Add(n, a) y = MatMul(c, v) }}"
    )
    weights = {
        "w": drawn(4, 8),
        "u": drawn(4, 8),
        "s": POSITIVE,
        "t": drawn(8),
        "b": drawn(8),
        "v": drawn(8, 3),
    }
    if simplified:
        weights.pop("t")
    found = find(plain(build(text, **weights)))
    assert [(g.size, bool(g.normalized), len(g.members)) for g in found.groups] == [(8, True, len(weights))]
    model, _ = cut_one(build(text, **weights), np.array([True, False] * 4))
    assert Session(model, Setup(threads=1)).run({"x": drawn(2, 5, 4)})[0].shape == (2, 5, 3)


def test_fused_embeddings_are_tables_of_one_group():
    text = (
        f"{HEAD} g (int32[N, 5] ids, int32[N, 5] kinds) => (float[N, 5, 3] y) {{"
        "e, m = com.microsoft.EmbedLayerNormalization (ids, kinds, words, places, types, s, t) y = MatMul(e, v) }"
    )
    weights = {
        "words": drawn(9, 8),
        "places": drawn(5, 8),
        "types": drawn(2, 8),
        "s": POSITIVE,
        "t": drawn(8),
        "v": drawn(8, 3),
    }
    found = find(plain(build(text, **weights)))
    roles = [(m.value.name, m.role) for m in found.groups[0].members]
    assert set(roles) == {
        ("words", "output"),
        ("places", "output"),
        ("types", "output"),
        ("s", "along"),
        ("t", "along"),
        ("v", "input"),
    }
    model, _ = cut_one(build(text, **weights), np.array([True, False] * 4))
    ids = np.zeros((2, 5), np.int32)
    assert Session(model, Setup(threads=1)).run({"ids": ids, "kinds": ids})[0].shape == (2, 5, 3)
