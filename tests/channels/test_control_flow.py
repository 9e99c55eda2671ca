"""Bodies of If, Loop and Scan are part of the graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import parser

from tests.channels.law import assert_law, groups, reasons
from tests.conftest import drawn

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'


def graph(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    proto = parser.parse_model(f"{HEAD} {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in weights.items())
    return proto


def branches(body: str, outer: str = "h = Relu(g)") -> onnx.ModelProto:
    text = f"""m (float[N, 4] x, bool c) => (float[N, 3] y) {{
      g = Gemm(x, w, b) {outer}
      f = If (c) <
        then_branch = t () => (float[N, 8] p) {{ p = Relu(h) }},
        else_branch = e () => (float[N, 8] q) {{ {body} }}
      >
      y = MatMul(f, v)
    }}"""
    return graph(text, w=drawn(4, 8), b=drawn(8), u=drawn(8, 8), d=drawn(4, 8), v=drawn(8, 3))


def feeds(batch: int) -> dict[str, np.ndarray]:
    return {"x": drawn(batch, 4, seed=batch), "c": np.array(batch > 2)}


def test_both_branches_lose_the_same_channels():
    proto = branches("q = MatMul(x, d)")
    assert groups(proto) == {"w": 8}
    assert_law(proto, feeds)


def test_what_a_branch_computes_inside_is_cut_there():
    proto = branches("i = MatMul(h, u) j = Relu(i) q = MatMul(j, u2)")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(drawn(8, 8), "u2"))
    assert groups(proto) == {"w": 8, "u": 8}
    assert_law(proto, feeds)


def test_a_state_is_the_same_channels_in_every_turn():
    text = """m (float[N, 4] x) => (float[N, 3] y, float[K, N, 3] all) {
      s = MatMul(x, w)
      e, every = Loop (turns, , s) <
        body = b (int64 i, bool c, float[N, 8] h) => (bool c2, float[N, 8] h3, float[N, 3] o) {
        c2 = Identity(c)
        h2 = MatMul(h, u)
        h3 = Tanh(h2)
        o = MatMul(h3, v)
      }>
      y = MatMul(e, v)
      all = Identity(every)
    }"""
    proto = graph(text, w=drawn(4, 8), u=drawn(8, 8) / 3, v=drawn(8, 3), turns=np.array(3))
    assert groups(proto) == {"w": 8}
    assert_law(proto)


def test_a_recurrent_cell_written_as_a_scan_is_cut():
    text = """m (float[5, 2, 4] x) => (float[5, 2, 3] y) {
      e, every = Scan <num_scan_inputs = 1, body = b (float[2, 8] h, float[2, 4] z) => (float[2, 8] h3, float[2, 8] o) {
        a = MatMul(z, w)
        r = MatMul(h, u)
        h2 = Add(a, r)
        h3 = Tanh(h2)
        o = Identity(h3)
      }> (start, x)
      y = MatMul(every, v)
    }"""
    proto = graph(text, start=np.zeros((2, 8), np.float32), w=drawn(4, 8), u=drawn(8, 8) / 3, v=drawn(8, 3))
    assert groups(proto) == {"w": 8}
    assert_law(proto)


def test_the_axis_that_a_scan_takes_apart_stays():
    text = """m (float[N, 4] x) => (float[6, N] y) {
      h = MatMul(x, w)
      y = Scan <num_scan_inputs = 1, scan_input_axes = [1], body = b (float[N] z) => (float[N] o) { o = Relu(z) }> (h)
    }"""
    assert "goes along it" in reasons(graph(text, w=drawn(4, 6)))["w"]


def test_what_an_unknown_operator_reads_from_outside_its_body_stays():
    text = """m (float[N, 4] x, float[K, N, 8] z) => (float[N, 3] y, float[N, 8] o) {
      h = MatMul(x, w)
      s = SplitToSequence <axis = 0, keepdims = 0> (z)
      t = SequenceMap (s) <body = b (float[N, 8] i) => (float[N, 8] j) { j = Add(i, h) }>
      o = SequenceAt(t, first)
      y = MatMul(h, v)
    }"""
    proto = graph(text, w=drawn(4, 8), v=drawn(8, 3), first=np.array(0))
    assert groups(proto) == {}
    assert "SequenceMap" in reasons(proto)["w"]
