"""Small models, data that they can learn, and one training of them from the text form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from compressor.data import open_samples
from compressor.pipeline import Change, Compressed, Context, Pipeline
from compressor.runtime import Session, Setup
from tests.conftest import build, drawn

Arrays = dict[str, np.ndarray]

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
MLP = "g (float[N,4] x) => (float[N,3] y) { h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) }"
CNN = """g (float[N,1,6,6] x) => (float[N,3] y) {
  c = Conv<pads = [1, 1, 1, 1]>(x, wc, bc) n = BatchNormalization(c, scale, shift, mean, var) r = Relu(n)
  p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, wg, bg) }"""
FOLDED = """g (float[N,1,6,6] x) => (float[N,3] y) {
  c = Conv<pads = [1, 1, 1, 1]>(x, wc, bc) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, wg, bg) }"""
ATTENTION = """g (float[N,5,4] x) => (float[N,5,4] y) {
  q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, t)
  p = Softmax(s) o = MatMul(p, v) y = Add(o, x) }"""
LSTM = """g (float[N,6,4] x) => (float[N,3] y) {
  t = Transpose<perm = [1, 0, 2]>(x) o, h, c = LSTM<hidden_size = 3>(t, w, r) y = Squeeze(h, zero) }"""
TWO_HEADS = """g (float[N,4] x) => (float[N,3] y, float[N,3] z) {
  h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) z = Gemm(r, w3, b3) }"""
BRANCHES = """g (float[N,4] x) => (float[N,3] y) {
  s = ReduceSum<keepdims = 0>(x) c = Greater(s, zero)
  h = If(c)<then_branch = t () => (float[N,8] u) { u = MatMul(x, w1) },
            else_branch = e () => (float[N,8] v) { v = MatMul(x, w3) }>
  y = Gemm(h, w2, b2) }"""
CONSTANT = """g (float[N,4] x) => (float[N,3] y) {
  w1 = Constant<value = float[4,3] {0.1, -0.2, 0.3, 0.4, 0.5, -0.6, -0.7, 0.8, 0.9, 1.0, 1.1, -1.2}>()
  y = MatMul(x, w1) }"""
TIED = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) r = Relu(h) t = Transpose(w) y = MatMul(r, t) }"


def dense() -> Arrays:
    """The weights of two dense layers, 4 -> 8 -> 3."""
    return {
        "w1": drawn(4, 8) * 0.5,
        "b1": drawn(8, seed=1) * 0.1,
        "w2": drawn(8, 3, seed=2) * 0.5,
        "b2": drawn(3) * 0.1,
    }


def convolution(channels: int = 4) -> Arrays:
    """The weights of FOLDED."""
    weights = {"wc": drawn(channels, 1, 3, 3) * 0.5, "bc": drawn(channels) * 0.1}
    return weights | {"wg": drawn(channels, 3, seed=2), "bg": drawn(3, seed=3) * 0.1}


def mlp() -> ir.Model:
    """x[N, 4] -> Gemm 8 -> Relu -> Gemm 3."""
    return ir.from_proto(build(HEAD + MLP, **dense()))


def cnn() -> ir.Model:
    """x[N, 1, 6, 6] -> Conv 4 -> BatchNormalization -> Relu -> GlobalAveragePool -> Gemm 3."""
    ones = np.ones(4, np.float32)
    normalization = {"scale": ones, "shift": 0 * ones, "mean": 0 * ones, "var": ones}
    return ir.from_proto(build(HEAD + CNN, **convolution(), **normalization))


def folded() -> ir.Model:
    """The CNN as an exporter leaves it, without BatchNormalization."""
    return ir.from_proto(build(HEAD + FOLDED, **convolution()))


def attention() -> ir.Model:
    """One attention block with a residual, x[N, 5, 4]."""
    return ir.from_proto(
        build(HEAD + ATTENTION, **{n: drawn(4, 4, seed=i) * 0.5 for i, n in enumerate(("wq", "wk", "wv"))})
    )


def two_heads() -> ir.Model:
    """The MLP with a second output."""
    return ir.from_proto(
        build(HEAD + TWO_HEADS, **dense(), w3=drawn(8, 3, seed=4) * 0.5, b3=drawn(3, seed=5))
    )


def made(text: str, **weights: np.ndarray) -> ir.Model:
    """A model from ONNX text."""
    return ir.from_proto(build(HEAD + text, **weights))


def points(count: int = 24, seed: int = 0) -> Arrays:
    """Points of three classes that the MLP can tell apart."""
    x = drawn(count, 4, seed=seed + 10)
    return {"x": x, "labels": np.argmax(x[:, :3], axis=1)}


def images(count: int = 24, seed: int = 0) -> Arrays:
    """Images of three classes that differ in brightness."""
    labels = np.random.default_rng(seed).integers(3, size=count)
    x = drawn(count, 1, 6, 6, seed=seed + 10) + labels[:, None, None, None]
    return {"x": x.astype(np.float32), "labels": labels}


def train(
    model: ir.Model, data: Arrays, options: str = "", test: Arrays | None = None, **context: Any
) -> Compressed:
    """One training from the text form, scored on `test`; short, by plain SGD, and the last weights are kept.

    Whatever the options say instead goes first.
    """
    given = {"epochs": "2", "batch": "8", "warmup": "0", "optimizer": "sgd", "lr": "0.1", "keep": "last"}
    given |= {"schedule": "constant", "weight_decay": "0", "momentum": "0"}
    text = " ".join(f"{k}={v}" for k, v in given.items() if f"{k}=" not in options)
    samples = open_samples(data, model, "train")
    held = open_samples(data if test is None else test, model, "data")
    run = Context(train=samples, data=held, threads=1, **context)
    return Pipeline.parse(f"finetune{{{text} {options}}}").run(model, run)


def change(result: Compressed) -> Change:
    """What the training did."""
    return result.changes[-1]


def values(model: ir.Model) -> Arrays:
    """Initializer name -> its values."""
    return {
        n: v.const_value.numpy().copy()
        for n, v in model.graph.initializers.items()
        if v.const_value is not None
    }


def moved(before: ir.Model, after: ir.Model) -> set[str]:
    """The initializers whose values differ."""
    old, new = values(before), values(after)
    assert list(old) == list(new)
    return {name for name in old if not np.array_equal(old[name], new[name])}


def distance(before: ir.Model, after: ir.Model) -> float:
    """The Euclidean distance of all weights together."""
    old, new = values(before), values(after)
    return float(np.sqrt(sum(((new[n].astype(np.float64) - old[n]) ** 2).sum() for n in old)))


def outputs(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    """What onnxruntime computes."""
    session = Session(model, Setup(threads=1))
    return session.run({session.inputs[0]: x})


def check(model: ir.Model) -> None:
    """Raise unless the ONNX checker accepts the model."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
