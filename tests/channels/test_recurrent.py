"""Hidden units of LSTM, GRU and RNN."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.channels import cut, find
from tests.channels.law import assert_law, groups, plain, reasons
from tests.conftest import build, drawn

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(op: str, directions: int, inputs: str = "", attributes: str = "", **more: np.ndarray):
    """x [5, N, 4] -> a recurrent layer of 6 hidden units -> both directions side by side -> Gemm 3."""
    count = GATES[op]
    kind = "bidirectional" if directions == 2 else "forward"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[5, N, 4] x) => (float[5, N, 3] y) {{
      s = {op} <direction = "{kind}", hidden_size = 6{attributes}> (x, w, r{inputs})
      t = Transpose <perm = [0, 2, 1, 3]> (s)
      f = Reshape(t, into)
      y = MatMul(f, v)
    }}"""
    weights = {
        "w": drawn(directions, count * 6, 4),
        "r": drawn(directions, count * 6, 6, seed=1),
        "into": np.array([0, 0, -1]),
        "v": drawn(directions * 6, 3),
    }
    return build(text, **weights, **more)


def feeds(batch: int) -> dict[str, np.ndarray]:
    return {"x": drawn(5, batch, 4, seed=batch)}


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_hidden_units_are_cut_in_every_gate_and_direction(op, directions, bias):
    more = {"b": drawn(directions, 2 * GATES[op] * 6)} if bias else {}
    proto = layer(op, directions, ", b" if bias else "", **more)
    assert groups(proto) == {"w": 6}
    assert_law(proto, feeds)


def test_peepholes_go_with_their_units():
    proto = layer("LSTM", 2, ", , , , , p", p=drawn(2, 18))
    assert groups(proto) == {"w": 6}
    assert_law(proto, feeds)


def test_stored_initial_states_go_with_their_units():
    proto = layer("LSTM", 1, ", , , h, c", h=drawn(1, 2, 6), c=drawn(1, 2, 6, seed=3))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2
    assert groups(proto) == {"w": 6}
    assert_law(proto, lambda batch: feeds(2))


def test_states_that_the_graph_computes_are_cut_with_the_layer():
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[5, N, 4] x) => (float[1, N, 3] y) {
      n = Shape <start = 1, end = 2> (x)
      d = Concat <axis = 0> (one, n, six)
      h = Expand(nothing, d)
      a, b = GRU <hidden_size = 6> (x, w, r, , , h)
      y = MatMul(b, v)
    }"""
    proto = build(
        text,
        one=np.array([1]),
        six=np.array([6]),
        nothing=np.zeros((1, 1, 1), np.float32),
        w=drawn(1, 18, 4),
        r=drawn(1, 18, 6),
        v=drawn(6, 3),
    )
    assert groups(proto) == {"w": 6}
    assert_law(proto, feeds)


def test_the_hidden_size_follows_a_cut():
    model = plain(layer("GRU", 1))
    found = find(model)
    cut(model, found, {found.groups[0]: np.arange(6) < 4})
    node = next(node for node in model.graph if node.op_type == "GRU")
    assert node.attributes["hidden_size"].as_int() == 4
    assert [tuple(v.shape.numpy()) for v in node.inputs[1:3]] == [(1, 12, 4), (1, 12, 4)]


def test_a_stack_is_cut_layer_by_layer():
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[5, N, 4] x) => (float[1, N, 3] y) {
      a = LSTM <hidden_size = 6> (x, w, r)
      s = Squeeze(a, one)
      b, h = LSTM <hidden_size = 5> (s, w2, r2)
      y = MatMul(h, v)
    }"""
    proto = build(
        text,
        one=np.array([1]),
        w=drawn(1, 24, 4),
        r=drawn(1, 24, 6),
        w2=drawn(1, 20, 6),
        r2=drawn(1, 20, 5),
        v=drawn(5, 3),
    )
    assert groups(proto) == {"w": 6, "w2": 5}
    assert_law(proto, feeds)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_the_batch_may_come_first(op):
    count = GATES[op]
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[N, 5, 4] x) => (float[N, 5, 3] y) {{
      s = {op} <hidden_size = 6, layout = 1> (x, w, r)
      f = Squeeze(s, two)
      y = MatMul(f, v)
    }}"""
    proto = build(text, w=drawn(1, count * 6, 4), r=drawn(1, count * 6, 6), two=np.array([2]), v=drawn(6, 3))
    found = find(plain(proto))
    assert [(g.size, len(g.members)) for g in found.groups] == [(6, 4)]


def test_an_activation_that_moves_zero_is_no_obstacle_to_weights():
    proto = layer("RNN", 1, attributes=', activations = ["Sigmoid"]')
    assert groups(proto) == {"w": 6}
    assert_law(proto, feeds)


def test_units_that_are_an_output_of_the_model_stay():
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[5, N, 4] x) => (float[1, N, 6] h) { s, h = GRU <hidden_size = 6> (x, w, r) }"""
    proto = build(text, w=drawn(1, 18, 4), r=drawn(1, 18, 6))
    assert reasons(proto)["w"] == "'h' is an output of the model"
