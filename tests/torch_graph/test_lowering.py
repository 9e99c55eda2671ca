"""What becomes of a graph: what is computed ahead, on the host, by kernels; what is a parameter; what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import fx

from compressor.data import open_samples
from compressor.errors import ModelError
from compressor.model_io import load
from compressor.pipeline import Context
from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch, write_back
from compressor.torch_graph.lowering import Lowering
from compressor.torch_graph.values import to_array, to_value
from compressor.torch_graph.weights import Weights
from passes.quantize_int8 import QuantizeInt8
from tests.conftest import build, drawn
from tests.torch_graph import zoo

HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "nobody" : 1]>\n'


def lowered(text: str, **weights: np.ndarray) -> fx.GraphModule:
    return to_torch(ir.from_proto(build(HEAD + text, **weights)))


def calls(module: fx.GraphModule) -> list[str]:
    """The names of the functions that the graph calls."""
    return [node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]


def parameters(module: fx.GraphModule) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def buffers(module: fx.GraphModule) -> set[str]:
    return {name for name, _ in module.named_buffers()}


TO_HEADS = """
g (float[N, S, 8] x) => (float[N, 2, S, 4] y) {
  shape = Shape(x)
  n = Gather <axis = 0> (shape, zero)
  s = Gather <axis = 0> (shape, one)
  n1 = Unsqueeze(n, axes)
  s1 = Unsqueeze(s, axes)
  width = Mul(two, two)
  target = Concat <axis = 0> (n1, s1, two, width)
  heads = Reshape(x, target)
  y = Transpose <perm = [0, 2, 1, 3]> (heads)
}
"""
NUMBERS = {
    "zero": np.array(0, np.int64),
    "one": np.array(1, np.int64),
    "two": np.array([2], np.int64),
    "axes": np.array([0], np.int64),
}


def test_shape_arithmetic_makes_no_tensors() -> None:
    module = lowered(TO_HEADS, **NUMBERS)
    assert not {"from_host", "to_host", "beside"} & set(calls(module))
    assert not buffers(module)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(module(x), x.reshape(3, 5, 2, 4).transpose(1, 2))
    graph = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).graph
    functions = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert not any("lift_fresh" in f or "_local_scalar_dense" in f for f in functions)


def test_positions_from_a_shape_do_not_wait_for_the_device() -> None:
    text = """
    g (int64[N, S] ids) => (float[S, 4] y) {
      shape = Shape(ids)
      s = Gather <axis = 0> (shape, one)
      at = Range(zero, s, one)
      y = Gather(table, at)
    }
    """
    module = lowered(text, table=drawn(9, 4), **{k: NUMBERS[k] for k in ("zero", "one")})
    assert "to_host" not in calls(module)
    found = module(torch.zeros(2, 5, dtype=torch.int64))
    torch.testing.assert_close(found.detach(), torch.from_numpy(drawn(9, 4)[:5]))


def test_what_depends_on_constants_alone_is_computed_ahead() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = Sqrt(c) b = Neg(a) y = Sub(x, b) }"
    module = lowered(text, c=np.array([1, 4, 9, 16], np.float32))
    assert len(calls(module)) == 1
    assert not parameters(module)
    torch.testing.assert_close(module(torch.zeros(1, 4)), torch.tensor([[1.0, 2, 3, 4]]))


def test_random_draws_are_not_computed_ahead() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { r = RandomNormal <shape = [4]> () y = Add(x, r) }"
    module = lowered(text)
    x = torch.zeros(1, 4)
    assert not torch.equal(module(x), module(x))


WEIGHTS: list[tuple[str, str, dict[str, np.ndarray], set[str]]] = [
    ("a weight and its bias", "h = MatMul(x, w) y = Add(h, b)", {"w": drawn(4, 4), "b": drawn(4)}, {"w", "b"}),
    ("a bias of one number", "h = MatMul(x, w) y = Add(h, b)", {"w": drawn(4, 1), "b": drawn(1)}, {"w", "b"}),
    ("a single factor is a constant", "h = MatMul(x, w) y = Mul(h, s)", {"w": drawn(4, 4), "s": drawn(1)}, {"w"}),
    ("a cast factor too", "h = MatMul(x, w) c = Cast <to = 1> (s) y = Mul(h, c)",
     {"w": drawn(4, 4), "s": drawn(1).astype(np.float16)}, {"w"}),
    ("the input's normalization", "a = Sub(x, m) y = Mul(x, s)", {"m": drawn(4), "s": drawn(4)}, set()),
    ("a layer's scale", "h = Relu(x) y = Mul(h, s)", {"s": drawn(4)}, {"s"}),
    ("behind Transpose and Cast", "t = Transpose(w) c = Cast <to = 1> (t) y = MatMul(x, c)",
     {"w": drawn(3, 4).astype(np.float16)}, {"w"}),
    ("behind Unsqueeze and CastLike", "u = Unsqueeze(w, a) c = CastLike(u, x) h = Relu(x) y = Mul(h, c)",
     {"w": drawn(4), "a": np.array([0])}, {"w"}),
    ("0, 1, 2, ...", "h = MatMul(x, w) y = Add(h, r)", {"w": drawn(4, 4), "r": np.arange(4, dtype=np.float32)}, {"w"}),
    ("integers", "h = MatMul(x, w) s = Shape(h) y = Reshape(h, k)",
     {"w": drawn(4, 4), "k": np.array([-1, 2, 2])}, {"w"}),
    ("an initial state of zeros", "s = Shape(x) e = Expand(z, s) h = MatMul(x, w) y = Add(h, e)",
     {"w": drawn(4, 4), "z": np.zeros((1, 4), np.float32)}, {"w"}),
    ("a class token", "s = Shape(x) e = Expand(t, s) y = Concat <axis = 0> (e, x)", {"t": drawn(1, 4)}, {"t"}),
    ("a slope", "y = PRelu(x, s)", {"s": drawn(4)}, {"s"}),
    ("bounds", "y = Clip(x, a, b)", {"a": np.float32(-1), "b": np.float32(1)}, set()),
    ("a table", "i = Cast <to = 7> (x) y = Gather(t, i)", {"t": drawn(9, 3)}, {"t"}),
    ("microsoft's bias", "y = com.microsoft.BiasGelu(x, b)", {"b": drawn(4)}, {"b"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "weights", "trained"), [row[1:] for row in WEIGHTS], ids=[w[0] for w in WEIGHTS]
)
def test_weights_are_parameters_and_nothing_else_is(
    body: str, weights: dict[str, np.ndarray], trained: set[str]
) -> None:
    module = lowered(f"g (float[N, 4] x) => (float y) {{ {body} }}", **weights)
    assert parameters(module) == trained


NORMALIZED = (
    "g (float[N, 3, 4] x) => (float[N, 3, 4] y) { y = BatchNormalization <momentum = 0.8> (x, s, b, m, v) }"
)
STATISTICS = {"s": drawn(3), "b": drawn(3), "m": drawn(3), "v": np.abs(drawn(3)) + 1}


def test_running_statistics_are_buffers_that_training_moves_and_write_back_writes() -> None:
    model = ir.from_proto(build(HEAD + NORMALIZED, **STATISTICS))
    module = to_torch(model).train()
    assert (parameters(module), buffers(module)) == ({"s", "b"}, {"m", "v"})
    x = torch.randn(5, 3, 4)
    module(x)
    written = write_back(module, model).graph.initializers
    mean, variance = x.mean((0, 2)).numpy(), x.var((0, 2)).numpy()
    np.testing.assert_allclose(
        written["m"].const_value.numpy(), 0.8 * STATISTICS["m"] + 0.2 * mean, rtol=1e-5
    )
    np.testing.assert_allclose(
        written["v"].const_value.numpy(), 0.8 * STATISTICS["v"] + 0.2 * variance, rtol=1e-5
    )


@pytest.mark.parametrize("ratio", ["", ", r"])
def test_dropout_acts_while_training_alone(ratio: str) -> None:
    module = lowered(
        f"g (float[N, 100] x) => (float[N, 100] y) {{ h = Relu(x) y = Dropout(h{ratio}) }}",
        **({"r": np.float32(0.2)} if ratio else {}),
    )
    x = torch.ones(8, 100)
    assert torch.equal(module(x), x)
    torch.manual_seed(0)
    y = module.train()(x)
    share = 0.2 if ratio else 0.5
    assert abs(float((y == 0).float().mean()) - share) < 0.1  # 800 draws: more than five deviations
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / (1 - share)]))


def test_the_module_can_be_copied_and_its_copy_written_back(tiny_cnn: ir.Model) -> None:
    module = copy.deepcopy(to_torch(tiny_cnn))
    with torch.no_grad():
        module.wc.mul_(2)
    written = write_back(module, tiny_cnn).graph.initializers["wc"].const_value.numpy()
    np.testing.assert_array_equal(written, 2 * drawn(4, 2, 3, 3))
    np.testing.assert_array_equal(tiny_cnn.graph.initializers["wc"].const_value.numpy(), drawn(4, 2, 3, 3))


def test_parametrizations_are_applied_in_what_is_written(tiny_cnn: ir.Model) -> None:
    class Half(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 0.5

    module = to_torch(tiny_cnn)
    x = torch.from_numpy(drawn(2, 2, 6, 6))
    torch.nn.utils.parametrize.register_parametrization(module, "wc", Half())
    written = write_back(module, tiny_cnn)
    np.testing.assert_array_equal(written.graph.initializers["wc"].const_value.numpy(), drawn(4, 2, 3, 3) / 2)
    (theirs,) = Session(written).run({"x": x.numpy()})
    np.testing.assert_allclose(module(x).detach().numpy(), theirs, rtol=1e-4, atol=1e-6)


def _images(part: str) -> np.ndarray:
    with np.load(zoo.SAMPLES / f"digits32_{part}.npz") as arrays:
        return arrays["image"]


@pytest.fixture(scope="module")
def quantized() -> Any:
    """The digits CNN in int8 by our own pass, eight of its test images, and its outputs before."""
    path, feeds = zoo.sample("digits_cnn", 8)
    model = load(path)
    (before,) = Session(model).run(feeds)
    calibration = open_samples({"image": _images("calibration")[:32]}, model)
    QuantizeInt8().apply(model, Context(calibration=calibration))
    return model, feeds, before


def test_an_int8_file_gives_what_onnxruntime_gives(quantized: Any) -> None:
    model, feeds, before = quantized
    module = to_torch(model)
    assert {"fake_quantize"} <= set(calls(module))
    with torch.no_grad():
        ours = to_array(module(*map(to_value, feeds.values())))
    (theirs,) = Session(model, Setup(threads=1, optimize=False)).run(feeds)
    # Sums that end on a rounding boundary take the next step in one of the two: onnxruntime with and without its
    # optimizer differs by 0.08 of what int8 costs, and so do we.
    assert np.linalg.norm(ours - theirs) < 0.2 * np.linalg.norm(theirs - before)
    assert (ours.argmax(1) == theirs.argmax(1)).all()


def test_an_int8_file_passes_gradients_straight_through(quantized: Any) -> None:
    model, feeds, _ = quantized
    module = to_torch(model)
    x = to_value(next(iter(feeds.values()))).requires_grad_()
    module(x).square().sum().backward()
    assert float(x.grad.abs().max()) > 0


FAKE = """
g (float[N, 4] x) => (float[N, 3] y) {
  xq = QuantizeLinear(x, xs, xz)
  xd = DequantizeLinear(xq, xs, xz)
  wq = QuantizeLinear <axis = 1> (w, ws, wz)
  wd = DequantizeLinear <axis = 1> (wq, ws, wz)
  y = MatMul(xd, wd)
}
"""
GRID = {
    "xs": np.float32(0.02),
    "xz": np.int8(3),
    "w": drawn(4, 3),
    "ws": np.array([0.02, 0.03, 0.01], np.float32),
    "wz": np.zeros(3, np.int8),
}


@pytest.mark.parametrize("learned", [False, True])
def test_a_fake_quantized_weight_trains_and_equals_onnxruntime_after_each_step(learned: bool) -> None:
    model = ir.from_proto(build(HEAD + FAKE, **GRID))
    module = to_torch(model, learn_ranges=learned)
    assert parameters(module) == ({"w", "xs", "ws"} if learned else {"w"})
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    x = drawn(6, 4, seed=3)
    for _ in range(3):
        loss = module(torch.from_numpy(x)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        written = write_back(module, model)
        (theirs,) = Session(written, Setup(threads=1, optimize=False)).run({"x": x})
        np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), theirs, rtol=1e-5, atol=1e-5)
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_an_operator_without_a_torch_form_runs_and_names_itself_when_a_gradient_must_pass() -> None:
    text = """
    g (float[N, 4] x) => (float[N, 4] y) {
      h = MatMul(x, w)
      [late] y = ai.onnx.ml.Normalizer <norm = "L2"> (h)
    }
    """
    head = HEAD.replace('"nobody" : 1', '"ai.onnx.ml" : 3')
    model = ir.from_proto(build(head + text, w=drawn(4, 4)))
    module = to_torch(model)
    with torch.no_grad():
        ours = module(torch.from_numpy(drawn(3, 4)))
    (theirs,) = Session(model).run({"x": drawn(3, 4)})
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5)
    with pytest.raises(
        ModelError, match=r"Node 'late' \(Normalizer\) has no gradient, and weights before it"
    ):
        module(torch.from_numpy(drawn(3, 4)))


def test_an_operator_that_nobody_knows_is_named_with_its_node() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { [odd] y = nobody.Mystery(x) }"
    with pytest.raises(ModelError, match="Node 'odd': the operator Mystery of nobody cannot be run in torch"):
        lowered(text)


def test_an_attribute_that_would_be_ignored_is_refused() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { [odd] y = Relu <slope = 0.5> (x) }"
    with pytest.raises(ModelError, match=r"Node 'odd' \(Relu\): attribute slope=0.5 is not supported"):
        lowered(text)


def test_a_value_that_nothing_gives_is_named(tiny_mlp: ir.Model) -> None:
    root = torch.nn.Module()
    with pytest.raises(ModelError, match="Nothing in the graph gives the value 'ghost'"):
        Lowering(root, {}, Weights(root, tiny_mlp)).read(ir.Value(name="ghost"))


@pytest.mark.parametrize("nodes", ["y = Add(x, late) late = Relu(x)", "y = Add(x, late)", "z = Relu(x)"])
def test_a_graph_that_uses_what_it_does_not_have_is_refused(nodes: str) -> None:
    with pytest.raises(ModelError, match=r"to_torch: the graph is broken: .*['\"](late|y)['\"]"):
        lowered(f"g (float[N, 4] x) => (float[N, 4] y) {{ {nodes} }}")
