"""The law that every pass obeys, whoever wrote it; new passes are tested here without being named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compressor.data import Samples, open_samples
from compressor.discover import find, names
from compressor.errors import OptionError
from compressor.pipeline import Change, Compressed, Context, Pass, Pipeline
from compressor.runtime import Session, Setup, to_bytes

PASSES = names()


def build(
    signature: str, body: str, opset: int = 17, version: int = 8, tail: str = "", **weights: Any
) -> ir.Model:
    imports = f'"" : {opset}' + (', "here" : 1' if tail else "")
    text = f"<ir_version: {version}, opset_import: [{imports}]>\ng {signature}\n{{ {body} }}{tail}"
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


def normal(*shape: int) -> np.ndarray:
    return (np.random.default_rng(list(shape)).standard_normal(shape) * 0.3).astype(np.float32)


def cnn(opset: int = 17, version: int = 8) -> ir.Model:
    body = "c=Conv<pads=[1,1,1,1]>(x,w) n=BatchNormalization(c,s,b,m,v) r=Relu(n) p=GlobalAveragePool(r) "
    weights = {
        "w": normal(8, 3, 3, 3),
        "s": np.abs(normal(8)) + 1,
        "b": normal(8),
        "m": normal(8),
        "v": np.abs(normal(8)) + 1,
    }
    return build(
        "(float[N,3,8,8] x) => (float[N,5] y)",
        body + "f=Flatten(p) y=Gemm(f,g,h)",
        opset,
        version,
        g=normal(8, 5),
        h=normal(5),
        **weights,
    )


def mlp() -> ir.Model:
    body = "a=Gemm(x,w,b) r=Relu(a) y=Gemm(r,v,c)"
    return build(
        "(float[N,32] x) => (float[N,5] y)",
        body,
        w=normal(32, 64),
        b=normal(64),
        v=normal(64, 5),
        c=normal(5),
    )


def attention() -> ir.Model:
    body = "q=MatMul(x,wq) k=MatMul(x,wk) v=MatMul(x,wv) kt=Transpose<perm=[0,2,1]>(k) s=MatMul(q,kt) "
    body += "p=Softmax(s) o=MatMul(p,v) d=MatMul(o,wo) e=Add(d,b) y=Add(e,x)"
    weights = {k: normal(32, 32) for k in ("wq", "wk", "wv", "wo")}
    return build("(float[N,S,32] x) => (float[N,S,32] y)", body, b=normal(32), **weights)


def lstm() -> ir.Model:
    body = "t=Transpose<perm=[1,0,2]>(x) o,h,c=LSTM<hidden_size=16>(t,w,r) y=Squeeze(h,zero)"
    weights = {"w": normal(1, 64, 8), "r": normal(1, 64, 16), "zero": np.int64([0])}
    return build("(float[N,6,8] x) => (float[N,16] y)", body, **weights)


def branching() -> ir.Model:
    then = "then_branch=t () => (float[N,4] u) {u=MatMul(x,w)}"
    other = "else_branch=e () => (float[N,4] v) {v=MatMul(x,k)}"
    body = f"s=ReduceSum<keepdims=0>(x) c=Greater(s,zero) z=If(c)<{then},{other}> y=Gemm(z,g)"
    return build(
        "(float[N,32] x) => (float[N,4] y)",
        body,
        w=normal(32, 4),
        k=normal(32, 4),
        g=normal(4, 4),
        zero=np.float32(0),
    )


def functions() -> ir.Model:
    tail = '\n<domain: "here", opset_import: ["" : 17]>\nDense (a, w, b) => (r) { m=MatMul(a,w) s=Add(m,b) r=Relu(s) }'
    body = "h=here.Dense(x,w,b) y=here.Dense(h,v,c)"
    weights = {"w": normal(32, 64), "b": normal(64), "v": normal(64, 5), "c": normal(5)}
    return build("(float[N,32] x) => (float[N,5] y)", body, tail=tail, **weights)


def listed_weights() -> ir.Model:
    body, signature = (
        "y=Conv(x,w,b)",
        "(float[N,3,8,8] x, float[8,3,3,3] w, float[8] b) => (float[N,8,6,6] y)",
    )
    return build(signature, body, 8, 3, w=normal(8, 3, 3, 3), b=normal(8))


MODELS: dict[str, Callable[[], ir.Model]] = {
    "CNN": cnn,
    "MLP": mlp,
    "attention": attention,
    "LSTM": lstm,
    "If": branching,
    "functions": functions,
    "opset 9": lambda: cnn(9, 4),
    "initializers as inputs": listed_weights,
    "lone Relu": lambda: build("(float[N,4] x) => (float[N,4] y)", "y=Relu(x)"),
}
ROWS = {
    "CNN": (3, 8, 8),
    "attention": (7, 32),
    "LSTM": (6, 8),
    "opset 9": (3, 8, 8),
    "initializers as inputs": (3, 8, 8),
    "lone Relu": (4,),
}
every_pass = pytest.mark.parametrize("name", PASSES)
every_model = pytest.mark.parametrize("kind", MODELS)


def samples(kind: str, model: ir.Model) -> Samples:
    return open_samples({"x": normal(8, *ROWS.get(kind, (32,)))}, model)


@cache
def run(name: str, kind: str) -> Compressed:
    model = MODELS[kind]()
    data = samples(kind, model)
    context = Context(calibration=data, data=data, train=data, threads=1, seed=3)
    return Pipeline(find(name)()).run(model, context)


@every_pass
def test_is_frozen_final_and_named_after_its_file(name: str) -> None:
    cls = find(name)
    assert cls.name == name
    assert getattr(cls, "__final__", False), "put @final above the class"
    made = cls()
    for option in cls.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(made, option, None)


@every_pass
def test_documents_itself_and_every_option(name: str) -> None:
    cls = find(name)
    assert cls.__doc__
    assert cls.__doc__ != Pass.__doc__
    assert cls.__doc__.split("\n")[0].endswith(".")
    assert [f for f, field in cls.model_fields.items() if not field.description] == []


@every_pass
def test_its_text_is_read_back_as_the_same_pass(name: str) -> None:
    pipeline = Pipeline(find(name)())
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert Pipeline.parse(name) == pipeline


@every_pass
def test_decides_every_auto_for_each_provider(name: str) -> None:
    for provider in ("cpu", "cuda", "tensorrt"):
        resolved = find(name)().resolved(Context(provider=provider))
        assert resolved == resolved.resolved(Context(provider=provider))


@every_pass
def test_refuses_an_option_it_does_not_have_by_name(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}: no option 'no_such_option'"):
        find(name)(no_such_option=1)


@every_pass
def test_refuses_a_bad_value_by_option_name(name: str) -> None:
    for option in find(name).model_fields:
        with pytest.raises(OptionError, match=f"{name}: option '{option}' must be .*, got"):
            find(name)(**{option: object})


@every_pass
def test_refuses_an_unknown_operator_in_ops_by_name(name: str) -> None:
    cls = find(name)
    if "ops" not in cls.model_fields:
        return
    model = mlp()
    context = Context(calibration=samples("MLP", model), data=samples("MLP", model))
    with pytest.raises(OptionError, match=f"{name}: .*'Nonsense'"):
        Pipeline(cls(ops=("Nonsense",))).run(model, context)


@every_pass
@every_model
def test_leaves_the_input_untouched_byte_for_byte(name: str, kind: str) -> None:
    model = MODELS[kind]()
    before = to_bytes(model)
    data = samples(kind, model)
    Pipeline(find(name)()).run(model, Context(calibration=data, data=data, train=data, threads=1))
    assert to_bytes(model) == before


@every_pass
@every_model
def test_its_output_runs_and_is_valid(name: str, kind: str) -> None:
    model, result = MODELS[kind](), run(name, kind)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    feeds = next(iter(samples(kind, model).batches(8))).feeds
    expected = Session(model, Setup(threads=1)).run(feeds)
    got = Session(result.model, Setup(threads=1)).run(feeds)
    if find(name).reshapes:
        assert [a.shape[:1] for a in got] == [a.shape[:1] for a in expected]
    else:
        assert [a.shape for a in got] == [a.shape for a in expected]
    assert all(np.isfinite(a).all() for a in got)


@every_pass
@every_model
def test_keeps_inputs_and_outputs(name: str, kind: str) -> None:
    model, result = MODELS[kind](), run(name, kind)
    given = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    assert [
        (v.name, v.dtype) for v in result.model.graph.inputs if v.name not in result.model.graph.initializers
    ] == [(v.name, v.dtype) for v in given]
    outputs = [(v.name, v.dtype) for v in model.graph.outputs]
    assert [(v.name, v.dtype) for v in result.model.graph.outputs] == outputs


@every_pass
@every_model
def test_gives_the_same_bytes_twice(name: str, kind: str) -> None:
    model = MODELS[kind]()
    data = samples(kind, model)
    context = Context(calibration=data, data=data, train=data, threads=1, seed=3)
    again = Pipeline(find(name)()).run(model, context)
    assert to_bytes(again.model) == to_bytes(run(name, kind).model)


@every_pass
def test_another_seed_is_taken_and_the_result_still_runs(name: str) -> None:
    model = mlp()
    data = samples("MLP", model)
    context = Context(calibration=data, data=data, train=data, threads=1)
    result = Pipeline(find(name)()).run(model, replace(context, seed=11))
    Session(result.model, Setup(threads=1)).run(next(iter(data.batches(8))).feeds)


def own_change(made: Compressed) -> Change:
    """What the pass itself did: not the preparation before it, nor the storage behind it."""
    return next(change for change in made.changes if change.recipe == str(made.pipeline))


@every_pass
def test_says_why_when_there_is_nothing_to_do(name: str) -> None:
    change = own_change(run(name, "lone Relu"))
    assert change.touched == ()
    assert all(len(reason) > 8 for reason in change.declined.values())
    if find(name).prepared:
        assert change.declined, "declined must say why nothing was done"


@every_pass
@every_model
def test_reports_only_nodes_or_weights_and_stores_a_readable_recipe(name: str, kind: str) -> None:
    change = own_change(run(name, kind))
    assert not set(change.touched) & set(change.declined)
    assert len(set(change.touched)) == len(change.touched)
    assert Pipeline.parse(change.recipe) == run(name, kind).pipeline
