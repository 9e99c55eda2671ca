from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compressor import Context, OptionError, Pipeline, open_samples
from compressor.errors import DataError, ModelError
from compressor.prepare import prepare
from compressor.pruning.blocks import blocks, influence, leave_out
from compressor.runtime import Session, Setup
from passes.prune_layers import PruneLayers
from tests.conftest import build, drawn

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
BRANCHES = (
    HEADER
    + """ g (float[N, 6] x) => (float[N, 6] y) {
    a1 = MatMul(x, w1)
    a2 = Relu(a1)
    a = Add(x, a2)
    b1 = MatMul(a, w2)
    b = Add(b1, a)
    c1 = MatMul(b, w3)
    y = Add(b, c1)
}"""
)
PROJECTED = (
    HEADER
    + """ g (float[N, 4] x) => (float[N, 6] y) {
    s = MatMul(x, ws)
    f = MatMul(x, wf)
    y = Add(s, f)
}"""
)
ATTENTION = """
    {o}s = MatMul({i}, {o}q)
    {o}p = Softmax <axis = -1> ({o}s)
    {o}a = MatMul({o}p, {o}v)
    {o}r = Add({i}, {o}a)
    {o}n = {norm}({o}r{scale})
    {o}m = MatMul({o}n, {o}f)
    {o}t = Add({o}{skip}, {o}m)
    {o} = {norm}({o}t{scale})
"""


def residual() -> ir.Model:
    """Three branches of 6 channels; the second multiplies by 0.01, the others by much."""
    return ir.from_proto(
        build(BRANCHES, w1=drawn(6, 6), w2=0.01 * drawn(6, 6, seed=1), w3=drawn(6, 6, seed=2))
    )


def transformer(norm: bool) -> ir.Model:
    """Two blocks of attention and MLP, 6 channels; post-norm or without norms."""
    form = {"norm": "LayerNormalization <axis = -1>" if norm else "Identity", "scale": ", g" if norm else ""}
    body = "e = LayerNormalization <axis = -1> (x, g)" if norm else "e = Identity(x)"
    body += ATTENTION.format(i="e", o="k", skip="n" if norm else "r", **form)
    body += ATTENTION.format(i="k", o="l", skip="n" if norm else "r", **form)
    text = HEADER + " g (float[N, 3, 6] x) => (float[N, 3, 6] y) {" + body + "y = Identity(l)}"
    names = [a + b for a in "kl" for b in "qvf"]
    weights = {name: 0.3 * drawn(6, 6, seed=seed) for seed, name in enumerate(names)}
    return prepare(ir.from_proto(build(text, g=np.ones(6, np.float32), **weights))).model


def context(model: ir.Model, *shape: int) -> Context:
    return Context(calibration=open_samples({"x": drawn(16, *shape, seed=9)}, model, "calibration"))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(Session(model, Setup()).run({"x": x})[0])


def test_finds_branches_whichever_side_the_skip_is_on() -> None:
    found, declined = blocks(residual(), "branch")
    assert [(b.source.name, b.target.name, b.parameters) for b in found] == [
        ("x", "a", 36),
        ("a", "b", 36),
        ("b", "y", 36),
    ]
    assert declined == {}


def test_a_projection_is_no_skip() -> None:
    model = ir.from_proto(build(PROJECTED, ws=drawn(4, 6), wf=drawn(4, 6)))
    found, declined = blocks(model, "branch")
    assert found == []
    assert "its skip is no identity" in next(iter(declined.values()))


@pytest.mark.parametrize("norm", [True, False])
def test_a_transformer_block_is_attention_and_what_follows(norm: bool) -> None:
    model = transformer(norm)
    assert len(blocks(model, "branch")[0]) == 4
    found = blocks(model, "block")[0]
    assert [b.parameters for b in found] == [108, 108]
    assert found[1].source is found[0].target
    if norm:
        assert found[0].target.producer().op_type == "LayerNormalization"


def test_leaving_out_is_the_skip_alone() -> None:
    model = residual()
    x = drawn(5, 6)
    expected = x + np.maximum(x @ drawn(6, 6), 0)
    for place in (1, 1):
        leave_out(model, blocks(model, "branch")[0][place])
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5)
    assert [value.name for value in model.graph.outputs] == ["y"]
    onnx.checker.check_model(ir.to_proto(model))


def test_influence_is_one_minus_the_mean_cosine() -> None:
    model = residual()
    samples = context(model, 6).calibration
    assert samples is not None
    found = blocks(model, "branch")[0]
    x = drawn(16, 6, seed=9)
    after = x + np.maximum(x @ drawn(6, 6), 0)
    cosine = (x * after).sum(1) / np.sqrt((x * x).sum(1) * (after * after).sum(1))
    made = influence(model, found, samples)
    assert made[found[0]] == pytest.approx(1 - cosine.mean(), abs=1e-6)


@pytest.mark.parametrize("importance", ["influence", "output"])
def test_the_branch_that_does_least_goes_first(importance: str) -> None:
    model = prepare(residual()).model
    middle = blocks(model, "branch")[0][1].name
    made = Pipeline(PruneLayers(count=1, unit="branch", importance=importance)).run(model, context(model, 6))
    assert made.changes[-1].touched == (middle,)
    assert made.changes[-1].figures["parameters left out"] == 36
    x = drawn(5, 6)
    assert run(made.model, x).shape == (5, 6)
    assert sum(node.op_type == "MatMul" for node in made.model.graph) == 2


def test_one_always_stays_and_the_report_says_so() -> None:
    model = residual()
    made = Pipeline(PruneLayers(count=5, unit="branch")).run(model, context(model, 6)).changes[-1]
    assert len(made.touched) == 2
    assert made.figures["not reached"] == "5 asked for; 2 of 3 may go, one always stays"


def test_ratio_is_a_share_of_what_was_found() -> None:
    model = transformer(norm=True)
    made = Pipeline(PruneLayers(ratio=0.5)).run(model, context(model, 3, 6))
    assert made.changes[-1].figures["blocks left out"] == 1
    assert sum(node.op_type == "Softmax" for node in made.model.graph) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exclude": "*"}, "every branch is excluded"),
        ({"include": "nothing"}, "every branch is excluded"),
        ({"ratio": 0.0}, "nothing to leave out"),
    ],
)
def test_declines_when_nothing_may_go(options: dict[str, object], reason: str) -> None:
    model = residual()
    made = Pipeline(PruneLayers(unit="branch", **options)).run(model, context(model, 6))
    assert reason in made.changes[-1].declined["model"]


def test_declines_a_model_without_branches(tiny_mlp: ir.Model) -> None:
    samples = open_samples({"x": drawn(4, 4)}, tiny_mlp, "calibration")
    made = Pipeline(PruneLayers()).run(tiny_mlp, Context(calibration=samples))
    assert made.changes[-1].declined["model"] == "no residual branch: nothing goes round a layer"


def test_a_skip_of_another_shape_stays() -> None:
    text = HEADER + " g (float[1, 6] x) => (float[N, 6] y) { f = MatMul(x, w) t = Add(f, b) y = Add(x, t) }"
    model = ir.from_proto(build(text, w=drawn(6, 6), b=drawn(5, 6)))
    made = Pipeline(PruneLayers(unit="branch")).run(
        model, Context(calibration=open_samples({"x": drawn(3, 6)}, model, "c"))
    )
    assert made.changes[-1].touched == ()
    assert "the skip" in str(made.changes[-1].declined)


def test_needs_samples_and_a_ratio_below_one() -> None:
    with pytest.raises(DataError, match="needs calibration samples"):
        Pipeline(PruneLayers()).run(residual(), Context())
    with pytest.raises(OptionError, match="'ratio' must be less than 1"):
        PruneLayers(ratio=1.0)


@pytest.mark.parametrize("importance", ["influence", "output"])
def test_refuses_a_stream_that_is_not_finite_by_the_name_of_the_block(importance: str) -> None:
    text = BRANCHES.replace("] x)", "] x0)").replace("a1 =", "x = Div(x0, none) a1 =")
    weights = {f"w{n}": drawn(6, 6, seed=n) for n in (1, 2, 3)}
    model = ir.from_proto(build(text, none=np.zeros((), np.float32), **weights))
    samples = open_samples({"x0": drawn(3, 6)}, model, "calibration")
    with pytest.raises(
        ModelError, match=r"what flows round block '.*' becomes NaN or infinite on the samples"
    ):
        Pipeline(PruneLayers(unit="branch", importance=importance)).run(model, Context(calibration=samples))
