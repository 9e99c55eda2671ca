"""What needs an NVIDIA GPU: the CUDA provider, for real."""

import numpy as np
import onnx_ir as ir
import pytest

from compressor.errors import OptionError
from compressor.latency import Protocol, measure
from compressor.runtime import Session, Setup, available


def cuda_refusal() -> str:
    """Why CUDA cannot be used here; empty when it can."""
    if "cuda" not in available():
        return "this onnxruntime was built without CUDA"
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    add = ir.node("Add", [x, x])
    add.outputs[0].name, add.outputs[0].type, add.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], add.outputs, nodes=[add], opset_imports={"": 13}, name="tiny")
    try:
        Session(ir.Model(graph, ir_version=8), Setup(provider="cuda"))
    except OptionError as error:
        return f"no usable CUDA device: {str(error)[:80]}"
    return ""


REFUSAL = cuda_refusal()
needs_cuda = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL or "CUDA works")


@needs_cuda
def test_cuda_agrees_with_the_cpu(tiny_cnn: ir.Model) -> None:
    name = str(tiny_cnn.graph.inputs[0].name)
    shape = [d if isinstance(d, int) else 2 for d in tiny_cnn.graph.inputs[0].shape or ()]
    feeds = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    on_cpu = Session(tiny_cnn).run(feeds)[0]
    on_cuda = Session(tiny_cnn, Setup(provider="cuda")).run(feeds)[0]
    # TF32 keeps 10 bits of mantissa: 2^-10 of the largest value, a few times over for the sums
    np.testing.assert_allclose(on_cuda, on_cpu, atol=4e-3 * float(np.abs(on_cpu).max()))


@needs_cuda
def test_latency_is_measured_on_the_device_by_wall_time(tiny_cnn: ir.Model) -> None:
    name = str(tiny_cnn.graph.inputs[0].name)
    shape = [d if isinstance(d, int) else 1 for d in tiny_cnn.graph.inputs[0].shape or ()]
    feeds = {name: np.zeros(shape, np.float32)}
    quick = Protocol(visits=5, visit_ms=1.0, sessions=1, warmup=1)
    timed = measure([tiny_cnn, tiny_cnn], feeds, Setup(provider="cuda"), quick)
    assert (timed.provider, timed.ratios[0].clock) == ("cuda", "wall")


def test_the_provider_is_refused_in_words_where_it_does_not_load(tiny_cnn: ir.Model) -> None:
    if not REFUSAL:
        assert Session(tiny_cnn, Setup(provider="cuda")).inputs
        return
    with pytest.raises(OptionError, match="Provider 'cuda'"):
        Session(tiny_cnn, Setup(provider="cuda"))
