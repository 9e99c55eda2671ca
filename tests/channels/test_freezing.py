from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.channels.additions import Additions
from compressor.channels.freezing import Freezer
from compressor.channels.sizes import Measured, Stored, element, held, rewrite
from compressor.channels.tracing import Place
from compressor.graph import remove_dead
from compressor.runtime import Session, Setup
from tests.channels.law import plain, random_feeds
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn

HEADER = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N, 8, 6, 6] x) => (float[A, B] y) {"""


def freeze(model: ir.Model) -> None:
    freezer = Freezer(model)
    for node in list(model.graph):
        freezer.freeze(node)
    remove_dead(model)


def frozen(body: str, **more: np.ndarray) -> ir.Model:
    model = plain(build(f"{HEADER} {body} }}", **more))
    freeze(model)
    return model


def node(model: ir.Model, op: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op)


def test_lengths_that_the_file_says_become_constants_and_the_others_stay() -> None:
    body = (
        "s = Shape(x) c = Gather(s, at) n = Gather(s, first) t = Concat <axis = 0> (n, c) y = Reshape(x, t)"
    )
    model = frozen(body, at=ints(1, 2), first=ints(0))
    (batch, channels) = node(model, "Concat").inputs
    assert batch.producer().op_type == "Gather"
    assert channels.const_value.numpy().tolist() == [8, 6]


def test_integer_arithmetic_on_lengths_becomes_a_constant() -> None:
    body = """s = Shape(x) c = Gather(s, at) h = Div(c, two) m = Mul(h, c) d = Sub(m, two) a = Add(d, c)
        t = Concat <axis = 0> (a, minus) y = Reshape(x, t)"""
    model = frozen(body, at=ints(1), two=ints(2), minus=ints(-1))
    assert held(node(model, "Reshape"), 1) == [(8 // 2) * 8 - 2 + 8, -1]


def test_division_by_zero_is_left_to_the_runtime() -> None:
    body = (
        "s = Shape(x) c = Gather(s, at) h = Div(c, zero) t = Concat <axis = 0> (h, minus) y = Reshape(x, t)"
    )
    model = frozen(body, at=ints(1), zero=ints(0), minus=ints(-1))
    assert node(model, "Div")


def test_freezing_twice_changes_nothing_more() -> None:
    model = plain(
        between(
            "a, b = Split <axis = 1> (h) s = Slice(a, lo, hi, one) g = Add(a, b)",
            4,
            lo=ints(-3),
            hi=ints(-2),
            one=ints(1),
        )
    )
    freeze(model)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    freeze(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def test_what_is_frozen_computes_the_same() -> None:
    body = """s = Shape(h) n = Slice(s, none, one) c = Gather(s, one) d = Gather(s, two)
        m = Mul(d, d) t = Concat <axis = 0> (n, c, m)
        r = Reshape(h, t) a, b = Split <axis = 1> (r) e = Slice(a, minus, last, one) f = Concat <axis = 1> (e, b)
        g = Flatten(f)"""
    proto = before_linear(body, 36 * 7, none=ints(0), one=ints(1), two=ints(2), minus=ints(-3), last=ints(9))
    before, after = plain(proto), plain(proto)
    freeze(after)
    feeds = random_feeds(before, 2)
    for a, b in zip(*(Session(m, Setup(threads=1)).run(feeds) for m in (before, after)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_split_gets_the_sizes_that_its_operator_set_gives_it() -> None:
    for opset, slot in ((11, "split"), (17, 1), (18, 1)):
        number = ", num_outputs = 3" if opset == 18 else ""
        body = f"k = Conv(h, wk) a, b, c = Split <axis = 1{number}> (k) g = Add(a, b)"
        model = plain(between(body, 3, opset, wk=drawn(9, 8, 1, 1)))
        freeze(model)
        assert held(node(model, "Split"), slot) == [3, 3, 3]
        assert "num_outputs" not in node(model, "Split").attributes


def test_an_element_is_followed_to_the_constant_that_holds_it() -> None:
    body = """s = Shape(x) n = Slice(s, none, one) t = Concat <axis = 0> (n, rest)
        u = Cast <to = 7> (t) y = Reshape(x, u)"""
    model = plain(build(f"{HEADER} {body} }}", none=ints(0), one=ints(1), rest=ints(288)))
    target = node(model, "Reshape").inputs[1]
    assert element(target, 0) == Measured(model.graph.inputs[0], 0)
    stored = element(target, 1)
    assert isinstance(stored, Stored)
    assert (stored.path[-1].name, stored.element, stored.size) == ("rest", 0, 288)


def test_an_element_that_is_computed_is_not_followed() -> None:
    body = (
        "s = Shape(x) n = Gather(s, none) m = Mul(n, two) t = Concat <axis = 0> (m, rest) y = Reshape(x, t)"
    )
    model = plain(build(f"{HEADER} {body} }}", none=ints(0), two=ints(2), rest=ints(144)))
    assert held(node(model, "Reshape"), 1) == [None, 144]
    assert element(None, 0) is None
    assert element(model.graph.inputs[0], 0) is None


def test_an_element_from_the_end_of_a_shape_is_found() -> None:
    body = "s = Shape(x) n = Gather(s, four) t = Concat <axis = 0> (n, minus) y = Reshape(x, t)"
    model = plain(build(f"{HEADER} {body} }}", four=ints(-4), minus=ints(-1)))
    assert held(node(model, "Reshape"), 1) == [Measured(model.graph.inputs[0], 0), -1]


def test_a_rewritten_length_leaves_other_readers_alone() -> None:
    body = "a = Reshape(x, t) b = Reshape(x, t) c = Concat <axis = 1> (a, b) y = Relu(c)"
    model = plain(build(f"{HEADER} {body} }}", t=ints(-1, 288)))
    first, second = (n for n in model.graph if n.op_type == "Reshape")
    rewrite(Place(first, 1, 1), 144, Additions(model))
    assert held(first, 1) == [-1, 144]
    assert held(second, 1) == [-1, 288]


def test_a_length_behind_other_nodes_is_rewritten_in_a_copy_of_them() -> None:
    body = """s = Shape(x) n = Slice(s, none, one) t = Concat <axis = 0> (n, rest)
        a = Reshape(x, t) b = Reshape(x, t) y = Add(a, b)"""
    model = plain(build(f"{HEADER} {body} }}", none=ints(0), one=ints(1), rest=ints(288)))
    first, second = (n for n in model.graph if n.op_type == "Reshape")
    rewrite(Place(first, 1, 1), 144, Additions(model))
    rewrite(Place(first, 1, 0), 99, Additions(model))
    assert held(first, 1) == [Measured(model.graph.inputs[0], 0), 144]
    assert held(second, 1) == [Measured(model.graph.inputs[0], 0), 288]


def test_an_inferred_length_and_an_attribute_are_rewritten_in_their_own_way() -> None:
    body = "r = Reshape(x, t) y = Relu(r)"
    model = plain(build(f"{HEADER} {body} }}", t=ints(-1, 288)))
    rewrite(Place(node(model, "Reshape"), 1, 0), 5, Additions(model))
    assert held(node(model, "Reshape"), 1) == [-1, 288]
    old = plain(between("a, b = Split <axis = 1, split = [3, 5]> (h) g = Relu(a)", 3, 11))
    rewrite(Place(node(old, "Split"), "split", 1), 4, Additions(old))
    assert held(node(old, "Split"), "split") == [3, 4]
