from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor.channels.additions import Additions
from compressor.channels.evaluating import evaluated
from tests.channels.law import assert_law, groups, plain
from tests.channels.middles import between, ints
from tests.conftest import build


def last(body: str, kind: str = "int64[A, B]", **constants: np.ndarray) -> ir.Node:
    text = f'<ir_version: 8, opset_import: ["" : 17]> m (float[N, 3] x) => ({kind} y) {{ {body} y = Identity(z) }}'
    model = plain(build(text, **constants))
    return next(node for node in model.graph if node.outputs[0].name == "z")


def test_integers_of_constants_are_what_onnx_says() -> None:
    node = last(
        "z = Slice(a, lo, hi, at, step)",
        a=np.arange(6).reshape(3, 2),
        lo=ints(-1),
        hi=ints(-99),
        at=ints(0),
        step=ints(-1),
    )
    np.testing.assert_array_equal(evaluated(node, 17), [[4, 5], [2, 3], [0, 1]])
    np.testing.assert_array_equal(evaluated(last("z = Mod(a, b)", a=ints(-16), b=ints(7)), 17), [5])


@pytest.mark.parametrize(
    "node",
    [
        last("z = Add(a, a)", "float[A]", a=np.ones(3, np.float32)),
        last("z = Add(a, a)", a=np.ones(65, np.int64)),
        last("s = Shape(x) z = Add(s, a)", a=ints(1, 2)),
        last("z = NonZero(a)", a=ints(1, 2)),
        last("z = Div(a, a)", a=ints(1, 2)),
        last("z = Expand(a, s)", a=ints(1), s=ints(9, 9)),
    ],
    ids=["floats", "many", "computed", "no such operator", "division", "many made"],
)
def test_what_is_large_or_not_certain_is_left_alone(node: ir.Node) -> None:
    assert evaluated(node, 17) is None


def test_padding_to_a_multiple_of_the_window_is_known_before_the_cut() -> None:
    body = """s = Shape(h) e = Gather(s, three) n = Neg(e) m = Mod(n, seven) p = Concat <axis = 0> (none, m)
        q = Reshape(p, pairs) r = Slice(q, minus, least, zero, minus) t = Transpose(q) u = Reshape(t, flat)
        g = Pad(h, u)"""
    widths = {"none": np.zeros(7, np.int64), "pairs": ints(4, 2), "minus": ints(-1), "least": ints(-99)}
    numbers = {"three": ints(3), "seven": ints(7), "zero": ints(0), "flat": ints(-1)}
    proto = between(body, size="A, B", **widths, **numbers)
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_constants_get_names_of_their_own() -> None:
    additions = Additions(plain(between("g = Relu(h)")))
    names = [additions.add(name, ints(1)).name for name in ("h", "wa", "new", "new")]
    assert names == ["h_1", "wa_1", "new", "new_1"]
