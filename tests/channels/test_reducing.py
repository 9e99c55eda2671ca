from __future__ import annotations

import numpy as np
import onnx
import pytest

from compressor.channels import find
from tests.channels.law import assert_law, groups, plain, reasons
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn

SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
OTHERS = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")


def over_channels(body: str, opset: int = 18) -> onnx.ModelProto:
    """`s` [N, 6, 6] is what the body makes of `h` [N, 8, 6, 6]."""
    return before_linear(
        f"{body} f = Flatten(s) g = MatMul(f, v)", 4, opset, v=drawn(36, 4, seed=9), ax=ints(1)
    )


@pytest.mark.parametrize("op", SUMS)
def test_a_sum_over_channels_loses_nothing_where_they_are_zero(op: str) -> None:
    proto = over_channels(f"r = Relu(h) a = Abs(r) s = {op} <keepdims = 0> (a, ax)")
    assert groups(proto) == {"wa": 8, "v": 4}
    if op != "ReduceLogSum":  # the logarithm of a small sum is far from that of a smaller one
        assert_law(proto)


@pytest.mark.parametrize("op", SUMS)
def test_a_sum_over_channels_that_are_not_zero_is_declined_by_name(op: str) -> None:
    proto = over_channels(f"r = Sigmoid(h) s = {op} <keepdims = 0> (r, ax)")
    assert reasons(proto)["wa"] == f"{op} '{op}_2' runs over it"


@pytest.mark.parametrize("op", OTHERS)
def test_what_is_no_sum_over_channels_is_declined_by_name(op: str) -> None:
    assert reasons(over_channels(f"s = {op} <keepdims = 0> (h, ax)"))["wa"] == f"{op} '{op}_1' runs over it"


def test_a_mean_over_channels_takes_statistics_of_them() -> None:
    group, _ = find(plain(over_channels("s = ReduceMean <keepdims = 0> (h, ax)"))).groups
    assert group.name == "wa"
    assert group.normalized == "ReduceMean 'ReduceMean_1' takes statistics over it"


@pytest.mark.parametrize("op", [*SUMS, *OTHERS, "ReduceMean"])
@pytest.mark.parametrize("opset", [11, 18])
def test_a_reduction_in_space_leaves_channels_alone(op: str, opset: int) -> None:
    named = "<axes = [2, -1], keepdims = 0> (a)" if opset < 13 else "<keepdims = 0> (a, space)"
    proto = before_linear(f"a = Sigmoid(h) g = {op} {named}", 8, opset, space=ints(2, -1))
    assert groups(proto) == {"wa": 8}
    assert_law(proto, trials=1)


def test_a_reduction_without_axes_runs_over_all_or_none() -> None:
    none = between("g = ReduceMax <noop_with_empty_axes = 1> (h)", opset=18)
    assert_law(none)
    text = """<ir_version: 8, opset_import: ["" : 18]>
    m (float[N, 3, 6, 6] x) => (float[1, 1, 1, 1] y) { h = Conv(x, wa) y = ReduceMax(h) }"""
    assert reasons(build(text, wa=drawn(8, 3, 1, 1))) == {"wa": "ReduceMax 'ReduceMax_1' runs over it"}


def test_axes_from_outside_are_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    m (float[N, 3, 6, 6] x, int64[1] a) => (float[A, B, C, D] y) { h = Conv(x, wa) y = ReduceSum(h, a) }"""
    assert reasons(build(text, wa=drawn(8, 3, 1, 1))) == {
        "wa": "ReduceSum 'ReduceSum_1': its axes are computed"
    }


def test_a_cumulated_sum_runs_over_channels_that_are_zero() -> None:
    proto = between("r = Relu(h) g = CumSum(r, one)", one=np.array(1))
    assert groups(proto) == {"wa": 8}
    assert_law(proto)
    told = reasons(between("r = Sigmoid(h) g = CumSum(r, one)", one=np.array(1)))
    assert told["wa"] == "CumSum 'CumSum_2' runs over it"


def test_a_cumulated_sum_in_space_leaves_channels_alone() -> None:
    assert_law(between("r = Sigmoid(h) g = CumSum <reverse = 1, exclusive = 1> (r, last)", last=np.array(-1)))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(("axis", "opset"), [(1, 17), (-3, 17), (1, 11), (0, 11)])
def test_a_softmax_over_channels_is_declined_by_name(op: str, axis: int, opset: int) -> None:
    proto = between(f"g = {op} <axis = {axis}> (h)", opset=opset)
    assert reasons(proto)["wa"] == f"{op} '{op}_1' runs over it"


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(("attributes", "opset"), [("", 17), ("<axis = 2>", 17), ("<axis = 2>", 11)])
def test_a_softmax_in_space_leaves_channels_alone(op: str, attributes: str, opset: int) -> None:
    assert_law(between(f"g = {op} {attributes} (h)", opset=opset), trials=1)


def test_a_softmax_without_axis_was_over_everything_but_the_batch() -> None:
    assert reasons(between("g = Softmax(h)", opset=11))["wa"] == "Softmax 'Softmax_1' runs over it"


IN_SPACE = {
    "ArgMax": "i = ArgMax <axis = 3> (h) c = Cast <to = 1> (i) g = Add(h, c)",
    "ArgMin without the axis": """i = ArgMin <axis = -1, keepdims = 0> (h) c = Cast <to = 1> (i)
        u = Unsqueeze(c, last) g = Sub(u, h)""",
    "TopK": "g, i = TopK(h, k)",
    "TopK of rows": "g, i = TopK <axis = 2, largest = 0> (h, k)",
    "Compress": "g = Compress <axis = 3> (h, picks)",
    "Trilu": "g = Trilu <upper = 0> (h)",
}


@pytest.mark.parametrize("name", IN_SPACE)
def test_what_picks_in_space_leaves_channels_alone(name: str) -> None:
    picks = np.array([True, False, True, True, False, True])
    proto = between(IN_SPACE[name], size="A, B", k=ints(3), picks=picks, last=ints(-1))
    assert groups(proto) == {"wa": 8}
    assert_law(proto, trials=1)


OVER_CHANNELS = {
    "ArgMax": ("i = ArgMax <axis = 1> (h) g = Cast <to = 1> (i)", 1),
    "TopK": ("g, i = TopK <axis = 1> (h, k)", 3),
    "Compress": ("g = Compress <axis = 1> (h, picks)", 5),
    "ReverseSequence": ("g = ReverseSequence <batch_axis = 0, time_axis = 1> (h, lengths)", 8),
    "Trilu": (
        "t = Transpose <perm = [0, 2, 3, 1]> (h) u = Trilu(t) g = Transpose <perm = [0, 3, 1, 2]> (u)",
        8,
    ),
}


@pytest.mark.parametrize("name", OVER_CHANNELS)
def test_what_picks_among_channels_is_declined_by_name(name: str) -> None:
    body, read = OVER_CHANNELS[name]
    picks = np.array([True] * 5 + [False] * 3)
    proto = between(
        body,
        read,
        size="A, B",
        k=ints(3),
        picks=picks,
        lengths=ints(8, 3),
    )
    assert reasons(proto)["wa"].startswith(name)
    assert reasons(proto)["wa"].endswith("runs over it")


def test_everything_picked_by_a_condition_is_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    m (float[1, 3, 1, 1] x) => (float[A] y) { h = Conv(x, wa) y = Compress(h, picks) }"""
    proto = build(text, wa=drawn(8, 3, 1, 1), picks=np.array([True] * 8))
    assert reasons(proto) == {"wa": "Compress 'Compress_1' runs over it"}


def test_a_determinant_of_channels_is_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 8, 8] x) => (float[N, 8] y) {
      h = Conv(x, wa) t = Transpose <perm = [0, 2, 1, 3]> (h) y = Det(t)
    }"""
    assert reasons(build(text, wa=drawn(8, 3, 1, 1))) == {"wa": "Det 'Det_2' runs over it"}
