"""Recurrent layers on the weights of the file itself: nothing moves them at a step, values and gradients reach them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx

from compressor.errors import ModelError
from compressor.runtime import Session, Setup
from compressor.torch_graph import lowering, recurrence, to_torch, write_back
from tests.conftest import build, drawn
from tests.torch_graph.native import both_exports, made

FLOAT32 = 1e-5
"""Relative and absolute: a few steps of float32, in another order."""


def layer_weights(module: fx.GraphModule) -> list[fx.Node]:
    """What the recurrent kernels get as weights."""
    layers = [n for n in module.graph.nodes if getattr(n.target, "__name__", "") == "fused_layer"]
    return [weight for layer in layers for direction in layer.args[1] for weight in direction]


def assert_same_as_onnxruntime(model: ir.Model, module: fx.GraphModule) -> None:
    x = drawn(4, 2, 2, seed=9)
    (expected,) = Session(model, Setup(threads=1, optimize=False)).run({"x": x})
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_kernel_of_an_export_gets_the_parameters_themselves(name: str) -> None:
    native, _ = made(name)
    wanted = sorted(n for n, _ in native.named_parameters() if n.startswith("cells."))
    assert sorted(str(node.target) for node in layer_weights(to_torch(both_exports(name)[0]))) == wanted


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_trained_import_equals_its_trained_module_and_its_file(name: str, optimized: bool) -> None:
    native, draw = made(name)
    model = both_exports(name)[optimized]
    module, x = to_torch(model), draw(4)
    for each in (native, module):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(module(x), native(x))
    trained = write_back(module, model)
    for n, parameter in module.named_parameters():
        np.testing.assert_array_equal(
            trained.graph.initializers[n].const_value.numpy(), parameter.detach().numpy()
        )
    assert torch.equal(to_torch(trained)(x), module(x))


LSTM = "y, last = LSTM<hidden_size = 3>(x, w, r, b)"
GRU = "y, last = GRU<hidden_size = 3, linear_before_reset = 1>(x, w, r, b)"
RNN = "y, last = RNN<hidden_size = 3>(x, w, r, b)"
BOTH = 'y, last = LSTM<hidden_size = 3, direction = "bidirectional">(x, w, r, b)'
GATES = (
    "i, f, c, o = Split<axis = 0>(torch_w) joined = Concat<axis = 0>(i, o, f, c) w = Unsqueeze(joined, zero) "
)
W, R, B = drawn(1, 12, 2), drawn(1, 12, 3, seed=1), drawn(1, 24, seed=2)
R2, B2 = drawn(2, 12, 3, seed=1), drawn(2, 24, seed=2)
CHAINS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "gates split and joined": (GATES + LSTM, {"torch_w": W[0], "r": R, "b": B}),
    "gates gathered": (
        "gates = Reshape(torch_w, split) ordered = Gather(gates, order) w = Reshape(ordered, whole) " + LSTM,
        {
            "torch_w": W[0],
            "split": np.array([4, 6]),
            "order": np.array([0, 3, 1, 2]),
            "whole": np.array([1, 12, 2]),
            "r": R,
            "b": B,
        },
    ),
    "in ONNX's own order": (LSTM, {"w": W, "r": R, "b": B}),
    "without biases": (LSTM.replace(", b", ""), {"w": W, "r": R}),
    "directions with the same weights": (
        "w = Concat<axis = 0>(one, one) " + BOTH,
        {"one": W, "r": R2, "b": B2},
    ),
    "parts of one vector": (
        "p, q = Split<axis = 0>(all, sizes) w = Reshape(p, w_shape) r = Reshape(q, r_shape) " + LSTM,
        {
            "all": drawn(60),
            "sizes": np.array([24, 36]),
            "w_shape": np.array([1, 12, 2]),
            "r_shape": np.array([1, 12, 3]),
            "b": B,
        },
    ),
    "overlapping parts": (
        "p = Slice(long, zero, twelve, zero) q = Slice(long, six, eighteen, zero) "
        "p3 = Unsqueeze(p, zero) q3 = Unsqueeze(q, zero) w = Concat<axis = 0>(p3, q3) " + BOTH,
        {
            "long": drawn(18, 2),
            "six": np.array([6]),
            "twelve": np.array([12]),
            "eighteen": np.array([18]),
            "r": R2,
            "b": B2,
        },
    ),
    "a bias of several shapes": (
        "flat = Reshape(row, twelve) both = Concat<axis = 0>(flat, vector) b = Unsqueeze(both, zero) " + LSTM,
        {"w": W, "r": R, "row": drawn(6, 2), "vector": drawn(12), "twelve": np.array([12])},
    ),
    "a bias of a matrix and a vector": (
        "p, q = Split<axis = 0>(row, sizes) flat = Reshape(p, minus) both = Concat<axis = 0>(vector, flat, other) "
        "b = Unsqueeze(both, zero) " + RNN,
        {
            "w": W[:, :3],
            "r": R[:, :3],
            "row": drawn(2, 2),
            "sizes": np.array([1, 1]),
            "minus": np.array([-1]),
            "vector": drawn(1),
            "other": drawn(3),
        },
    ),
    "zeros for a bias": (
        "none = Expand(nothing, twelve) both = Concat<axis = 0>(vector, none) b = Unsqueeze(both, zero) "
        + LSTM,
        {"w": W, "r": R, "vector": drawn(12), "nothing": np.zeros(1, np.float32), "twelve": np.array([12])},
    ),
    "gates of a gru": (
        "p, q, n = Split<axis = 0>(torch_w) ordered = Concat<axis = 0>(q, p, n) w = Unsqueeze(ordered, zero) "
        + GRU,
        {"torch_w": W[0, :9], "r": R[:, :9], "b": B[:, :18]},
    ),
}
"""Operators that move weights, and the weights."""
VIEWS = {"reshape", "split", "item", "cat", "fused_layer", "first"}


def model_of(body: str, weights: dict[str, np.ndarray]) -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[T, N, 2] x) => (float[T, D, N, 3] y) {{ {body} }}"""
    more = {"zero": np.array([0])} if "zero" in body else {}
    return ir.from_proto(build(text, **more, **weights))


def gradients(module: fx.GraphModule) -> dict[str, Tensor]:
    x = torch.from_numpy(drawn(4, 2, 2, seed=5))
    module(x).sin().sum().backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def without_the_shortcut(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> fx.GraphModule:
    ways = tuple(way for way in lowering._WAYS if way is not recurrence.lower)
    with monkeypatch.context() as patched:
        patched.setattr(lowering, "_WAYS", ways)
        return to_torch(model)


@pytest.mark.parametrize(("body", "weights"), CHAINS.values(), ids=CHAINS)
def test_whatever_moves_weights_becomes_views_and_joins(
    body: str, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(body, weights)
    module = to_torch(model)
    assert {node.target.__name__ for node in module.graph.nodes if node.op == "call_function"} <= VIEWS
    assert_same_as_onnxruntime(model, module)
    expected = gradients(without_the_shortcut(model, monkeypatch))
    torch.testing.assert_close(gradients(module), expected)
    assert expected


@pytest.mark.parametrize("chain", ["gates split and joined", "gates gathered", "gates of a gru"])
def test_an_order_that_the_kernel_undoes_costs_nothing(chain: str) -> None:
    weight = layer_weights(to_torch(model_of(*CHAINS[chain])))[0]
    assert (weight.op, weight.target) == ("get_attr", "torch_w")


NOT_COMPOSED = {
    "transposed weights": ("w = Transpose<perm = [0, 2, 1]>(wt) " + LSTM, {"wt": drawn(1, 2, 12)}),
    "scaled weights": ("w = Mul(half, ws) " + LSTM, {"ws": W, "half": drawn(1, 12, 1)}),
    "a clipped layer": (LSTM.replace("size = 3", "size = 3, clip = 0.5"), {"w": W}),
    "peepholes": (LSTM.replace("r, b", "r, b, , , , p"), {"w": W, "p": drawn(1, 9, seed=7)}),
}


@pytest.mark.parametrize(("body", "weights"), NOT_COMPOSED.values(), ids=NOT_COMPOSED)
def test_what_is_more_than_a_few_parts_of_weights_is_run_as_written(
    body: str, weights: dict[str, np.ndarray]
) -> None:
    model = model_of(body, weights | {"r": R, "b": B})
    module = to_torch(model)
    assert not layer_weights(module)
    assert_same_as_onnxruntime(model, module)


def test_weights_that_do_not_fit_are_refused_when_the_layer_is_run() -> None:
    module = to_torch(model_of(BOTH, {"w": W, "r": R, "b": B}))
    with pytest.raises(ModelError, match=r"bidirectional needs weights of 2 direction\(s\), got 1"):
        module(torch.zeros(4, 2, 2))


INSIDE = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[T, N, 2] x, bool[] go) => (float[T, 1, N, 3] y) {
  joined = Concat<axis = 2>(left, right)
  y = If (go) <
    then_branch = then () => (float[T, 1, N, 3] a) { a, last = LSTM<hidden_size = 3>(x, joined, r, b) },
    else_branch = other () => (float[T, 1, N, 3] c) {
      cut = Concat<axis = 1>(top, bottom)
      c, last2 = LSTM<hidden_size = 3>(x, cut, r, b)
    }>
}
"""


@pytest.mark.parametrize("go", [True, False])
def test_a_layer_in_a_branch_uses_the_weights_around_it(go: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = {"left": drawn(1, 12, 1), "right": drawn(1, 12, 1, seed=1)}
    parts = {"top": drawn(1, 6, 2, seed=2), "bottom": drawn(1, 6, 2, seed=3)}
    rest = {"r": R, "b": B}
    model = ir.from_proto(build(INSIDE, **halves, **parts, **rest))
    x = torch.from_numpy(drawn(4, 2, 2))
    (expected,) = Session(model, Setup(threads=1, optimize=False)).run({"x": x.numpy(), "go": np.array(go)})
    found = {}
    for module in (to_torch(model), without_the_shortcut(model, monkeypatch)):
        y = module(x, torch.tensor(go))
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=FLOAT32, atol=FLOAT32)
        y.sin().sum().backward()
        found[module] = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    ours, theirs = found.values()
    assert set(rest) | set(halves if go else parts) <= {n for n, g in ours.items() if g.any()}
    torch.testing.assert_close(ours, theirs)
