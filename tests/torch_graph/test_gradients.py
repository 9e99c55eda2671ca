"""Gradients of exported modules equal those of the modules themselves; torch's own tools work on the import."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx, nn

from compressor.torch_graph import to_torch, write_back
from tests.conftest import build, drawn
from tests.torch_graph.native import MODULES, both_exports, made

FLOAT64 = 1e-7
"""Relative. The file keeps the epsilon of a normalization as float32, 3e-8 beside the module's; sums of some thousand
float64 products in another order differ by less. The project promises 1e-4."""


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Outputs, the gradient of every parameter that has a say, and of the input where it is a float."""
    x = x.clone().requires_grad_(x.is_floating_point())
    y = module(x)
    torch.sin(3 * y).sum().backward()
    given = {n: p.grad for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    return y.detach(), given, x.grad


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODULES)
def test_an_export_has_the_gradients_of_its_module(name: str, training: bool) -> None:
    module, draw = made(name)
    imported = to_torch(both_exports(name)[0])
    x = draw(4)
    y, wanted, into = gradients(module.train(training), x)
    ours, found, into_ours = gradients(imported.train(training), x)
    assert difference(ours, y) < FLOAT64
    assert found.keys() == wanted.keys()
    assert max(difference(found[n], wanted[n]) for n in wanted) < FLOAT64
    assert into is None or difference(into_ours, into) < FLOAT64
    buffers = dict(imported.named_buffers())
    for n, buffer in module.named_buffers():
        assert "num_batches" in n or difference(buffers[n], buffer) < FLOAT64


@pytest.mark.parametrize("name", MODULES)
def test_an_optimized_export_has_the_gradients_of_what_it_kept(name: str) -> None:
    module, draw = made(name)
    imported = to_torch(both_exports(name)[1])
    x = draw(4)
    y, wanted, into = gradients(module, x)
    ours, found, into_ours = gradients(imported, x)
    assert difference(ours, y) < FLOAT64
    assert into is None or difference(into_ours, into) < FLOAT64
    trained = dict(imported.named_parameters())
    kept = [n for n, p in module.named_parameters() if n in found and torch.equal(p, trained[n])]
    assert kept
    assert max(difference(found[n], wanted[n]) for n in kept) < FLOAT64


def test_an_embedding_that_the_exporter_transposed_for_the_output_stays_one_parameter() -> None:
    model = both_exports("tied")[1]
    shapes = [list(v.shape) for v in model.graph.initializers.values() if v.const_value is not None]
    assert [11, 6] in shapes
    assert [6, 11] in shapes
    imported = to_torch(model)
    assert [list(p.shape) for p in imported.parameters()].count([11, 6]) == 1
    with torch.no_grad():
        for parameter in imported.parameters():
            parameter.mul_(1.5)
    written = {
        str(list(v.shape)): v.const_value.numpy()
        for v in write_back(imported, model).graph.initializers.values()
        if len(v.shape) == 2
    }
    np.testing.assert_array_equal(written["[11, 6]"], written["[6, 11]"].T)


def test_training_mode_changes_what_it_should_and_eval_mode_nothing() -> None:
    imported = to_torch(both_exports("residual")[0])
    assert not imported.training
    before = {n: b.clone() for n, b in imported.named_buffers()}
    imported(made("residual")[1](4))
    assert all(torch.equal(before[n], b) for n, b in imported.named_buffers())
    imported.train()(made("residual")[1](4))
    changed = {n for n, b in imported.named_buffers() if not torch.equal(before[n], b)}
    assert changed == {f"{bn}.running_{part}" for bn in ("stem_bn", "conv_bn") for part in ("mean", "var")}


LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
looped (float[N, 4] x, int64 n) => (float[N, 4] y, float[S, N, 4] all) {
  y, all = Loop (n, , x) <body = step (int64 i, bool go, float[N, 4] s)
    => (bool again, float[N, 4] next, float[N, 4] seen) {
      again = Identity(go)
      h = MatMul(s, w)
      next = Tanh(h)
      seen = Mul(next, g)
  }>
}
"""
SCAN = """
<ir_version: 8, opset_import: ["" : 17]>
scanned (float[4] first, float[T, 4] x) => (float[4] last, float[T, 4] all) {
  last, all = Scan <num_scan_inputs = 1, scan_input_directions = [1], body = step (float[4] s, float[4] item)
    => (float[4] next, float[4] seen) {
      h = MatMul(s, w)
      a = Add(h, item)
      next = Tanh(a)
      seen = Mul(next, g)
  }> (first, x)
}
"""


def _steps(module: fx.GraphModule, state: Tensor, items: list[Tensor]) -> tuple[Tensor, Tensor]:
    weights = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    module.wanted = weights
    seen = []
    for item in items:
        state = torch.tanh(state @ weights["w"] + item)
        seen.append(state * weights["g"])
    return state, torch.stack(seen)


def _weights() -> dict[str, np.ndarray]:
    return {"w": drawn(4, 4), "g": drawn(4, seed=1)}


@pytest.mark.parametrize("trips", [1, 3])
def test_gradients_flow_through_a_loop_into_what_it_captures(trips: int) -> None:
    module = to_torch(ir.from_proto(build(LOOP, **_weights())))
    x = torch.randn(2, 4)
    _assert_same_gradients(
        module, module(x, torch.tensor(trips)), _steps(module, x, [torch.zeros(2, 4)] * trips)
    )


def test_gradients_flow_through_a_backward_scan_into_what_it_captures() -> None:
    module = to_torch(ir.from_proto(build(SCAN, **_weights())))
    first, x = torch.randn(4), torch.randn(5, 4)
    _assert_same_gradients(module, module(first, x), _steps(module, first, list(x.flip(0))))


def _assert_same_gradients(module: fx.GraphModule, ours: Any, theirs: tuple[Tensor, Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    sum(y.sin().sum() for y in ours).backward()
    sum(y.sin().sum() for y in theirs).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, module.wanted[name].grad)


@pytest.mark.parametrize("name", ["residual", "encoder"])
def test_torch_compile_takes_the_import_in_one_graph(name: str) -> None:
    imported = to_torch(both_exports(name)[1])
    x = made(name)[1](4)
    wanted = gradients(imported, x)
    imported.zero_grad()
    torch._dynamo.reset()
    compiled = _quietly(lambda: torch.compile(imported, backend="aot_eager", fullgraph=True))
    found = _quietly(lambda: gradients(compiled, x))
    assert difference(found[0], wanted[0]) < FLOAT64
    assert difference(found[2], wanted[2]) < FLOAT64
    assert all(
        difference(mine, other) < FLOAT64
        for mine, other in zip(found[1].values(), wanted[1].values(), strict=True)
    )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", ["residual", "encoder", "unet", "lstm"])
def test_torch_export_takes_the_import(name: str, dynamic: bool) -> None:
    imported = to_torch(both_exports(name)[1])
    draw = made(name)[1]
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = _quietly(lambda: torch.export.export(imported, (draw(3),), dynamic_shapes=shapes))
    x = draw(5 if dynamic else 3)
    assert difference(program.module()(x), imported(x)) < FLOAT64


def _quietly(run: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        return run()
