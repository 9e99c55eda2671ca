from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.channels import Group, find
from compressor.prepare import infer_shapes
from compressor.pruning.channel_widths import inner, step, widths
from tests.conftest import build, drawn

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def groups(text: str, **weights: np.ndarray) -> tuple[Group, ...]:
    model = ir.from_proto(build(HEADER + text, **weights))
    infer_shapes(model)
    return find(model).groups


def convolutions(group: int = 1) -> Group:
    text = f"""m (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {{
      a = Conv (x, w) b = Conv <group = {group}> (a, d) y = Conv (b, v) }}"""
    second = drawn(64, 64 // group, 1, 1)
    return groups(text, w=drawn(64, 3, 1, 1), d=second, v=drawn(4, 64, 1, 1))[0]


def codes(group: int = 1) -> Group:
    text = f"""m (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {{
      wd = DequantizeLinear (w, s) dd = DequantizeLinear (d, s)
      a = Conv (x, wd) b = Conv <group = {group}> (a, dd) y = Conv (b, v) }}"""
    made = {"w": np.ones((64, 3, 1, 1), np.int8), "d": np.ones((64, 64 // group, 1, 1), np.int8)}
    return groups(text, s=np.float32(0.1), v=drawn(4, 64, 1, 1), **made)[0]


def heads() -> dict[str, Group]:
    text = """m (float[N, 4, 64] x) => (float[N, 4, 64] y) {
      q = MatMul (x, wq) qr = Reshape (q, split) qt = Transpose <perm = [0, 2, 1, 3]> (qr)
      k = MatMul (x, wk) kr = Reshape (k, split) kt = Transpose <perm = [0, 2, 3, 1]> (kr)
      v = MatMul (x, wv) vr = Reshape (v, split) vt = Transpose <perm = [0, 2, 1, 3]> (vr)
      s = MatMul (qt, kt) p = Softmax (s) o = MatMul (p, vt)
      ot = Transpose <perm = [0, 2, 1, 3]> (o) f = Reshape (ot, join) y = MatMul (f, wo)
    }"""
    weights = {name: drawn(64, 64) for name in ("wq", "wk", "wv", "wo")}
    shapes = {"split": np.int64([0, 4, 4, 16]), "join": np.int64([0, 4, 64])}
    return {group.name: group for group in groups(text, **weights, **shapes)}


def test_float_convolutions_go_in_blocks_of_sixteen_on_the_cpu_and_of_eight_on_nvidia() -> None:
    assert step(convolutions(), "auto", "cpu") == 16
    assert step(convolutions(), "auto", "cuda") == 8


def test_int8_convolutions_go_in_eights_unless_they_are_depthwise() -> None:
    assert step(codes(), "auto", "cpu") == 8
    assert step(codes(group=64), "auto", "cpu") == 16
    assert step(codes(), "auto", "tensorrt") == 16


def test_what_the_user_says_wins() -> None:
    assert step(convolutions(), 3, "cpu") == 3


def test_heads_go_one_by_one_where_their_width_fills_blocks() -> None:
    found = heads()
    sizes = {name: (group.size, step(group, "auto", "cpu")) for name, group in found.items()}
    assert sizes["wq"] == (4, 1)


def test_tells_the_width_of_heads_from_the_heads() -> None:
    found = heads()
    inside = inner(list(found.values()))
    assert {outer.name for outer in inside.values()} == {"wq"}
    assert "wq" not in {group.name for group in inside}
    assert len(inside) == len(found) - 1 == 2, "the width of queries and keys, and that of values"


def test_channels_without_factors_have_nothing_inside() -> None:
    assert inner([convolutions()]) == {}


@given(st.integers(1, 300), st.integers(1, 32), st.floats(0.01, 0.99))
def test_widths_fall_from_the_size_in_multiples_and_keep_enough(size: int, step: int, most: float) -> None:
    found = widths(size, step, most)
    assert found[0] == size
    assert list(found) == sorted(set(found), reverse=True)
    assert all(width % step == 0 and width >= max(step, size * (1 - most) - 1e-6) for width in found[1:])


@pytest.mark.parametrize("size", [8, 15, 16])
def test_a_group_no_larger_than_a_block_stays(size: int) -> None:
    assert widths(size, 16, 0.99) == (size,)
