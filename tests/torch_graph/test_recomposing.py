"""Spelled-out LayerNormalization and GELU: found, equal to onnxruntime, left alone where they are something else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import fx

from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch, write_back
from tests.conftest import build, drawn

FLOAT32 = 1e-6
"""Relative and absolute: a handful of float32 operations, in another order."""

BEGIN = """
<ir_version: 8, opset_import: ["" : 13]>
g (float[N, 3, 4] x) => (float[N, 3, 4] y)
<float root2 = {1.41421354}, float inverse = {0.70710677}, float half = {0.5}, float one = {1.0}, float two = {2.0},
 float epsilon = {0.00001}>
{
"""
GELUS = {
    "x (1 + erf) first": "d = Div(x, root2) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "(1 + erf) / 2 first": "d = Div(x, root2) e = Erf(d) a = Add(one, e) m = Mul(half, a) y = Mul(m, x)",
    "x / 2 first": "h = Mul(x, half) d = Mul(inverse, x) e = Erf(d) a = Add(e, one) y = Mul(h, a)",
    "x / 2 by division": "h = Div(x, two) d = Mul(x, inverse) e = Erf(d) a = Add(e, one) y = Mul(a, h)",
}
NOT_GELUS = {
    "erf of x": "e = Erf(x) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "of another scale": "d = Div(x, two) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "plus two": "d = Div(x, root2) e = Erf(d) a = Add(e, two) m = Mul(x, a) y = Mul(m, half)",
    "not halved": "d = Div(x, root2) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, two)",
    "times another value": "r = Relu(x) d = Div(x, root2) e = Erf(d) a = Add(e, one) m = Mul(r, a) y = Mul(m, half)",
}
MEAN = "m = ReduceMean<axes = [-1]>(x) c = Sub(x, m) "
REST = "v = ReduceMean<axes = [2]>(s) t = Add(v, epsilon) r = Sqrt(t) n = Div(c, r) w = Mul(n, scale) y = Add(w, bias)"
NORMS = {
    "by Pow": MEAN + "s = Pow(c, two) " + REST,
    "by Mul": MEAN + "s = Mul(c, c) " + REST.replace("Add(v, epsilon)", "Add(epsilon, v)"),
    "centred twice": MEAN + "b = Sub(x, m) s = Pow(b, two) " + REST.replace("Mul(n, scale)", "Mul(scale, n)"),
}
NOT_NORMS = {
    "over another axis": MEAN.replace("-1", "1") + "s = Pow(c, two) " + REST.replace("[2]", "[1]"),
    "cubed": MEAN + "s = Pow(c, one) u = Mul(s, x) " + REST.replace("(s)", "(u)"),
    "divided by the variance": MEAN
    + "s = Pow(c, two) v = ReduceMean<axes = [2]>(s) t = Add(v, epsilon) r = Sqrt(t) n = Div(r, t) w = Mul(n, scale) "
    "y = Add(w, bias)",
    "uncentred": MEAN + "s = Pow(x, two) " + REST,
}


def model_of(body: str) -> ir.Model:
    weights = {"scale": drawn(4), "bias": drawn(4, seed=1)} if "scale" in body else {}
    return ir.from_proto(build(BEGIN + body + "\n}", **weights))


def kernels(module: fx.GraphModule) -> list[str]:
    return [node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]


def assert_same_as_onnxruntime(model: ir.Model, module: fx.GraphModule) -> None:
    x = 3 * drawn(2, 3, 4, seed=2) + 1
    (expected,) = Session(model, Setup(threads=1, optimize=False)).run({"x": x})
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("body", GELUS.values(), ids=GELUS)
def test_gelu_is_one_kernel_whatever_is_multiplied_first(body: str) -> None:
    model = model_of(body)
    module = to_torch(model)
    assert kernels(module) == ["gelu"]
    assert_same_as_onnxruntime(model, module)


@pytest.mark.parametrize("body", NORMS.values(), ids=NORMS)
def test_layer_normalization_is_one_kernel_with_the_same_weights(body: str) -> None:
    model = model_of(body)
    module = to_torch(model)
    assert kernels(module) == ["layer_normalization"]
    assert [name for name, _ in module.named_parameters()] == ["scale", "bias"]
    assert_same_as_onnxruntime(model, module)


@pytest.mark.parametrize("body", [*NOT_GELUS.values(), *NOT_NORMS.values()], ids=[*NOT_GELUS, *NOT_NORMS])
def test_what_only_looks_alike_stays_as_it_is(body: str) -> None:
    model = model_of(body)
    module = to_torch(model)
    assert not {"gelu", "layer_normalization"} & set(kernels(module))
    assert_same_as_onnxruntime(model, module)


def test_a_value_inside_that_is_an_output_is_still_given() -> None:
    model = model_of(GELUS["x (1 + erf) first"])
    inside = next(node for node in model.graph if node.op_type == "Erf").outputs[0]
    model.graph.outputs.append(inside)
    module, x = to_torch(model), torch.from_numpy(drawn(2, 3, 4))
    with torch.no_grad():
        y, erf = module(x)
    torch.testing.assert_close(y, torch.nn.functional.gelu(x))
    torch.testing.assert_close(erf, torch.erf(x / 2**0.5))


def test_trained_weights_reach_the_file_whose_operators_stay() -> None:
    model = model_of(NORMS["by Pow"])
    module = to_torch(model)
    with torch.no_grad():
        module.scale.mul_(2)
        module.bias.add_(1)
    trained = write_back(module, model)
    assert [node.op_type for node in trained.graph] == [node.op_type for node in model.graph]
    assert_same_as_onnxruntime(trained, module)
