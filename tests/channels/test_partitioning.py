from __future__ import annotations

import numpy as np
import onnx
import pytest

from compressor.channels import cut, find
from compressor.channels.grouping import Found
from tests.channels.law import assert_law, groups, plain, reasons
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn

HALVES = {
    "two sizes": "a, b = Split <axis = 1> (h, s)",
    "the sizes as an attribute": ("a, b = Split <axis = 1, split = [3, 5]> (h)", 11),
    "no sizes": "a, b = Split <axis = 1> (h)",
    "no sizes, before operator set 13": ("a, b = Split <axis = 1> (h)", 11),
    "a number of parts": ("a, b = Split <axis = -3, num_outputs = 2> (h)", 18),
}


def halves(split: str | tuple[str, int], behind: str) -> onnx.ModelProto:
    text, opset = (split, 17) if isinstance(split, str) else split
    return between(f"{text} {behind}", opset=opset, s=ints(3, 5))


@pytest.mark.parametrize("split", HALVES.values(), ids=HALVES)
def test_parts_of_a_split_are_cut_by_themselves(split: str | tuple[str, int]) -> None:
    proto = halves(split, "r = Relu(a) g = Concat <axis = 1> (b, r)")
    assert sorted(groups(proto).values()) in ([3, 5], [4, 4])
    assert_law(proto)


def test_parts_of_a_split_that_meet_are_cut_in_the_same_places() -> None:
    proto = between("a, b = Split <axis = 1> (h) r = Sigmoid(a) g = Mul(r, b)", read=4)
    assert groups(proto) == {"wa": 4}
    assert_law(proto)


def test_three_uneven_parts_by_number_follow_an_uneven_cut() -> None:
    proto = between(
        "a, b, c = Split <axis = 1, num_outputs = 3> (h) g = Concat <axis = 1> (c, a, b)", opset=18
    )
    assert sorted(groups(proto).values()) == [2, 3, 3]
    assert_law(proto)


def test_a_split_by_sizes_from_outside_is_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 6, 6] x, int64[2] s) => (float[N, A, 6, 6] y) {
      h = Conv(x, wa) a, b = Split <axis = 1> (h, s) y = Relu(a)
    }"""
    told = reasons(build(text, wa=drawn(8, 3, 1, 1)))
    assert told == {"wa": "Split 'Split_1' takes it apart where only the run knows"}


CONCATENATED = {
    "twice the same": "g = Concat <axis = 1> (h, h)",
    "with what it became": "r = Sigmoid(h) g = Concat <axis = -3> (h, r)",
    "with another": "k = Conv(x, wk) g = Concat <axis = 1> (k, h)",
    "nested": "k = Conv(x, wk) c = Concat <axis = 1> (k, h) b = Conv(c, wb) g = Concat <axis = 1> (c, b)",
    "with the input": "g = Concat <axis = 1> (x, h)",
    "along height": "c = Concat <axis = 2> (h, h) g = Identity(c)",
}
READ = {"with another": 13, "nested": 17, "with the input": 11, "along height": 8}


@pytest.mark.parametrize("name", CONCATENATED)
def test_concatenated_channels_keep_their_places(name: str) -> None:
    weights = {"wk": drawn(5, 3, 1, 1, seed=4), "wb": drawn(4, 13, 1, 1, seed=5)}
    proto = between(CONCATENATED[name], READ.get(name, 16), **weights)
    assert_law(proto)


def test_a_sum_of_concatenations_splits_where_either_ends() -> None:
    body = """k = Conv(x, wk) l = Conv(x, wl) m = Conv(x, wm)
        c = Concat <axis = 1> (h, k) d = Concat <axis = 1> (l, m) g = Add(c, d)"""
    weights = {"wk": drawn(5, 3, 1, 1), "wl": drawn(6, 3, 1, 1), "wm": drawn(7, 3, 1, 1)}
    proto = between(body, 13, **weights)
    assert sorted(groups(proto).values()) == [2, 5, 6]
    assert_law(proto)


SLICED = {
    "the first": ("g = Slice(h, zero, three, one)", 3),
    "all but the first": ("g = Slice(h, three, many, one)", 5),
    "the middle": ("g = Slice(h, two, six, one)", 4),
    "from the end": ("g = Slice(h, minus_three, many, one)", 3),
    "up to the end": ("g = Slice(h, two, minus_one, one)", 5),
    "the last": ("g = Slice(h, minus_one, many, one)", 1),
    "up to the length": ("g = Slice(h, three, eight, one)", 5),
    "every second": ("g = Slice(h, zero, many, one, two)", 4),
    "every second from the second": ("g = Slice(h, one, many, one, two)", 4),
    "every second from the last but six": ("g = Slice(h, minus_seven, many, one, two)", 4),
    "all": ("g = Slice(h, zero, many, one)", 8),
    "in space": ("g = Slice(h, zero_one, many_many, space, twos)", 8),
    "in space and channels": ("g = Slice(h, two_one, many_many, mixed)", 6),
    "both halves": (
        "a = Slice(h, zero, four, one) b = Slice(h, four, many, one) c = Sigmoid(b) g = Mul(a, c)",
        4,
    ),
    "overlapping": (
        "a = Slice(h, zero, six, one) b = Slice(h, two, eight, one) g = Concat <axis = 1> (a, b)",
        12,
    ),
}
BOUNDS = {
    **{"zero": ints(0), "one": ints(1), "two": ints(2), "three": ints(3), "four": ints(4), "six": ints(6)},
    **{
        "eight": ints(8),
        "many": ints(2**63 - 1),
        "minus_three": ints(-3),
        "minus_seven": ints(-7),
        "minus_one": ints(-1),
    },
    **{"zero_one": ints(0, 1), "many_many": ints(2**31 - 1, 99), "space": ints(2, -1), "twos": ints(2, 2)},
    **{"two_one": ints(2, 1), "mixed": ints(1, 3)},
}


@pytest.mark.parametrize("name", SLICED)
def test_a_slice_takes_the_channels_it_took_before(name: str) -> None:
    body, read = SLICED[name]
    proto = between(body, read, **BOUNDS)
    assert_law(proto)


def test_an_old_slice_keeps_its_bounds_in_attributes() -> None:
    proto = between("g = Slice <axes = [1, 2], starts = [2, 0], ends = [-1, 1000]> (h)", 5, opset=9)
    assert sorted(groups(proto).values()) == [2, 5]
    assert_law(proto)


def test_a_slice_with_bounds_that_share_a_constant_is_rewritten_alone() -> None:
    body = "a = Slice(h, four, eight, one) b = Slice(k, four, eight, one) g = Add(a, b)"
    proto = between("k = Conv(x, wk) " + body, 4, wk=drawn(8, 3, 1, 1, seed=7), **BOUNDS)
    assert sorted(groups(proto).values()) == [4, 4, 4]
    assert_law(proto)


BACKWARDS = {
    "backwards": "g = Slice(h, minus_one, least, one, minus_one)",
    "every third": "g = Slice(h, zero, many, one, three)",
}


@pytest.mark.parametrize(("name", "read"), [("backwards", 8), ("every third", 3)])
def test_a_slice_in_another_order_is_declined_by_name(name: str, read: int) -> None:
    proto = between(BACKWARDS[name], read, least=ints(-(2**31)), **BOUNDS)
    assert reasons(proto)["wa"] == "Slice 'Slice_1' takes positions that do not follow a cut"


def test_a_slice_bound_from_outside_is_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 6, 6] x, int64[1] e) => (float[N, A, 6, 6] y) {
      h = Conv(x, wa) s = Slice(h, zero, e, one) y = Relu(s)
    }"""
    told = reasons(build(text, wa=drawn(8, 3, 1, 1), **BOUNDS))
    assert told == {"wa": "Slice 'Slice_1' takes positions that do not follow a cut"}


PADDED = {
    "in space": ("g = Pad(h, space)", 8, 17),
    "in space by ones": ("g = Pad(h, space, one)", 8, 17),
    "in space, mirrored": ("""g = Pad <mode = "reflect"> (h, space)""", 8, 17),
    "channels": ("g = Pad(h, channels)", 13, 17),
    "channels by ones": ("g = Pad(h, channels, one)", 13, 17),
    "channels named": ("g = Pad(h, named, zero, place)", 13, 18),
    "channels, before operator set 11": ("g = Pad <pads = [0, 2, 0, 0, 0, 3, 1, 1]> (h)", 13, 10),
    "behind only": ("g = Pad(h, behind)", 11, 17),
}
WIDTHS = {
    **{"space": ints(0, 0, 1, 1, 0, 0, 2, 2), "channels": ints(0, 2, 0, 0, 0, 3, 0, 0), "named": ints(2, 3)},
    **{"behind": ints(0, 0, 0, 0, 0, 3, 0, 0), "place": ints(1), "crop": ints(0, -2, 0, 0, 0, 0, 0, 0)},
    **{"zero": np.array(0, np.float32), "one": np.array(1, np.float32)},
}


@pytest.mark.parametrize("name", PADDED)
def test_a_padded_map_keeps_its_channels(name: str) -> None:
    body, read, opset = PADDED[name]
    proto = between(body, read, opset, size="A, B", **WIDTHS)
    assert_law(proto)


def test_a_shortcut_of_padded_channels_is_cut_with_the_branch_beside_it() -> None:
    body = "s = Slice(h, zero, many, space, step) p = Pad(s, widths) k = Conv <strides = [2, 2]> (h, wk) g = Add(p, k)"
    weights = {"widths": ints(0, 4, 0, 0, 0, 4, 0, 0), "wk": drawn(16, 8, 1, 1, seed=3), "step": ints(2, 2)}
    weights |= {"zero": ints(0, 0), "many": ints(99, 99), "space": ints(2, 3)}
    proto = between(body, 16, **weights)
    assert groups(proto) == {"wa": 8, "wk": 4, "wk#2": 4}
    assert_law(proto)


def test_padding_of_ones_is_not_lost_by_a_sum_over_channels() -> None:
    weights = {"w": ints(0, 1, 0, 0, 0, 0, 0, 0), "one": np.array(1, np.float32), "two": ints(2, 3)}
    proto = before_linear(
        "p = Pad(h, w, one) s = ReduceSum <keepdims = 0> (p, ax) f = Flatten(s) g = MatMul(f, v)",
        4,
        ax=ints(1),
        v=drawn(36, 4),
        **weights,
    )
    assert reasons(proto)["wa"] == "ReduceSum 'ReduceSum_2' runs over it"


@pytest.mark.parametrize(("widths", "mode"), [("crop", "constant"), ("channels", "edge")])
def test_channels_that_are_cropped_or_repeated_at_the_edge_are_declined_by_name(
    widths: str, mode: str
) -> None:
    proto = between(f'g = Pad <mode = "{mode}"> (h, {widths})', 6 if widths == "crop" else 13, **WIDTHS)
    assert reasons(proto)["wa"] == "Pad 'Pad_1' pads it"


def test_widths_that_are_computed_are_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 6, 6] x, int64[8] p) => (float[N, A, B, C] y) { h = Conv(x, wa) y = Pad(h, p) }"""
    told = reasons(build(text, wa=drawn(8, 3, 1, 1)))
    assert told == {"wa": "Pad 'Pad_1' pads it"}


def test_a_cut_rewrites_the_sizes_of_a_split() -> None:
    model = plain(halves("a, b = Split <axis = 1> (h, s)", "r = Relu(a) g = Concat <axis = 1> (b, r)"))
    found: Found = find(model)
    first = next(group for group in found.groups if group.size == 3)
    cut(model, found, {first: np.array([True, False, False])})
    split = next(node for node in model.graph if node.op_type == "Split")
    assert split.inputs[1].const_value.numpy().tolist() == [1, 5]
