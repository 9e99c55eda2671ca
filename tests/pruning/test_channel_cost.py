from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor.channels import cut, find
from compressor.prepare import infer_shapes
from compressor.pruning.channel_cost import Cost, Elements, multiply_accumulates, parameters
from compressor.summary import summarize
from tests.conftest import build, drawn

NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N, 3, 8, 8] x) => (float[N, 5] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
  ar = Relu (a)
  d = Conv <group = 6, pads = [1, 1, 1, 1], strides = [2, 2]> (ar, wd)
  b = Conv (d, wb)
  c = Conv <pads = [1, 1, 1, 1]> (b, wc)
  s = Add (b, c)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  h = Gemm <transB = 1> (f, wh, bh)
  r = Relu (h)
  y = MatMul (r, wy)
}"""


def network() -> ir.Model:
    weights = {"wa": drawn(6, 3, 3, 3), "ba": drawn(6), "wd": drawn(6, 1, 3, 3), "wb": drawn(8, 6, 1, 1)}
    weights |= {"wc": drawn(8, 8, 3, 3), "wh": drawn(10, 8), "bh": drawn(10), "wy": drawn(10, 5)}
    model = ir.from_proto(build(NETWORK, **weights))
    infer_shapes(model)
    return model


def attention() -> ir.Model:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 4, 6] x) => (float[N, 4, 6] y) {
      q = MatMul (x, wq) k = MatMul (x, wk) t = Transpose <perm = [0, 2, 1]> (k)
      s = MatMul (q, t) p = Softmax (s) v = MatMul (x, wv) o = MatMul (p, v) y = MatMul (o, wo)
    }"""
    model = ir.from_proto(build(text, **{name: drawn(6, 6) for name in ("wq", "wk", "wv", "wo")}))
    infer_shapes(model)
    return model


def test_the_uncut_model_costs_what_the_summary_says() -> None:
    model = network()
    groups, facts = find(model).groups, summarize(model)
    ones = [1.0] * len(groups)
    assert multiply_accumulates(model, groups).total(ones) == facts.macs
    assert parameters(model, groups).total(ones) == facts.parameters


@pytest.mark.parametrize("seed", range(4))
def test_predicts_what_a_cut_model_costs(seed: int) -> None:
    model = network()
    found = find(model)
    assert len(found.groups) == 3
    rng = np.random.default_rng(seed)
    widths = [int(rng.integers(1, group.size + 1)) for group in found.groups]
    shares = [width / group.size for width, group in zip(widths, found.groups, strict=True)]
    macs = multiply_accumulates(model, found.groups).total(shares)
    weights = parameters(model, found.groups).total(shares)
    cut(model, found, {g: np.arange(g.size) < width for g, width in zip(found.groups, widths, strict=True)})
    facts = summarize(model)
    assert (macs, weights) == (pytest.approx(facts.macs), pytest.approx(facts.parameters))


def test_what_is_saved_is_the_difference_of_totals() -> None:
    model = network()
    groups = find(model).groups
    cost = multiply_accumulates(model, groups)
    before = [0.5, 1.0, 0.8]
    for group in range(3):
        after = [*before[:group], 0.25, *before[group + 1 :]]
        assert cost.saved(before, group, 0.25) == pytest.approx(cost.total(before) - cost.total(after))


def test_groups_that_share_a_layer_are_neighbours() -> None:
    cost = Cost((Elements(1.0, (((4, (0,)),), ((4, (1,)),))), Elements(1.0, (((4, (2,)),),))), 0.0)
    assert cost.neighbours(0) == {0, 1}
    assert cost.neighbours(2) == {2}
    assert cost.neighbours(3) == {3}
    assert cost.saved([1.0] * 4, 3, 0.5) == 0


def test_a_weight_of_two_layers_counts_once_as_parameters_and_twice_as_macs() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w) b = Relu (a) c = MatMul (b, w) y = Relu (c) }"""
    model = ir.from_proto(build(text, w=drawn(4, 4)))
    infer_shapes(model)
    assert multiply_accumulates(model, ()).total(()) == 32
    assert parameters(model, ()).total(()) == 16


def test_products_of_two_activations_are_fixed() -> None:
    model = attention()
    groups = find(model).groups
    cost = multiply_accumulates(model, groups)
    assert cost.total([1.0] * len(groups)) == summarize(model).macs
    assert cost.fixed == 2 * 4 * 4 * 6


def test_macs_that_cannot_be_counted_are_an_error() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 4] x) => (y) { h = Here.Unknown (x) y = MatMul (h, w) }"""
    model = ir.from_proto(build(text.replace('"" : 17', '"" : 17, "Here" : 1'), w=drawn(4, 4)))
    with pytest.raises(ValueError, match="shapes are unknown"):
        multiply_accumulates(model, ())
