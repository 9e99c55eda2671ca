from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.channels.law import assert_law, groups, reasons
from tests.conftest import build, drawn


def einsum(
    equation: str, body: str = "", opset: int = 17, out: str = "N, 5, 3", **more: np.ndarray
) -> onnx.ModelProto:
    """x [N, 5, 4] -> MatMul: h [N, 5, 6] -> body -> Einsum with w."""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    m (float[N, 5, 4] x) => (float[{out}] y) {{
      p = MatMul(x, wa) h = Relu(p) {body} y = Einsum <equation = "{equation}"> (h, w)
    }}"""
    return build(text, wa=drawn(4, 6), **more)


@pytest.mark.parametrize("equation", ["bsi,io->bso", "...i,io->...o", "bsi , io", "zsi,io->zso"])
def test_a_weight_reads_the_letter_that_is_summed_over(equation: str) -> None:
    proto = einsum(equation, w=drawn(6, 3))
    assert groups(proto) == {"wa": 6}
    assert_law(proto)


def test_heads_and_their_width_are_cut_by_themselves() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 5, 4] x) => (float[N, 5, 3] y) {
      q = Einsum <equation = "bsi,ihd->bshd"> (x, wq) k = Einsum <equation = "bsi,ihd->bshd"> (x, wk)
      v = Einsum <equation = "bsi,ihd->bshd"> (x, wv) l = Einsum <equation = "bqhd,bkhd->bhqk"> (q, k)
      p = Softmax(l) c = Einsum <equation = "bhqk,bkhd->bqhd"> (p, v) y = Einsum <equation = "bqhd,hdo->bqo"> (c, wo)
    }"""
    proto = build(
        text, wq=drawn(4, 2, 3), wk=drawn(4, 2, 3, seed=1), wv=drawn(4, 2, 7, seed=2), wo=drawn(2, 7, 3)
    )
    assert sorted(groups(proto).values()) == [2, 3, 7]
    assert_law(proto)


def test_a_sum_over_what_is_not_zero_is_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 5, 4] x) => (float[N, 5] y) {
      p = MatMul(x, wa) h = Sigmoid(p) y = Einsum <equation = "bsi,bsi->bs"> (h, h)
    }"""
    told = reasons(build(text, wa=drawn(4, 6)))
    assert told == {"wa": "Einsum 'Einsum_2' sums over channels that are not zero when masked"}


def test_a_sum_over_a_product_that_is_zero_is_cut() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 5, 4] x) => (float[N, 5] y) {
      p = MatMul(x, wa) h = Sigmoid(p) y = Einsum <equation = "bsi,bsi->bs"> (h, p)
    }"""
    proto = build(text, wa=drawn(4, 6))
    assert groups(proto) == {"wa": 6}
    assert_law(proto)


def test_a_diagonal_is_declined_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 6, 4] x) => (float[N, 6] y) { h = MatMul(x, wa) y = Einsum <equation = "bii->bi"> (h) }"""
    assert reasons(build(text, wa=drawn(4, 6)))["wa"] == "Einsum 'Einsum_1' takes its diagonal"


def test_an_outer_product_keeps_both_letters() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 4] x) => (float[N, 3] y) {
      a = MatMul(x, wa) b = MatMul(x, wb) o = Einsum <equation = "bi,bj->bij"> (a, b)
      f = Flatten(o) y = MatMul(f, wz)
    }"""
    proto = build(text, wa=drawn(4, 6), wb=drawn(4, 5), wz=drawn(30, 3))
    assert groups(proto) == {"wa": 6, "wb": 5}
    assert_law(proto)
