"""BatchNormalization put back for training and folded again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch, write_back
from compressor.torch_graph.calling import KernelModule
from compressor.training.latent import settle
from compressor.training.unfolding import estimate, fold_again, unfold
from tests.conftest import build, drawn

BODY = "c=Conv<pads=[1,1,1,1]>(x,wc,bc) r=Relu(c) d=Conv<group=2>(r,wd,bd) f=Flatten(d) g=Gemm<transB=1>(f,wg,bg) "
BODY += "t=Tanh(g) h=Gemm(t,wh,bh) s=Relu(h) y=Gemm(s,wy,by)"
WEIGHTS = {
    "wc": drawn(4, 2, 3, 3),
    "bc": drawn(4),
    "wd": drawn(6, 2, 2, 2, seed=1),
    "bd": drawn(6, seed=1),
    "wg": drawn(5, 54, seed=2) / 4,
    "bg": drawn(5, seed=2),
    "wh": drawn(5, 7, seed=3),
    "bh": drawn(7, seed=3),
    "wy": drawn(7, 3, seed=4),
    "by": drawn(3, seed=4),
}


def model(signature: str, body: str, **weights: Any) -> ir.Model:
    return ir.from_proto(
        build(f'<ir_version: 8, opset_import: ["" : 17]>\ng {signature}\n{{ {body} }}', **weights)
    )


def network() -> ir.Model:
    return model("(float[N,2,4,4] x) => (float[N,3] y)", BODY, **WEIGHTS)


def run(given: ir.Model, x: np.ndarray) -> np.ndarray:
    return Session(given, Setup(threads=1, optimize=False)).run({"x": x})[0]


X = drawn(16, 2, 4, 4, seed=9)


def test_stands_behind_every_layer_but_those_that_give_outputs() -> None:
    unfolded, names = unfold(network())
    behind = {
        n.name: n.inputs[0].producer().inputs[1].name
        for n in unfolded.graph
        if n.op_type == "BatchNormalization"
    }
    assert [behind[name] for name in names] == ["wc", "wd", "wg", "wh"]
    onnx.checker.check_model(ir.to_proto(unfolded), full_check=True)


def test_is_an_exact_identity() -> None:
    unfolded, _ = unfold(network())
    np.testing.assert_array_equal(run(unfolded, X), run(network(), X))
    x = torch.from_numpy(X)
    np.testing.assert_allclose(
        to_torch(unfolded)(x).detach(), to_torch(network())(x).detach(), rtol=1e-5, atol=1e-5
    )


def test_readers_of_a_layers_name_see_the_normalized_value() -> None:
    unfolded, names = unfold(network())
    values = {v.name: node.op_type for node in unfolded.graph for v in node.outputs}
    assert values["c"] == "BatchNormalization"
    assert values[names[0]] == "Conv"


NORM = {k: np.abs(drawn(2)) for k in ("s", "t", "m", "v")}
DECLINED = {
    "no bias": "c=Conv(x,w)",
    "a weight that two layers share": "e=Conv(x,w,b) f=Conv(x,w,k) c=Add(e,f)",
    "a bias that two layers share": "e=Conv(x,w,b) f=Conv(x,u,b) c=Add(e,f)",
    "a BatchNormalization behind it": "e=Conv(x,w,b) c=BatchNormalization(e,s,t,m,v)",
    "a quantized weight": "q=QuantizeLinear(w,step) d=DequantizeLinear(q,step) c=Conv(x,d,b)",
}
OPERANDS = {
    "w": drawn(2, 2, 1, 1),
    "u": drawn(2, 2, 1, 1, seed=1),
    "b": drawn(2),
    "k": drawn(2, seed=1),
} | NORM


@pytest.mark.parametrize("reason", DECLINED)
def test_leaves_a_layer_with(reason: str) -> None:
    body = f"{DECLINED[reason]} r=Relu(c) y=Conv(r,head)"
    operands = {"head": drawn(2, 2, 1, 1), "step": np.float32(0.1), **OPERANDS}
    given = model("(float[N,2,3,3] x) => (float[N,2,3,3] y)", body, **operands)
    assert unfold(given)[1] == ()


@pytest.mark.parametrize("gemm", ["Gemm<alpha=0.5>(x,w,b)", "Gemm<transA=1>(x,w,b)"])
def test_leaves_a_gemm_that_is_not_a_plain_layer(gemm: str) -> None:
    given = model(
        "(float[4,4] x) => (float[4,2] y)",
        f"c={gemm} y=MatMul(c,head)",
        w=drawn(4, 4),
        b=drawn(4),
        head=drawn(4, 2),
    )
    assert unfold(given)[1] == ()


def test_leaves_a_layer_whose_output_is_an_output() -> None:
    given = model(
        "(float[N,4] x) => (float[N,4] c, float[N,2] y)",
        "c=Gemm(x,w,b) y=MatMul(c,head)",
        w=drawn(4, 4),
        b=drawn(4),
        head=drawn(4, 2),
    )
    assert unfold(given)[1] == ()


def test_estimating_changes_the_statistics_and_not_the_function() -> None:
    unfolded, names = unfold(network())
    module = to_torch(unfolded)
    batches = [(torch.from_numpy(part),) for part in np.split(X, [3, 10])]
    before = [module(*batch) for batch in batches]
    assert estimate(module, names, batches) is module
    assert not any(part._forward_pre_hooks for part in module.modules())
    for batch, expected in zip(batches, before, strict=True):
        np.testing.assert_allclose(module(*batch).detach(), expected.detach(), rtol=1e-4, atol=1e-4)
    conv = "c=Conv<pads=[1,1,1,1]>(x,wc,bc)"
    layer = model("(float[N,2,4,4] x) => (float[N,4,4,4] c)", conv, wc=WEIGHTS["wc"], bc=WEIGHTS["bc"])
    first = run(layer, X)
    stored = {
        v.name: v.const_value.numpy()
        for v in write_back(module, unfolded).graph.initializers.values()
        if v.const_value
    }
    np.testing.assert_allclose(stored[f"{names[0]}_mean"], first.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stored[f"{names[0]}_var"], first.var((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_training_starts_at_normalized_values_that_are_scaled_back() -> None:
    unfolded, names = unfold(network())
    module = to_torch(unfolded)
    whole = (torch.from_numpy(X),)
    expected = module(*whole)
    estimate(module, names, [whole])
    module.train()
    np.testing.assert_allclose(module(*whole).detach(), expected.detach(), rtol=1e-3, atol=1e-3)


def test_estimating_without_batches_changes_nothing() -> None:
    unfolded, names = unfold(network())
    module = estimate(to_torch(unfolded), names, [])
    for before, after in zip(
        unfolded.graph.initializers.values(),
        write_back(module, unfolded).graph.initializers.values(),
        strict=True,
    ):
        np.testing.assert_array_equal(before.const_value.numpy(), after.const_value.numpy())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.01, 0.3]))
def test_folding_again_keeps_what_training_made(seed: int, spread: float) -> None:
    unfolded, names = unfold(network())
    rng = np.random.default_rng(seed)
    trained = unfolded.clone()
    for name, value in trained.graph.initializers.items():
        old = value.const_value.numpy()
        new = old + spread * rng.standard_normal(old.shape)
        value.const_value = ir.tensor(
            (np.abs(new) if name.endswith("_var") else new).astype(np.float32), name=name
        )
    folded = fold_again(trained, names)
    expected = run(trained, X)
    largest = float(np.abs(expected).max())
    np.testing.assert_allclose(run(folded, X), expected, rtol=0, atol=1e-4 * largest)
    np.testing.assert_allclose(run(settle(folded, network()), X), expected, rtol=0, atol=1e-4 * largest)


def test_folding_again_what_was_not_trained_gives_the_same_bytes() -> None:
    unfolded, names = unfold(network())
    folded = fold_again(unfolded, names)
    assert ir.to_proto(folded).SerializeToString() == ir.to_proto(unfolded).SerializeToString()


def test_a_restored_normalization_trains_with_the_statistics_of_the_batch() -> None:
    unfolded, names = unfold(network())
    module = to_torch(unfolded)
    assert sum(isinstance(part, KernelModule) for part in module.modules()) == len(names)
    module.train()
    module(torch.from_numpy(X))
    stored = write_back(module, unfolded).graph.initializers
    assert stored[f"{names[0]}_mean"].const_value.numpy().any()
