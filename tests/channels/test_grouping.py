"""What `find` says of a model: names, roles, reasons; and models that other tools break."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.channels import cut, find
from tests.channels.law import assert_law, broken, groups, plain, reasons
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn


def test_two_convolutions_that_share_one_bias_are_cut_one_by_one() -> None:
    proto = between(
        "k = Conv(h, wk, ba) r = Relu(k) l = Conv(r, wl) g = Add(l, r)",
        wk=drawn(8, 8, 1, 1),
        wl=drawn(8, 8, 1, 1, seed=3),
    )
    assert groups(proto) == {"wa": 8, "wk": 8}
    assert_law(proto)


def test_a_bias_that_is_stored_once_ties_no_convolutions_that_nothing_else_ties() -> None:
    body = "k = Conv(x, wk, ba) a = Conv(h, wl) b = Conv(k, wm) g = Concat <axis = 1> (a, b)"
    proto = between(body, 5, wk=drawn(8, 3, 1, 1), wl=drawn(2, 8, 1, 1), wm=drawn(3, 8, 1, 1))
    assert groups(proto) == {"wa": 8, "wk": 8, "wl": 2, "wm": 3}
    assert_law(proto)


def test_a_layer_that_is_applied_twice_keeps_its_one_bias() -> None:
    proto = between("k = Conv(h, wk, bk) r = Relu(k) g = Conv(r, wk, bk)", wk=drawn(8, 8, 1, 1), bk=drawn(8))
    model = plain(proto)
    (group,) = find(model).groups
    assert [member.value.name for member in group.members].count("bk") == 1
    assert_law(proto)


def test_one_weight_of_two_convolutions_stays_one() -> None:
    body = "a = Conv(h, wk) r = Relu(a) b = Conv(r, wk) g = Add(b, r)"
    proto = between(body, wk=drawn(8, 8, 3, 3)[:, :, :1, :1])
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_a_kernel_is_never_why_channels_stay() -> None:
    proto = between(
        "k = Conv <pads = [1, 1, 1, 1]> (h, wk) g = Softmax <axis = 1> (k)", 5, wk=drawn(5, 8, 3, 3)
    )
    assert reasons(proto) == {"wk": "Softmax 'Softmax_2' runs over it", "wz": "'y' is an output of the model"}


def test_members_say_what_a_constant_has_to_do_with_the_channels() -> None:
    (group,) = find(plain(between("g = Relu(h)"))).groups
    assert [(member.value.name, member.axis, member.role) for member in group.members] == [
        ("wa", 0, "output"),
        ("ba", 0, "along"),
        ("wz", 1, "input"),
    ]
    assert [member.value.name for member in group.weights("input")] == ["wz"]


def test_an_operator_without_a_rule_is_a_barrier_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
    m (float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y) { h = Conv(x, wa) g = custom.Odd(h) y = Conv(g, wz) }"""
    found = find(plain(build(text, wa=drawn(8, 3, 1, 1), wz=drawn(2, 8, 1, 1))))
    assert found.declined["wa"] == "Odd 'Odd_1': no rule for this operator"
    assert found.barriers["Odd_1"] == "Odd 'Odd_1': no rule for this operator"


def test_a_mask_of_another_length_or_of_nothing_is_refused() -> None:
    model = plain(between("g = Relu(h)"))
    found = find(model)
    for mask in (np.ones(5, bool), np.zeros(8, bool)):
        with pytest.raises(ValueError, match="wa: a mask of 8 with at least one channel, got array"):
            cut(model, found, {found.groups[0]: mask})


def test_keeping_everything_changes_no_constant() -> None:
    model = plain(before_linear("g = Flatten(h)", 288))
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    found = find(model)
    cut(model, found, {group: np.ones(group.size, bool) for group in found.groups})
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before


def test_cutting_one_channel_after_another_is_cutting_both() -> None:
    first, second = (plain(before_linear("g = Flatten(h)", 288)) for _ in range(2))
    for masks in ([[1, 1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 1]],):
        for mask in masks:
            found = find(first)
            cut(first, found, {found.groups[0]: np.array(mask, bool)})
    found = find(second)
    cut(second, found, {found.groups[0]: np.array([1, 1, 1, 0, 1, 1, 0, 1], bool)})
    for name, value in second.graph.initializers.items():
        np.testing.assert_array_equal(
            first.graph.initializers[name].const_value.numpy(), value.const_value.numpy()
        )


def test_a_dense_block_reads_each_growth_in_its_own_place() -> None:
    layers, width, weights = [], 8, {}
    for number in range(5):
        weights |= {f"w{number}": drawn(4, width, 1, 1, seed=number)}
        source = "h" if number == 0 else f"c{number}"
        layers.append(
            f"k{number} = Conv({source}, w{number}) r{number} = Relu(k{number}) "
            f"c{number + 1} = Concat <axis = 1> ({source}, r{number})"
        )
        width += 4
    body = " ".join(layers) + " g = Relu(c5)"
    proto = between(body, width, **weights)
    assert groups(proto) == {"wa": 8} | {f"w{number}": 4 for number in range(5)}
    assert broken(plain(proto), trials=1) == []


def test_a_detection_head_that_takes_boxes_apart_is_cut_up_to_its_last_layer() -> None:
    body = """k = Conv(h, wk) r = Reshape(k, s) t = Transpose <perm = [0, 2, 1]> (r)
        a, b = Split <axis = 2> (t, parts) e = Sigmoid(b) c = Concat <axis = 2> (a, e)
        u = Transpose <perm = [0, 2, 1]> (c) g = Reshape(u, back)"""
    proto = between(body, 6, wk=drawn(6, 8, 1, 1), s=ints(0, 6, -1), parts=ints(4, 2), back=ints(0, 6, 6, 6))
    assert groups(proto) == {"wa": 8, "wk": 4, "wk#2": 2}
    assert_law(proto)
