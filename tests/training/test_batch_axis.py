"""Freeing a batch axis that the export fixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch
from compressor.torch_graph.parameters import trainable
from compressor.training.batch_axis import free_batch
from compressor.training.latent import settle
from tests.conftest import build, drawn

ROWS = 5


def model(signature: str, body: str, opset: int = 17, **weights: Any) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]>\ng {signature}\n{{ {body} }}'
    return ir.from_proto(build(text, **weights))


def run(given: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    return Session(given, Setup(threads=1)).run(feeds)[0]


def one_by_one(given: ir.Model, x: np.ndarray, batch: int) -> np.ndarray:
    """Every row where the original wants it, in a batch that repeats it."""
    return np.concatenate([run(given, x=np.repeat(row[None], batch, 0))[:1] for row in x])


def integers(*numbers: int) -> np.ndarray:
    return np.asarray(numbers, np.int64)


def flatten(batch: int) -> ir.Model:
    body = "c=Conv(x,w) r=Reshape(c,to) y=Gemm(r,g)"
    signature = f"(float[{batch},2,4,4] x) => (float[{batch},3] y)"
    return model(signature, body, w=drawn(4, 2, 3, 3), g=drawn(16, 3), to=integers(batch, 16))


def token(batch: int) -> ir.Model:
    """A learned token in front of each sequence, as in a vision transformer; expanded where the batch asks for it."""
    body = "c=Concat<axis=1>(t,x) " if batch == 1 else "e=Expand(t,many) c=Concat<axis=1>(e,x) "
    weights = {"t": drawn(1, 1, 4), "g": drawn(4, 3), "zero": np.int64(0), "many": integers(batch, 1, 4)}
    signature = f"(float[{batch},3,4] x) => (float[{batch},3] y)"
    return model(
        signature,
        body + "f=Gather<axis=1>(c,zero) m=ReduceMean<axes=[1]>(c) s=Squeeze(m,one) a=Add(f,s) y=MatMul(a,g)",
        one=integers(1),
        **weights,
    )


def attention(batch: int) -> ir.Model:
    """Heads split in two Reshapes, samples and heads merged in between, time first: as torch writes it."""
    body = "t=Transpose<perm=[1,0,2]>(x) q=MatMul(t,w) r=Reshape(q,merged) s=Transpose<perm=[1,0,2]>(r) "
    body += "h=Reshape(s,apart) k=Transpose<perm=[0,1,3,2]>(h) m=MatMul(h,k) a=Add(m,mask) p=Softmax(a) o=MatMul(p,h) "
    body += "b=Transpose<perm=[2,0,1,3]>(o) f=Reshape(b,flat) u=Gemm(f,g) v=Reshape(u,back) "
    body += "y=Transpose<perm=[1,0,2]>(v)"
    shapes = {"merged": integers(3, batch * 2, 4), "apart": integers(batch, 2, 3, 4)}
    shapes |= {"flat": integers(3 * batch, 8), "back": integers(3, batch, 8)}
    mask = np.repeat(drawn(1, 1, 3, 3), batch, 0)
    signature = f"(float[{batch},3,8] x) => (float[{batch},3,8] y)"
    return model(signature, body, w=drawn(8, 8), g=drawn(8, 8, seed=1), mask=mask, **shapes)


def recurrent(batch: int) -> ir.Model:
    """Lengths and an initial state for each sample."""
    body = "t=Transpose<perm=[1,0,2]>(x) o,h,c=LSTM<hidden_size=4>(t,w,r,,lengths,h0,c0) y=Squeeze(h,axis)"
    states = {"h0": np.repeat(drawn(1, 1, 4), batch, 1), "c0": np.zeros((1, batch, 4), np.float32)}
    weights = {"w": drawn(1, 16, 2), "r": drawn(1, 16, 4), "lengths": np.full(batch, 2, np.int32)}
    return model(
        f"(float[{batch},3,2] x) => (float[{batch},4] y)", body, axis=integers(0), **weights, **states
    )


def made_state(batch: int) -> ir.Model:
    """An initial state that the graph makes."""
    body = "t=Transpose<perm=[1,0,2]>(x) z=ConstantOfShape(many) o,h=GRU<hidden_size=4>(t,w,r,,,z) y=Squeeze(h,axis)"
    weights = {"w": drawn(1, 12, 2), "r": drawn(1, 12, 4), "many": integers(1, batch, 4), "axis": integers(0)}
    return model(f"(float[{batch},3,2] x) => (float[{batch},4] y)", body, **weights)


def resized(batch: int) -> ir.Model:
    body = 'u=Resize<mode="nearest">(x,,,sizes) y=Slice(u,start,end,axis)'
    numbers = {
        "sizes": integers(batch, 2, 8, 8),
        "start": integers(0),
        "end": integers(batch),
        "axis": integers(0),
    }
    return model(f"(float[{batch},2,4,4] x) => (float[{batch},2,8,8] y)", body, **numbers)


def expanded(batch: int) -> ir.Model:
    """An Expand of the samples, and one of made values whose target follows them."""
    body = "e=Expand(x,many) s=Shape(x) z=Expand(ones,s) a=Add(e,z) "
    body += "c=ConstantOfShape(own) b=Add(a,c) y=Mul(b,x)"
    weights = {"many": integers(batch, 4), "ones": np.ones((batch, 1), np.float32), "own": integers(batch, 4)}
    return model(f"(float[{batch},4] x) => (float[{batch},4] y)", body, **weights)


FIXED = (flatten, token, attention, recurrent, made_state, resized, expanded)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("make", FIXED, ids=lambda make: make.__name__)
def test_takes_any_number_of_rows_and_gives_each_what_the_original_does(make: object, batch: int) -> None:
    original = make(batch)
    freed = free_batch(original)
    assert freed is not original
    onnx.checker.check_model(ir.to_proto(freed), full_check=True)
    assert str(freed.graph.inputs[0].shape[0]) == str(freed.graph.outputs[0].shape[0]) == "batch"
    x = drawn(ROWS, *[int(d) for d in original.graph.inputs[0].shape[1:]])
    expected = one_by_one(original, x, batch)
    np.testing.assert_allclose(run(freed, x=x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_torch(freed)(torch.from_numpy(x)).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", FIXED, ids=lambda make: make.__name__)
def test_trained_values_mean_the_same_in_the_model_with_a_fixed_batch(make: object) -> None:
    original = make(2)
    trained = free_batch(original)
    for value in trainable(trained):
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy() + np.float32(0.1), name=value.name)
    x = drawn(2, *[int(d) for d in original.graph.inputs[0].shape[1:]])
    np.testing.assert_allclose(run(settle(trained, original), x=x), run(trained, x=x), rtol=1e-4, atol=1e-5)


def test_a_token_is_still_the_weight_that_it_was() -> None:
    for batch in (1, 2):
        assert "t" in {value.name for value in trainable(free_batch(token(batch)))}


def test_the_original_stays_as_it_was() -> None:
    original = attention(2)
    before = ir.to_proto(original).SerializeToString()
    free_batch(original)
    assert ir.to_proto(original).SerializeToString() == before


def test_keeps_other_dynamic_sizes() -> None:
    body = "q=MatMul(x,w) r=Reshape(q,heads) t=Transpose<perm=[0,2,1,3]>(r) y=ReduceMean<axes=[2]>(t)"
    signature = "(float[2,S,8] x) => (float[2,2,1,4] y)"
    freed = free_batch(model(signature, body, w=drawn(8, 8), heads=integers(2, -1, 2, 4)))
    assert [str(d) for d in freed.graph.inputs[0].shape] == ["batch", "S", "8"]
    assert run(freed, x=drawn(5, 7, 8)).shape == (5, 2, 1, 4)


def test_the_name_of_the_axis_is_free() -> None:
    freed = free_batch(model("(float[2,batch] x) => (float[2,batch] y)", "y=Relu(x)"))
    assert [str(d) for d in freed.graph.inputs[0].shape] == ["batch_0", "batch"]


SAME = "(float[2,4] x) => (float[2,4] y)"
UNTOUCHED = {
    "already dynamic": lambda: model("(float[N,4] x) => (float[N,4] y)", "y=Relu(x)"),
    "samples are mixed": lambda: model(SAME, "m=ReduceMean<axes=[0]>(x) y=Sub(x,m)"),
    "samples share a scale": lambda: model(SAME, "q,s,z=DynamicQuantizeLinear(x) y=DequantizeLinear(q,s,z)"),
    "one number for all": lambda: model("(float[2,4] x) => (float y)", "y=ReduceMean<keepdims=0>(x)"),
    "a weight for each sample": lambda: model(SAME, "y=Mul(x,w)", w=drawn(2, 4)),
    "rows are picked": lambda: model("(float[2,4] x) => (float[1,4] y)", "y=Gather(x,one)", one=integers(1)),
    "no common first axis": lambda: model("(float[2,4] x, float[3,2] z) => (float[3,4] y)", "y=MatMul(z,x)"),
    "cannot be run": lambda: model(SAME, "y=Gemm(x,w)", w=drawn(3, 4)),
}


@pytest.mark.parametrize("reason", UNTOUCHED)
def test_is_the_model_itself_where(reason: str) -> None:
    given = UNTOUCHED[reason]()
    assert free_batch(given) is given
