"""What shapes and types decide before a run is computed once; what depends on the inputs is not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import fx

from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch
from tests.conftest import build, drawn

BEGIN = """
<ir_version: 8, opset_import: ["" : 17]>
"""
BIAS = """
g (float[N, 2, 5, 5] x) => (float[N, 3, 3, 3] y) {
  zero = Constant<value = int64 {0}>()
  one = Constant<value = int64[1] {1}>()
  rows = Shape<start = 0, end = 1>(w)
  size = Expand(rows, one)
  like = CastLike(zero, x)
  b = Expand(like, size)
  y = Conv(x, w, b)
}
"""


def kernels(module: fx.GraphModule) -> list[str]:
    return [node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]


def assert_same_as_onnxruntime(model: ir.Model, *x: np.ndarray) -> None:
    feeds = dict(zip((str(value.name) for value in model.graph.inputs), x, strict=True))
    (expected,) = Session(model, Setup(threads=1, optimize=False)).run(feeds)
    with torch.no_grad():
        found = to_torch(model)(*map(torch.from_numpy, x)).numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # 18 float32 products, in another order


def test_a_bias_of_zeros_is_made_once() -> None:
    model = ir.from_proto(build(BEGIN + BIAS, w=drawn(3, 2, 3, 3)))
    module = to_torch(model)
    assert kernels(module) == ["conv"]
    assert [name for name, _ in module.named_parameters()] == ["w"]
    assert_same_as_onnxruntime(model, drawn(2, 2, 5, 5))


@pytest.mark.parametrize(
    "cut", ["", "<start = 1>", "<end = -1>", "<start = -2, end = 9>", "<start = 2, end = 1>"]
)
def test_the_shape_of_a_weight_is_a_constant_however_it_is_cut(cut: str) -> None:
    text = f"g (float[N, 4] x) => (int64[M] y) {{ y = Shape{cut}(w) z = MatMul(x, u) }}"
    model = ir.from_proto(build(BEGIN + text, w=drawn(2, 3, 4), u=drawn(4, 2)))
    assert "shape" not in kernels(to_torch(model))
    assert_same_as_onnxruntime(model, drawn(2, 4))


STATE = """
g (float[N, 4] x) => (int64[M] y) {{
  zero = Constant<value = float {{0}}>()
  two = Constant<value_ints = [2]>()
  width = Constant<value_ints = [{width}]>()
  batch = Shape<end = 1>(x)
  size = Concat<axis = 0>(two, batch, width)
  state = Expand(zero, size)
  y = Shape{cut}(state)
}}
"""


@pytest.mark.parametrize(
    ("cut", "runs"),
    [("<start = 2>", 0), ("<end = 1>", 0), ("<start = -1, end = 3>", 0), ("", 1), ("<start = 1>", 1)],
)
def test_the_sizes_of_an_initial_state_are_known_but_for_its_batch(cut: str, runs: int) -> None:
    model = ir.from_proto(build(BEGIN + STATE.format(cut=cut, width=3)))
    module = to_torch(model)
    assert ("expand" in kernels(module)) == bool(runs)
    for batch in (1, 5):
        assert_same_as_onnxruntime(model, drawn(batch, 4))


def test_the_shape_of_an_input_is_read_at_every_run() -> None:
    text = "g (float[N, 4] x) => (float[M] y) { s = Shape(x) y = CastLike(s, x) }"
    model = ir.from_proto(build(BEGIN + text))
    for batch in (2, 5):
        assert_same_as_onnxruntime(model, drawn(batch, 4))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.bool_])
def test_cast_like_gives_the_type_of_its_second_input(kind: type[np.generic]) -> None:
    name = ir.DataType.from_numpy(np.dtype(kind)).name.lower()
    text = f"g (float[N] x, {name}[K] like) => ({name}[N] y) {{ y = CastLike(x, like) }}"
    assert_same_as_onnxruntime(ir.from_proto(build(BEGIN + text)), drawn(6), np.ones(2, kind))
