"""Lengths that the graph computes, and shapes behind operators that ONNX does not know."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compressor.channels import cut, find
from tests.channels.law import assert_law, groups, plain, reasons
from tests.conftest import build, drawn

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'


def attended(before: str, shape: str = "into", **more: np.ndarray) -> onnx.ModelProto:
    """x [N, 5, 4] -> q of 3 heads of 4, against itself, -> 3."""
    text = f"""{HEAD} g (float[N, 5, 4] x) => (float[N, 5, 3] y) {{
      h = MatMul(x, w) {before}
      r = Reshape(q, {shape}) t = Transpose <perm = [0, 2, 1, 3]> (r) k = Transpose <perm = [0, 2, 3, 1]> (r)
      s = MatMul(t, k) p = Softmax(s) o = MatMul(p, t) b = Transpose <perm = [0, 2, 1, 3]> (o)
      f = Reshape(b, flat) y = MatMul(f, u)
    }}"""
    shapes = {"into": np.array([0, 0, 3, 4]), "flat": np.array([0, 0, -1])}
    used = {name: array for name, array in shapes.items() if name in (shape, "flat")}
    return build(text, w=drawn(4, 12), u=drawn(12, 3), **used, **more)


def test_shapes_are_known_behind_operators_that_onnx_does_not_know():
    proto = attended("g1 = com.microsoft.BiasGelu(h, c) q = com.microsoft.QuickGelu(g1)", c=drawn(12))
    assert groups(proto) == {"w": 3, "w#2": 4}
    assert_law(proto)


def test_nothing_passes_an_operator_of_unknown_rank():
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 3] y, float[N, 3] z) {{
      h = MatMul(x, w) a = com.microsoft.Nothing(h) b = Relu(a) z = MatMul(b, v) y = MatMul(x, v2)
    }}"""
    proto = build(text, w=drawn(4, 8), v=drawn(8, 3), v2=drawn(4, 3))
    found = find(plain(proto))
    assert list(found.groups) == []
    assert [reason.split(":")[1] for reason in found.barriers.values()] == [
        " no rule for this operator",
        " shapes are unknown around it",
        " shapes are unknown around it",
    ]
    assert reasons(proto)["w"].startswith("Nothing 'Nothing_1'")


def test_a_number_that_is_stored_once_and_means_two_lengths_is_rewritten_where_it_is_meant():
    """Two heads, and two queries that share each of them."""
    text = f"""{HEAD} g (float[N, 5, 4] x) => (float[N, 5, 3] y) {{
      h = MatMul(x, w) r = Reshape(h, into) t = Transpose <perm = [0, 2, 1, 3]> (r)
      e = Unsqueeze(t, two) n = Shape <start = 0, end = 1> (x) s = Concat <axis = 0> (n, two, two, five, three)
      c = Expand(e, s) m = Mul(c, k) f = Transpose <perm = [0, 3, 1, 2, 4]> (m) g1 = Reshape(f, flat) y = MatMul(g1, u)
    }}"""
    proto = build(
        text,
        w=drawn(4, 6),
        into=np.array([0, 0, 2, 3]),
        two=np.array([2]),
        five=np.array([5]),
        three=np.array([3]),
        k=drawn(2, 2, 1, 3),
        flat=np.array([0, 0, -1]),
        u=drawn(12, 3),
    )
    assert sorted(groups(proto).values()) == [2, 3]
    assert_law(proto)


def test_a_scale_that_the_graph_computes_from_a_length_stays_as_it_was():
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 3] y) {{
      h = MatMul(x, w) s = Shape(h) c = Slice(s, one, two) f = Cast <to = 1> (c) q = Sqrt(f)
      d = Div(h, q) y = MatMul(d, v)
    }}"""
    proto = build(text, w=drawn(4, 8), one=np.array([1]), two=np.array([2]), v=drawn(8, 3))
    assert groups(proto) == {"w": 8}
    assert_law(proto)


@pytest.mark.parametrize("least", [-1, np.iinfo(np.int64).min], ids=["last", "from the beginning"])
def test_a_slice_of_a_shape_may_begin_before_it(least):
    """As torch writes the lengths before and of the last axis."""
    tail = "a = Slice(s, least, huge)" if least == -1 else "a = Slice(s, least, last)"
    more = "c = Concat <axis = 0> (n, a)" if least == -1 else "c = Concat <axis = 0> (a, e)"
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 3] y) {{
      h = MatMul(x, w) s = Shape(h) n = Shape <start = 0, end = 1> (h) {tail} {more}
      r = Reshape(h, c) y = MatMul(r, v)
    }}"""
    names = {"huge": np.array([2**62])} if least == -1 else {"last": np.array([-1]), "e": np.array([8])}
    proto = build(text, w=drawn(4, 8), v=drawn(8, 3), least=np.array([least]), **names)
    assert groups(proto) == {"w": 8}
    assert_law(proto)


def test_what_an_exported_expand_chooses_between_is_decided():
    """`token.expand(n, -1, -1)`, as torch's older exporter writes it."""
    text = f"""{HEAD} g (float[N, 5, 4] x) => (float[N, 6, 3] y) {{
      h = MatMul(x, w) n = Shape <start = 0, end = 1> (x) s = Concat <axis = 0> (n, keep, keep)
      o = ConstantOfShape <value = int64[1] {{1}}> (three) m = Mul(o, keep) q = Equal(s, m) c = Where(q, o, s)
      t = Expand(token, c) a = Concat <axis = 1> (t, h) y = MatMul(a, v)
    }}"""
    proto = build(
        text, w=drawn(4, 8), keep=np.array([-1]), three=np.array([3]), token=drawn(1, 1, 8), v=drawn(8, 3)
    )
    assert groups(proto) == {"w": 8}
    assert_law(proto)


def test_a_cut_leaves_no_length_of_before():
    model = plain(attended("q = Relu(h)"))
    found = find(model)
    cut(model, found, {found.groups[0]: np.array([True, False, True])})
    shape = next(node.inputs[1] for node in model.graph if node.op_type == "Reshape")
    assert shape is not None
    assert shape.const_value.numpy().tolist() == [0, 0, 2, 4]
