from __future__ import annotations

import numpy as np
import onnx
import pytest

from compressor.channels import find
from tests.channels.law import assert_law, groups, plain, reasons
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn

FLATTENED = {
    "Flatten": "g = Flatten(h)",
    "Flatten from the last axes": "f = Flatten <axis = -3> (h) g = Identity(f)",
    "Reshape with a batch of -1": "g = Reshape(h, s)",
    "Reshape with a batch of 0": "g = Reshape(h, z)",
    "Reshape with all lengths": "g = Reshape(h, k)",
    "Reshape with a target put together at run time": """
        all = Shape(h) one = Gather(all, zero) n = Unsqueeze(one, first)
        t = Concat <axis = 0> (n, rest) g = Reshape(h, t)""",
    "Reshape with two lengths computed": """
        all = Shape(h) n = Slice(all, first, second) c = Gather(all, second) hw = Gather(all, third)
        chw = Mul(c, hw) feature = Mul(chw, hw) t = Concat <axis = 0> (n, feature) g = Reshape(h, t)""",
    "Reshape with a batch times one": """
        all = Shape(h) n = Slice(all, first, second) one = Mul(n, second)
        t = Concat <axis = 0> (one, rest_known) g = Reshape(h, t)""",
}
CONSTANTS = {
    **{"s": ints(-1, 288), "z": ints(0, 288), "k": ints(-1, 288), "zero": np.array(0), "rest": ints(-1)},
    **{"first": ints(0), "second": ints(1), "third": ints(2), "rest_known": ints(288)},
}


@pytest.mark.parametrize("body", FLATTENED.values(), ids=FLATTENED)
def test_a_channel_of_a_convolution_is_a_run_of_rows_behind_a_flattening(body: str) -> None:
    proto = before_linear(body, 288, **CONSTANTS)
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_a_length_that_is_computed_with_other_lengths_is_inferred_instead() -> None:
    model = plain(before_linear(FLATTENED["Reshape with a batch times one"], 288, **CONSTANTS))
    assert find(model).declined == {"wz": "'y' is an output of the model"}
    reshape = next(node for node in model.graph if node.op_type == "Reshape")
    made = reshape.inputs[1].producer()
    assert made.inputs[0].const_value.numpy().tolist() == [-1]


STATIC = """<ir_version: 8, opset_import: ["" : 17]>
m (float[2, 3, 6, 6] x) => (float[2, 3] y) {
  h = Conv(x, wa, ba)
  r = Reshape(h, s)
  y = MatMul(r, wz)
}"""


def test_flatten_written_as_reshape_with_a_constant_is_rewritten() -> None:
    weights = {"wa": drawn(8, 3, 1, 1), "ba": drawn(8), "wz": drawn(288, 3, seed=1), "s": ints(2, 288)}
    assert_law(build(STATIC, **weights))


def shuffle(groups: int) -> onnx.ModelProto:
    return between(
        "r = Reshape(h, s) t = Transpose <perm = [0, 2, 1, 3, 4]> (r) f = Reshape(t, e) g = Conv <group = 8> (f, wd)",
        s=ints(-1, groups, 8 // groups, 6, 6),
        e=ints(-1, 8, 6, 6),
        wd=drawn(8, 1, 1, 1, seed=3),
    )


@pytest.mark.parametrize("count", [2, 4, 8, 1])
def test_channels_that_are_shuffled_are_cut_by_group_or_in_the_same_places_of_every_group(count: int) -> None:
    proto = shuffle(count)
    assert sorted(groups(proto).values()) == sorted(size for size in (count, 8 // count) if size > 1)
    assert_law(proto)


def test_a_shufflenet_unit_with_grouped_convolutions_is_cut() -> None:
    body = """
        r = Reshape(h, s) t = Transpose <perm = [0, 2, 1, 3, 4]> (r) f = Reshape(t, e)
        d = Conv <group = 8, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (f, wd)
        p = Conv <group = 2> (d, wp) g = Add(p, h)"""
    weights = {
        "s": ints(0, 2, 4, 6, 6),
        "e": ints(0, -1, 6, 6),
        "wd": drawn(8, 1, 3, 3),
        "wp": drawn(8, 4, 1, 1),
    }
    proto = between(body, **weights)
    assert_law(proto)


VIEWS = {
    "Transpose and back": "t = Transpose <perm = [0, 2, 3, 1]> (h) g = Transpose <perm = [0, 3, 1, 2]> (t)",
    "Transpose without perm, twice": "t = Transpose(h) g = Transpose(t)",
    "Unsqueeze and Squeeze": "u = Unsqueeze(h, one) g = Squeeze(u, one)",
    "Unsqueeze from the end": "u = Unsqueeze(h, last) g = Squeeze(u, last)",
    "tokens and back": """
        f = Reshape(h, s) t = Transpose <perm = [0, 2, 1]> (f) b = Transpose <perm = [0, 2, 1]> (t)
        g = Reshape(b, e)""",
    "heads and back": "f = Reshape(h, heads) g = Reshape(f, e)",
}


@pytest.mark.parametrize("body", VIEWS.values(), ids=VIEWS)
def test_channels_pass_through_a_view_and_back(body: str) -> None:
    shapes = {"s": ints(0, 0, -1), "e": ints(0, -1, 6, 6), "heads": ints(0, 2, 4, 36)}
    proto = between(body, one=ints(1), last=ints(-1), **shapes)
    assert sum(groups(proto).values()) in (6, 8)
    assert_law(proto)


def test_old_squeeze_and_unsqueeze_keep_their_axes_in_an_attribute() -> None:
    proto = between("u = Unsqueeze <axes = [2, 4]> (h) g = Squeeze <axes = [2, 4]> (u)", opset=11)
    assert_law(proto)


def test_squeeze_without_axes_drops_every_axis_of_length_one() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[2, 3, 6, 6] x) => (float[2, 3] y) {
      h = Conv(x, wa) p = GlobalAveragePool(h) s = Squeeze(p) y = MatMul(s, wz)
    }"""
    assert_law(build(text, wa=drawn(8, 3, 1, 1), wz=drawn(8, 3)))


def test_a_reshape_into_lengths_that_cross_channels_is_declined_by_name() -> None:
    proto = before_linear(
        "r = Reshape(h, s) q = Relu(r) g = Reshape(q, e)", 288, s=ints(0, 3, 96), e=ints(0, 288)
    )
    assert "wa" in reasons(proto)
    assert reasons(proto)["wa"].startswith(
        "Reshape 'Reshape_1' lays axes of different structure side by side"
    )


def test_a_reshape_to_a_shape_from_outside_is_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 6, 6] x, int64[2] s) => (float[A, 3] y) {
      h = Conv(x, wa) r = Reshape(h, s) y = MatMul(r, wz)
    }"""
    proto = build(text, wa=drawn(8, 3, 1, 1), wz=drawn(288, 3))
    assert reasons(proto)["wa"] == "Reshape 'Reshape_1': its shape is computed"


def test_a_target_that_two_reshapes_share_is_rewritten_for_the_one_that_is_cut() -> None:
    body = "r = Reshape(h, s) b = Reshape(r, e) o = Reshape(x3, e) a = Add(b, o) g = Relu(a)"
    proto = between(
        "k = Conv(x, wk) x3 = Reshape(k, s) " + body,
        s=ints(0, 288),
        e=ints(-1, 8, 6, 6),
        wk=drawn(8, 3, 1, 1),
    )
    assert_law(proto)
    assert groups(proto) == {"wa": 8}
