"""BatchNormalization statistics that share an initializer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch, write_back
from compressor.torch_graph.own_statistics import separate
from tests.conftest import build


def shared() -> ir.Model:
    """BatchNormalization whose mean is the very zeros of its bias, and whose variance stands behind an Identity."""
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    agraph (float[N,2] x) => (float[N,2] y) {
        ones = Identity(one)
        y = BatchNormalization(x, one, zero, zero, ones)
    }
    """
    return ir.from_proto(build(text, one=np.ones(2, np.float32), zero=np.zeros(2, np.float32)))


def test_training_moves_them_apart_and_they_are_written_back() -> None:
    model = shared()
    module = to_torch(model).train()
    x = torch.randn(16, 2) + 3
    module(x).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.01).step()
    module.eval()
    got = Session(write_back(module, model), Setup(threads=1)).run({"x": x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(got, module(x).numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(got - x.numpy()).max() > 0.1


def test_statistics_of_their_own_stay_what_they_are() -> None:
    model = shared()
    assert len(separate(model)) == 2
    assert separate(model) == ()
