"""An imported model computes what onnxruntime computes from the same file, before and after its weights change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from torch import fx

from compressor.errors import ModelError
from compressor.model_io import load
from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch, write_back
from compressor.torch_graph.values import to_array, to_value
from tests.conftest import build, drawn
from tests.torch_graph import zoo
from tests.torch_graph.zoo import Feeds

RELATIVE = 1e-4
"""Of the largest value: what the project promises for float32; most models reach 1e-6."""

AS_WRITTEN = Setup(threads=1, optimize=False)
"""onnxruntime's int8 kernels differ from the file's own arithmetic by a step of the last quantizer."""


def run(module: fx.GraphModule, model: ir.Model, feeds: Feeds) -> list[np.ndarray]:
    inputs = [v.name for v in model.graph.inputs if v.name not in model.graph.initializers]
    with torch.no_grad():
        outputs = module(*(to_value(feeds[name]) for name in inputs))
    return [to_array(y) for y in (outputs if isinstance(outputs, tuple) else (outputs,))]


def worst(module: fx.GraphModule, model: ir.Model, feeds: Feeds) -> float:
    """The largest relative difference of an output to onnxruntime's."""
    pairs = list(zip(run(module, model, feeds), Session(model, AS_WRITTEN).run(feeds), strict=True))
    assert all(ours.dtype == theirs.dtype and ours.shape == theirs.shape for ours, theirs in pairs)
    return max(
        float(np.abs(ours.astype(np.float64) - theirs).max(initial=0))
        / max(float(np.abs(theirs).max(initial=0)), 1e-30)
        for ours, theirs in pairs
    )


def shaken(module: fx.GraphModule) -> fx.GraphModule:
    """The module with all its parameters changed by a few percent."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = parameter.float().std(correction=0).to(parameter.dtype) + 1e-3
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(noise.to(parameter.dtype) * spread, alpha=0.03)
    return module


def assert_parity(model: ir.Model, *batches: Feeds) -> fx.GraphModule:
    """Equal as they are, at every batch; equal again after all parameters changed and were written back."""
    module = to_torch(model)
    for feeds in batches:
        assert worst(module, model, feeds) < RELATIVE
    shaken(module)
    assert worst(module, write_back(module, model), batches[0]) < RELATIVE
    return module


@pytest.mark.parametrize("name", zoo.sample_names())
def test_a_sample_model_equals_onnxruntime(name: str) -> None:
    (path, feeds), (_, fewer) = zoo.sample(name, 16), zoo.sample(name, 3)
    assert_parity(load(path), feeds, fewer)


@pytest.mark.skipif(not zoo.names(), reason=zoo.ABSENT)
@pytest.mark.parametrize("name", zoo.names() or ["none"])
def test_a_model_of_the_zoo_equals_onnxruntime(name: str) -> None:
    path, feeds = zoo.model(name, 2)
    batches = [feeds] if zoo.fixed_batch(name) else [feeds, zoo.model(name, 3)[1]]
    assert_parity(load(path), *batches)


SMALL = """
<ir_version: 7, opset_import: ["" : %d]>
small (float[N, 2, 6, 6] x) => (float[N, 3] y) {
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wc, bc)
  n = BatchNormalization <epsilon = 0.001> (c, scale, shift, mean, var)
  r = Relu(n)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
  u = %s
  s = Softmax <axis = 1> (u)
  f = Flatten(s)
  y = Gemm <transB = 1> (f, wg, bg)
}
"""


@pytest.mark.parametrize("opset", range(7, 22))
def test_a_small_network_equals_onnxruntime_at_every_operator_set(opset: int) -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    extra: dict[str, np.ndarray] = {}
    if opset < 9:
        upsample = "Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (p)"
    else:
        upsample = {9: "Upsample(p, scales)", 10: "Resize(p, scales)"}.get(opset, "Resize(p, roi, scales)")
        extra = {"scales": scales} if opset < 11 else {"scales": scales, "roi": np.zeros(0, np.float32)}
    weights = {"wc": drawn(4, 2, 3, 3), "bc": drawn(4), "wg": drawn(3, 144), "bg": drawn(3)}
    weights |= {"scale": drawn(4), "shift": drawn(4), "mean": drawn(4), "var": np.abs(drawn(4)) + 0.5}
    proto = build(SMALL % (opset, upsample), **weights, **extra)
    assert_parity(ir.from_proto(proto), {"x": drawn(2, 2, 6, 6)}, {"x": drawn(5, 2, 6, 6)})


def test_weights_in_a_file_beside_the_model_are_read_and_written(
    tmp_path: Path, mlp_proto: onnx.ModelProto
) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp_proto, path, save_as_external_data=True, location="mlp.data", size_threshold=0)
    assert_parity(load(path), {"x": drawn(3, 4)})


def matmul(weight: str = "w", inputs: tuple[str, ...] = ("x",), ir_version: int = 8) -> onnx.ModelProto:
    """One MatMul with an initializer; `inputs` may name it too."""
    shapes = {"x": ["N", 4], weight: [4, 3]}
    graph = helper.make_graph(
        [helper.make_node("MatMul", [inputs[0] if inputs[0] != weight else inputs[1], weight], ["y"])],
        "one",
        [helper.make_tensor_value_info(name, 1, shapes.get(name, ["N", 4])) for name in inputs],
        [helper.make_tensor_value_info("y", 1, ["N", 3])],
        [numpy_helper.from_array(drawn(4, 3), weight)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=ir_version)


@pytest.mark.parametrize("inputs", [("x", "w"), ("w", "x")])
def test_an_initializer_that_is_an_input_is_a_parameter_and_no_argument(inputs: tuple[str, ...]) -> None:
    module = assert_parity(ir.from_proto(matmul(inputs=inputs, ir_version=3)), {"x": drawn(2, 4)})
    assert [name for name, _ in module.named_parameters()] == ["w"]


NAMES = [
    *("block.0.weight", "a/b:0", "a b", "it's", 'say "x"', "back\\slash", "line\nbreak", "é", "0", "1.2"),
    *("training", "weight", "forward", "in", "then.in", "class.def", "lambda", "self", "None", "torch"),
    *("meta", "graph", "code", "_graph", "_parameters", "shape_env", "state_dict", "_", ".", "x..y", "a."),
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_will_do_for_a_weight_and_for_an_input(name: str) -> None:
    module = assert_parity(ir.from_proto(matmul(name)), {"x": drawn(2, 4)})
    assert len(list(module.parameters())) == 1
    assert_parity(ir.from_proto(matmul("W", (name,))), {name: drawn(2, 4)})


@pytest.mark.parametrize("name", ["block.0.weight", "a/b:0", "a b", "it", "0", "1.2", "weight"])
def test_a_name_that_torch_can_use_is_the_name_of_the_parameter(name: str) -> None:
    module = to_torch(ir.from_proto(matmul(name)))
    assert [found for found, _ in module.named_parameters()] == [name]


TWO = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[N, 4] x) => (float[N, 2] y) {
  h = MatMul(x, first)
  d = Dropout(h)
  y = MatMul(d, second)
}
"""


@pytest.mark.parametrize(
    "pair",
    [
        *[("a", "a.b"), ("a.b", "a"), ("a.b", "a_b"), ("a.b", "a.b.c"), ("a.b.c", "a.b"), ("w", "w_")],
        *[("training", "training_"), ("a'b", "a_b"), ("Dropout_0", "b"), ("Dropout_1.w", "b")],
    ],
    ids=str,
)
def test_names_that_begin_alike_or_clash_with_modules_stay_apart(pair: tuple[str, str]) -> None:
    proto = build(TWO, first=drawn(4, 5), second=drawn(5, 2))
    for initializer, name in zip(proto.graph.initializer, pair, strict=True):
        for node in proto.graph.node:
            node.input[:] = [name if old == initializer.name else old for old in node.input]
        initializer.name = name
    module = assert_parity(ir.from_proto(proto), {"x": drawn(3, 4)})
    assert len(list(module.parameters())) == 2


@pytest.mark.parametrize("text", ["w = Constant <value_floats = [1.0, 2.0, 4.0, 8.0]> ()", ""])
def test_weights_of_constant_nodes_are_trained_and_written_back(text: str) -> None:
    if text:
        proto = build(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y)'
            f"{{ {text} h = Relu(x) y = Mul(h, w) }}"
        )
    else:
        proto = matmul()
        constant = helper.make_node("Constant", [], ["w"], value=proto.graph.initializer.pop())
        proto.graph.node.insert(0, constant)
    module = assert_parity(ir.from_proto(proto), {"x": drawn(2, 4)})
    assert [name for name, _ in module.named_parameters()] == ["w"]


TIED = """
<ir_version: 8, opset_import: ["" : 17]>
tied (int64[N] ids) => (float[N, 7] y) {
  e = Gather(table, ids)
  t = Transpose <perm = [1, 0]> (head)
  y = MatMul(e, t)
}
"""


@pytest.mark.parametrize("copies", [1, 2])
def test_tied_weights_stay_tied_after_a_step(copies: int) -> None:
    text, table = (TIED, drawn(7, 4))
    weights = {"table": table, "head": table} if copies == 2 else {"table": table}
    model = ir.from_proto(build(text if copies == 2 else text.replace("head", "table"), **weights))
    module = to_torch(model)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.tensor([1, 2, 3])).square().sum().backward()
    optimizer.step()
    written = write_back(module, model)
    arrays = [value.const_value.numpy() for value in written.graph.initializers.values()]
    assert len(list(module.parameters())) == 1
    assert len(arrays) == copies
    assert all((array == arrays[0]).all() for array in arrays)
    assert (arrays[0] != table).any()
    assert worst(module, written, {"ids": np.array([0, 3])}) < RELATIVE


def test_vectors_that_are_equal_by_chance_are_not_tied(mlp_proto: onnx.ModelProto) -> None:
    ones = numpy_helper.from_array(np.ones((8, 8), np.float32), "w1")
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 8] y)'
    proto = build(text + "{ h = MatMul(x, w1) y = MatMul(h, w2) }", w2=np.ones((8, 8), np.float32))
    proto.graph.initializer.append(ones)
    assert len(list(to_torch(ir.from_proto(proto)).parameters())) == 2


def test_tensors_without_elements_pass_through() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[M, 4] y)'
    model = ir.from_proto(
        build(text + "{ y = Concat <axis = 0> (x, none) }", none=np.zeros((0, 4), np.float32))
    )
    assert_parity(model, {"x": drawn(2, 4)}, {"x": drawn(0, 4)})


FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
g (float[N, 4] x) => (float[N, 4] y) {
  h = mine.Layer <alpha = 0.3> (x, , w)
  y = mine.Layer <alpha = 0.1> (h, h, w)
}
<domain: "mine", opset_import: ["" : 17]>
Layer <alpha> (a, b, weight) => (o) {
  own = Constant <value_floats = [1.0, 3.0, 2.0, 5.0]> ()
  m = MatMul(a, weight)
  s = Mul(m, own)
  o = LeakyRelu <alpha: float = @alpha> (s)
}
"""


def test_functions_are_inlined_and_the_constants_in_them_trained() -> None:
    model = ir.from_proto(build(FUNCTION, w=drawn(4, 4)))
    module = assert_parity(model, {"x": drawn(3, 4)})
    assert len(list(module.parameters())) == 3
    assert len(model.functions) == 1


def test_functions_that_hold_no_weights_stay_functions() -> None:
    text = FUNCTION.replace("s = Mul(m, own)", "s = Identity(m)")
    model = ir.from_proto(build(text, w=drawn(4, 4)))
    written = write_back(shaken(to_torch(model)), model)
    assert len(written.functions) == 1


def test_write_back_refuses_a_module_of_another_model(tiny_mlp: ir.Model, tiny_cnn: ir.Model) -> None:
    with pytest.raises(
        ModelError, match=r"write_back: the module holds 'wc' \[4, 2, 3, 3\], which the model"
    ):
        write_back(to_torch(tiny_cnn), tiny_mlp)
