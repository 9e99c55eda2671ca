from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from compressor.channels import Found, find
from compressor.prepare import prepare
from compressor.pruning.channel_selection import Wanted, selected
from tests.conftest import build, drawn
from tests.pruning.test_channel_widths import HEADER

ALL = Wanted("auto", 0.75, "whole", False, (), (), {})


def chain() -> Found:
    text = """m (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) {
      a = Conv (x, first) b = Relu (a) c = Conv (b, second) d = Relu (c) y = Conv (d, last) }"""
    weights = {"first": drawn(64, 3, 1, 1), "second": drawn(32, 64, 1, 1), "last": drawn(8, 32, 1, 1)}
    return find(prepare(ir.from_proto(build(HEADER + text, **weights))).model)


def heads(count: int, width: int) -> Found:
    text = """m (float[N, 4, 64] x) => (float[N, 4, 64] y) {
      q = MatMul (x, wq) qr = Reshape (q, split) qt = Transpose <perm = [0, 2, 1, 3]> (qr)
      k = MatMul (x, wk) kr = Reshape (k, split) kt = Transpose <perm = [0, 2, 3, 1]> (kr)
      v = MatMul (x, wv) vr = Reshape (v, split) vt = Transpose <perm = [0, 2, 1, 3]> (vr)
      s = MatMul (qt, kt) p = Softmax (s) o = MatMul (p, vt)
      ot = Transpose <perm = [0, 2, 1, 3]> (o) f = Reshape (ot, join) y = MatMul (f, wo)
    }"""
    weights = {name: drawn(64, count * width) for name in ("wq", "wk", "wv")} | {
        "wo": drawn(count * width, 64)
    }
    shapes = {"split": np.int64([0, 4, count, width]), "join": np.int64([0, 4, count * width])}
    return find(prepare(ir.from_proto(build(HEADER + text, **weights, **shapes))).model)


def names(found: Found, wanted: Wanted) -> dict[str, tuple[int, ...]]:
    return {group.name: widths for group, widths in selected(found, wanted, "cpu")[0].items()}


def reason(found: Found, wanted: Wanted, name: str) -> str:
    return selected(found, wanted, "cpu")[1][name]


def test_all_groups_may_be_cut_to_fast_widths() -> None:
    assert names(chain(), ALL) == {"first": (64, 48, 32, 16), "second": (32, 16)}


def test_what_cannot_be_cut_keeps_its_reason() -> None:
    assert reason(chain(), ALL, "last") == "'y' is an output of the model"


def test_excluded_groups_stay_and_only_included_ones_go() -> None:
    assert names(chain(), replace(ALL, exclude=("fir*",))).keys() == {"second"}
    assert reason(chain(), replace(ALL, exclude=("fir*",)), "first") == "excluded"
    assert names(chain(), replace(ALL, include=("second",))).keys() == {"second"}, "first is only read by it"
    assert reason(chain(), replace(ALL, include=("nothing",)), "first") == "no include pattern fits it"


def test_the_largest_share_bounds_all_steps_together() -> None:
    once = replace(ALL, max_ratio=0.5)
    assert names(chain(), once)["first"] == (64, 48, 32)
    again = replace(once, sizes={"first": 128, "second": 32})
    assert "first" not in names(chain(), again), "it is at half of its first 128"


def test_a_group_too_small_for_a_step_says_so() -> None:
    assert reason(chain(), replace(ALL, round_to=32), "second") == (
        "32 channels are no more than the 32 that must stay; a smaller round_to allows fewer"
    )


def test_a_group_that_the_largest_share_lets_no_step_go_says_so() -> None:
    wanted = replace(ALL, max_ratio=0.1)
    said = "64 channels cannot go down by a multiple of 16 within max_ratio=0.1"
    assert reason(chain(), wanted, "first") == said
    measured = replace(wanted, curves={"first": {0.1: 0.0}})
    assert reason(chain(), measured, "first") == f"{said} and the ratios that were measured"


def test_heads_go_whole_unless_their_width_is_asked_for() -> None:
    found = heads(4, 16)
    assert names(found, ALL).keys() == {"wq"}
    assert reason(found, ALL, "wv") == (
        "it is the width of 'wq', which goes in whole heads; heads='width' cuts it"
    )
    by_width = replace(ALL, heads="width", round_to=4)
    assert "wq" not in names(found, by_width)
    assert len(names(found, by_width)) == 2
    assert reason(found, by_width, "wq") == "its heads stay; heads='whole' cuts them"
    assert len(names(found, replace(by_width, heads="both"))) == 3


def test_the_width_goes_where_whole_heads_cannot() -> None:
    found = heads(1, 64)
    assert sorted(widths[0] for widths in names(found, ALL).values()) == [64, 64]


def test_channels_under_a_normalization_wait_for_the_users_word() -> None:
    text = """m (float[N, 64] x) => (float[N, 4] y) {
      h = MatMul (x, w) n = LayerNormalization (h, s, b) y = MatMul (n, v) }"""
    weights = {"w": drawn(64, 32), "s": drawn(32), "b": drawn(32), "v": drawn(32, 4)}
    found = find(prepare(ir.from_proto(build(HEADER + text, **weights))).model)
    assert names(found, ALL) == {}
    assert reason(found, ALL, "w").endswith("takes statistics over it; residual_stream=True cuts it")
    assert names(found, replace(ALL, residual_stream=True)) == {"w": (32, 16)}


@pytest.mark.parametrize("round_to", [1, 2, 8])
def test_every_width_is_a_multiple_of_what_the_user_says(round_to: int) -> None:
    for widths in names(chain(), replace(ALL, round_to=round_to)).values():
        assert all(width % round_to == 0 for width in widths)
