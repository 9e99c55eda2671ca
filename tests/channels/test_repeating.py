from __future__ import annotations

import numpy as np
import pytest

from tests.channels.law import assert_law, groups, reasons
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn

REPEATED = {
    "a bias stretched over channels": "e = Expand(b, shape) g = Add(h, e)",
    "a bias stretched over channels of the other": "s = Shape(h) e = Expand(b, s) g = Add(h, e)",
    "a map stretched to its own shape": "s = Shape(h) g = Expand(h, s)",
    "a map stretched to fewer axes": "g = Expand(h, few)",
    "a map stretched in space": "p = GlobalAveragePool(h) g = Expand(p, space)",
    "a bias tiled over channels": "e = Tile(b, over) g = Add(h, e)",
    "a map tiled in space": "g = Tile(h, twice)",
    "zeros beside it": "z = ConstantOfShape(shape) g = Add(h, z)",
    "zeros of its own shape": "s = Shape(h) z = ConstantOfShape(s) g = Max(h, z)",
    "zeros of a shape put together": """
        s = Shape(h) n = Gather(s, first) t = Concat <axis = 0> (n, tail)
        z = ConstantOfShape <value = float[1] {1}> (t) g = Mul(h, z)""",
    "twos beside it": "z = ConstantOfShape <value = float[1] {2}> (shape) g = Mul(h, z)",
}
WEIGHTS = {
    **{
        "b": drawn(1, 1, 1, 1, seed=5),
        "shape": ints(1, 8, 6, 6),
        "few": ints(8, 1, 1),
        "space": ints(1, 1, 4, 4),
    },
    **{"over": ints(1, 8, 1, 1), "twice": ints(1, 1, 2, 1), "first": ints(0), "tail": ints(8, 1, 1)},
}


@pytest.mark.parametrize("name", REPEATED)
def test_what_is_repeated_over_channels_is_repeated_less_often_after_a_cut(name: str) -> None:
    proto = between(REPEATED[name], size="A, B", **WEIGHTS)
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_channels_that_are_tiled_are_cut_in_every_copy() -> None:
    proto = between("g = Tile(h, thrice)", 24, thrice=ints(1, 3, 1, 1))
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_an_axis_of_a_map_that_stands_for_channels_elsewhere_is_cut_there() -> None:
    proto = between(
        "t = Expand(one, shape) k = Conv(t, wk) g = Add(h, k)",
        one=drawn(1, 1, 1, 1),
        shape=ints(1, 5, 1, 1),
        wk=drawn(8, 5, 1, 1),
    )
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_channels_repeated_as_often_as_the_run_says_are_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 6, 6] x, int64[4] r) => (float[A, B, C, D] y) { h = Conv(x, wa) y = Tile(h, r) }"""
    assert reasons(build(text, wa=drawn(8, 3, 1, 1))) == {"wa": "Tile 'Tile_1' computes its length"}


def test_a_sum_over_channels_that_were_stretched_is_declined_by_name() -> None:
    body = "e = Expand(b, shape) a = Add(h, e) s = ReduceSum <keepdims = 0> (a, ax) f = Flatten(s) g = MatMul(f, v)"
    proto = before_linear(body, 4, v=drawn(36, 4), ax=ints(1), **WEIGHTS)
    assert reasons(proto)["wa"] == "ReduceSum 'ReduceSum_3' runs over it"


def test_weights_that_the_graph_makes_are_declined_by_name() -> None:
    proto = between(
        "w = ConstantOfShape <value = float[1] {0.5}> (shape) g = Conv(h, w)", shape=ints(8, 8, 1, 1)
    )
    told = reasons(proto)
    assert told == {
        "wz": "'y' is an output of the model",
        "w": "ConstantOfShape 'ConstantOfShape_1' computes it; only stored weights are cut",
    }
    assert_law(proto)
    assert np.prod(list(groups(proto).values())) == 8
