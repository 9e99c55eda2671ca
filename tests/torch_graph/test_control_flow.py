"""If, Loop and Scan: what is inlined, what bodies capture, what empty runs give."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import fx

from compressor.runtime import Session
from compressor.torch_graph import to_torch, write_back
from compressor.torch_graph.conversions import from_host
from compressor.torch_graph.values import to_value
from tests.conftest import build, drawn

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def lowered(text: str, **weights: np.ndarray) -> fx.GraphModule:
    return to_torch(ir.from_proto(build(HEAD + text, **weights)))


BRANCHES = """
g (%sfloat[N, 4] x) => (float[N, 2] y) {
  y = If(c) <
    then_branch = t () => (a) { a = MatMul(x, left) },
    else_branch = e () => (b) { b = MatMul(x, right) }
  >
}
"""
SIDES = {"left": drawn(4, 2), "right": drawn(4, 2, seed=1)}


@pytest.mark.parametrize("condition", [True, False])
def test_an_if_whose_condition_is_known_is_the_branch_itself(condition: bool) -> None:
    module = lowered(BRANCHES % "", c=np.array(condition), **SIDES)
    assert [n.target.__name__ for n in module.graph.nodes if n.op == "call_function"] == ["matmul"]
    assert not [node for node in module.graph.nodes if node.op == "call_module"]
    x = drawn(3, 4)
    np.testing.assert_allclose(
        module(torch.from_numpy(x)).detach(), x @ SIDES["left" if condition else "right"], rtol=1e-5
    )


@pytest.mark.parametrize("condition", [True, False])
def test_a_branch_that_is_taken_gets_gradients(condition: bool) -> None:
    module = lowered(BRANCHES % "bool c, ", **SIDES)
    module(torch.tensor(condition), torch.ones(3, 4)).sum().backward()
    assert (module.left.grad is not None, module.right.grad is not None) == (condition, not condition)


def test_bodies_may_use_the_same_name_for_weights_of_their_own() -> None:
    text = """
    g (bool c, float[N, 4] x) => (float[N, 4] y) {
      y = If(c) <
        then_branch = t () => (a) { w = Constant <value_floats = [1.0, 2.0, 4.0, 8.0]> () h = Relu(x) a = Mul(h, w) },
        else_branch = e () => (b) { w = Constant <value_floats = [3.0, 5.0, 9.0, 2.0]> () i = Relu(x) b = Mul(i, w) }
      >
    }
    """
    model = ir.from_proto(build(HEAD + text))
    module = to_torch(model)
    assert len(list(module.parameters())) == 2
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(10)
    written = write_back(module, model)
    for condition, row in ((True, [10, 20, 40, 80]), (False, [30, 50, 90, 20])):
        (y,) = Session(written).run({"c": np.array(condition), "x": np.ones((1, 4), np.float32)})
        np.testing.assert_array_equal(y[0], row)


NESTED = """
g (bool c, int64 n, float[N, 4] x) => (float[N, 4] y) {
  y = If(c) <
    then_branch = t () => (a) {
      a = Loop(n, , x) <body = step (int64 i, bool go, float[N, 4] s) => (bool again, float[N, 4] next) {
        again = Identity(go)
        h = MatMul(s, w)
        next = Tanh(h)
      }>
    },
    else_branch = e () => (b) { b = MatMul(x, w) }
  >
}
"""


def test_a_loop_in_an_if_captures_a_weight_from_two_levels_up() -> None:
    module = lowered(NESTED, w=drawn(4, 4))
    x = torch.from_numpy(drawn(2, 4))
    w = torch.from_numpy(drawn(4, 4)).requires_grad_()
    torch.tanh(torch.tanh(x @ w) @ w).sum().backward()
    module(torch.tensor(True), torch.tensor(2), x).sum().backward()
    torch.testing.assert_close(module.w.grad, w.grad)


def test_a_loop_that_never_runs_gives_scan_outputs_without_rows() -> None:
    text = """
    g (int64 n, float[2, 4] x) => (float[2, 4] y, float[S, 2, 4] z) {
      y, z = Loop(n, , x) <body = step (int64 i, bool go, float[2, 4] s)
        => (bool again, float[2, 4] next, float[2, 4] seen) {
          again = Identity(go) next = Tanh(s) seen = Identity(next) }>
    }
    """
    model = ir.from_proto(build(HEAD + text))
    feeds = {"n": np.array(0, np.int64), "x": drawn(2, 4)}
    y, z = to_torch(model)(*map(to_value, feeds.values()))
    assert [tuple(y.shape), tuple(z.shape)] == [a.shape for a in Session(model).run(feeds)]


def test_scan_of_operator_set_8_stops_at_each_samples_length() -> None:
    text = """
    <ir_version: 3, opset_import: ["" : 8]>
    g (int64[2] lengths, float[2, 3] s, float[2, 4, 3] x) => (float[2, 3] last, float[2, 4, 3] all) {
      last, all = Scan <num_scan_inputs = 1, body = step (float[3] a, float[3] item) => (float[3] b, float[3] o) {
        b = Add(a, item) o = Identity(b) }> (lengths, s, x)
    }
    """
    model = ir.from_proto(build(text))
    feeds = {"lengths": np.array([4, 2]), "s": drawn(2, 3), "x": drawn(2, 4, 3)}
    with torch.no_grad():
        ours = to_torch(model)(*map(to_value, feeds.values()))
    for mine, other in zip(ours, Session(model).run(feeds), strict=True):
        np.testing.assert_allclose(mine.numpy(), other, rtol=1e-6)


STATISTICS = {"s": drawn(3), "b": drawn(3), "m": drawn(3), "v": np.abs(drawn(3)) + 1}


def test_statistics_in_the_body_of_an_if_are_written_back_too() -> None:
    text = """
    g (bool c, float[N, 3, 4] x) => (float[N, 3, 4] y) {
      y = If(c) <
        then_branch = t () => (a) { a = BatchNormalization(x, s, b, m, v) },
        else_branch = e () => (o) { o = Identity(x) }
      >
    }
    """
    model = ir.from_proto(build(HEAD + text, **STATISTICS))
    module = to_torch(model).train()
    module(torch.tensor(False), torch.randn(5, 3, 4))
    assert (write_back(module, model).graph.initializers["m"].const_value.numpy() == STATISTICS["m"]).all()
    module(torch.tensor(True), torch.randn(5, 3, 4))
    assert (write_back(module, model).graph.initializers["m"].const_value.numpy() != STATISTICS["m"]).all()


def test_shapes_in_an_if_in_an_if_become_tensors_on_the_device_of_the_inputs() -> None:
    text = """
    g (bool c, bool d, float[N, 4] x) => (int64[2] y) {
      s = Shape(x)
      y = If(c) <
        then_branch = t () => (a) {
          a = If(d) <then_branch = p () => (u) { u = Identity(s) }, else_branch = q () => (v) { v = Neg(s) }>
        },
        else_branch = e () => (b) { b = Abs(s) }
      >
    }
    """
    module = lowered(text)
    bodies = [part for part in module.modules() if isinstance(part, fx.GraphModule) and part is not module]
    made = [node for body in bodies for node in body.graph.nodes if node.target is from_host]
    assert len(made) == 3
    assert all(isinstance(node.args[2], fx.Node) for node in made)
    assert module(torch.tensor(True), torch.tensor(False), torch.zeros(3, 4)).tolist() == [-3, -4]
