from __future__ import annotations

import numpy as np
import pytest

from tests.channels.law import assert_law, groups, reasons
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn

LENGTHS = {
    "a scale by the number of channels": """
        s = Shape(h) c = Gather(s, one) f = Cast <to = 1> (c) q = Sqrt(f) g = Div(h, q)""",
    "a scale by the batch": "s = Shape(h) n = Gather(s, zero) f = Cast <to = 1> (n) g = Div(h, f)",
    "a shape of a part": "s = Shape <start = 1, end = 2> (h) f = Cast <to = 1> (s) g = Mul(h, f)",
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_number_that_was_computed_from_lengths_stays_as_it_was(name: str) -> None:
    proto = between(LENGTHS[name], one=np.array(1), zero=np.array(0))
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_a_number_of_elements_that_the_file_says_stays_as_it_was() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[2, 3, 6, 6] x) => (float[2, 2, 6, 6] y) {
      h = Conv(x, wa) s = Size(h) f = Cast <to = 1> (s) g = Div(h, f) y = Conv(g, wz)
    }"""
    proto = build(text, wa=drawn(8, 3, 1, 1), wz=drawn(2, 8, 1, 1))
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_a_number_of_elements_that_only_the_run_knows_is_declined_by_name() -> None:
    proto = between("s = Size(h) f = Cast <to = 1> (s) g = Div(h, f)")
    assert reasons(proto)["wa"] == "Size 'Size_1' counts its elements"


def test_a_length_behind_an_unknown_shape_that_is_computed_with_is_declined_by_name() -> None:
    body = "s = Shape(h) f = Cast <to = 1> (s) p = ReduceProd(f) g = Div(h, p)"
    assert reasons(between(body))["wa"] == "ReduceProd 'ReduceProd_3' computes with its length"


def test_a_range_over_channels_is_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y) {
      h = Conv(x, wa) r = Range(zero, eight, one) e = Reshape(r, shape) a = Add(h, e) y = Conv(a, wz)
    }"""
    numbers = {"zero": np.float32(0), "eight": np.float32(8), "one": np.float32(1), "shape": ints(1, 8, 1, 1)}
    proto = build(text, wa=drawn(8, 3, 1, 1), wz=drawn(2, 8, 1, 1), **numbers)
    assert reasons(proto)["wa"] == "Range 'Range_1' makes as many numbers as it has positions"


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike"])
def test_noise_as_wide_as_the_channels_is_declined_by_name(op: str) -> None:
    told = reasons(between(f"r = {op}(h) g = Add(h, r)"))
    assert told["wa"] == f"{op} '{op}_1' makes as many numbers as it has positions"


def test_the_batch_of_a_target_may_come_from_a_shape() -> None:
    body = "s = Shape(x) n = Slice(s, none, first) t = Concat <axis = 0> (n, rest) g = Reshape(h, t)"
    proto = before_linear(body, 288, none=ints(0), first=ints(1), rest=ints(288))
    assert groups(proto) == {"wa": 8}
    assert_law(proto)
