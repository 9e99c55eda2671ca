from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.channels.law import assert_law, groups, plain, random_feeds, reasons
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn


def embedding(body: str = "g = Relu(e)") -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    m (int64[N, 5] t) => (float[N, 5, 3] y) {{
      e = Gather(table, t) {body} y = MatMul(g, wz)
    }}"""
    return build(text, table=drawn(10, 8), wz=drawn(8, 3))


def test_what_an_embedding_makes_is_cut_in_every_row() -> None:
    proto = embedding()
    assert groups(proto) == {"table": 8}
    assert_law(proto, lambda batch: {"t": np.arange(5 * batch).reshape(batch, 5) % 10})


def test_the_rows_of_an_embedding_are_no_channels() -> None:
    assert reasons(embedding("g = Softmax(e)"))["table"] == "Softmax 'Softmax_1' runs over it"


PICKED = {
    "one position in space": "p = Gather <axis = 2> (h, zero) u = Unsqueeze(p, two) g = Relu(u)",
    "positions in space": "g = Gather <axis = -1> (h, some)",
    "points in space": "t = Transpose <perm = [0, 2, 3, 1]> (h) p = GatherND <batch_dims = 1> (t, points) "
    "q = Transpose <perm = [0, 2, 1]> (p) g = Unsqueeze(q, two)",
    "points in space replaced": "t = Transpose <perm = [2, 3, 0, 1]> (h) r = ScatterND(t, places, new) "
    "g = Transpose <perm = [2, 3, 0, 1]> (r)",
}


@pytest.mark.parametrize("name", PICKED)
def test_what_is_looked_up_in_space_leaves_channels_alone(name: str) -> None:
    points = np.array([[[0, 1], [5, 5], [2, 3]]] * 2)
    proto = between(
        PICKED[name],
        size="A, B",
        zero=np.array(0),
        two=ints(2),
        some=ints(4, 1, 1),
        points=points,
        places=np.array([[0, 1], [5, 5]]),
        new=drawn(2, 2, 8),
    )
    assert groups(proto) == {"wa": 8}
    assert_law(proto, lambda _: random_feeds(plain(proto), 2), trials=1)


NUMBERED = {
    "Gather": ("g = Gather <axis = 1> (h, order)", 8),
    "GatherElements": ("g = GatherElements <axis = 1> (h, elements)", 1),
    "ScatterElements": ("g = ScatterElements <axis = 1> (h, elements, news)", 8),
    "GatherND": (
        "t = Transpose <perm = [1, 0, 2, 3]> (h) p = GatherND(t, rows) g = Transpose <perm = [1, 0, 2, 3]> (p)",
        2,
    ),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_channels_that_are_looked_up_by_number_are_declined_by_name(name: str) -> None:
    body, read = NUMBERED[name]
    proto = between(
        body,
        read,
        order=ints(1, 0, 3, 2, 5, 4, 7, 6),
        elements=np.zeros((2, 1, 6, 6), np.int64),
        news=drawn(2, 1, 6, 6),
        rows=np.array([[3], [1]]),
    )
    assert reasons(proto)["wa"].startswith(f"{name} '{name}_")
    assert reasons(proto)["wa"].endswith("looks it up by number")


def test_channels_that_are_replaced_by_number_are_declined_by_name() -> None:
    body = "t = Transpose <perm = [1, 0, 2, 3]> (h) p = ScatterND(t, rows, new) g = Transpose <perm = [1, 0, 2, 3]> (p)"
    proto = between(body, 8, rows=np.array([[3]]), new=drawn(1, 2, 6, 6))
    assert reasons(proto)["wa"] == "ScatterND 'ScatterND_2' puts values at numbered positions"


def test_one_hot_makes_positions_that_stay() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (int64[N, 5] t) => (float[N, 5, 3] y) {
      e = OneHot <axis = -1> (t, ten, values) h = MatMul(e, w1) g = Relu(h) y = MatMul(g, wz)
    }"""
    proto = build(
        text, w1=drawn(10, 8), wz=drawn(8, 3), ten=np.array(10), values=np.array([0, 1], np.float32)
    )
    assert groups(proto) == {"w1": 8}
    assert_law(proto)


@pytest.mark.parametrize("body", ["i = NonZero(h)", "i = Unique(h)"])
def test_positions_that_the_run_picks_are_declined_by_name(body: str) -> None:
    op = body.split()[2].partition("(")[0]
    kind = "int64[A, B]" if op == "NonZero" else "float[A]"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 6, 6] x) => ({kind} i) {{ h = Conv(x, wa) {body} }}"""
    assert reasons(build(text, wa=drawn(8, 3, 1, 1))) == {"wa": f"{op} '{op}_1' picks from it"}


def test_indices_of_unknown_depth_are_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 6, 6] x, int64[2, A] i) => (float[B, C] y) { h = Conv(x, wa) y = GatherND(h, i) }"""
    told = reasons(build(text, wa=drawn(8, 3, 1, 1)))
    assert told == {"wa": "GatherND 'GatherND_1': how many axes it indexes is not known"}


def test_the_first_token_of_a_sequence_keeps_its_channels() -> None:
    body = "f = Reshape(h, s) t = Transpose <perm = [0, 2, 1]> (f) g = Gather <axis = 1> (t, zero)"
    proto = before_linear(body, 8, s=ints(0, 8, 36), zero=np.array(0))
    assert groups(proto) == {"wa": 8}
    assert_law(proto)
