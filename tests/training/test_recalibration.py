"""New running statistics for BatchNormalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from compressor.errors import DataError
from compressor.torch_graph import to_torch, write_back
from compressor.training.recalibration import recalibrate
from tests.conftest import build, drawn

BODY = "c=Conv(x,w) n=BatchNormalization<momentum=0.7>(c,s,b,m,v) r=Relu(n) d=Dropout(r,half) e=Conv(d,u) "
BODY += "y=BatchNormalization(e,s2,b2,m2,v2)"


def weights() -> dict[str, np.ndarray]:
    norms = {
        k: np.abs(drawn(3, seed=i)) + 0.5 for i, k in enumerate(("s", "b", "m", "v", "s2", "b2", "m2", "v2"))
    }
    return {"w": drawn(3, 2, 2, 2), "u": drawn(3, 3, 2, 2, seed=1), "half": np.float32(0.5), **norms}


def model() -> ir.Model:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[N,2,4,4] x) => (float[N,3,2,2] y) {{ {BODY} }}'
    )
    return ir.from_proto(build(text, **weights()))


def batches() -> list[tuple[torch.Tensor]]:
    return [(torch.from_numpy(drawn(size, 2, 4, 4, seed=size)),) for size in (8, 5, 3)]


def same_in_torch() -> nn.Sequential:
    arrays = {name: torch.from_numpy(np.asarray(a)) for name, a in weights().items()}
    first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 2, bias=False), first, nn.ReLU(), nn.Conv2d(3, 3, 2, bias=False), second
    )
    with torch.no_grad():
        for parameter, name in (
            (module[0].weight, "w"),
            (module[3].weight, "u"),
            (first.weight, "s"),
            (first.bias, "b"),
        ):
            parameter.copy_(arrays[name])
    return module


def test_gives_what_torch_gives() -> None:
    module, reference = to_torch(model()), same_in_torch()
    torch.optim.swa_utils.update_bn(batches(), reference)
    assert recalibrate(module, batches()) == 2
    stored = write_back(module, model()).graph.initializers
    for name, norm in (("", reference[1]), ("2", reference[4])):
        np.testing.assert_allclose(
            stored[f"m{name}"].const_value.numpy(), norm.running_mean, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            stored[f"v{name}"].const_value.numpy(), norm.running_var, rtol=1e-5, atol=1e-6
        )


def test_twice_equals_once_and_nothing_else_changes() -> None:
    module = to_torch(model())
    recalibrate(module, batches())
    once = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    recalibrate(module, batches())
    before = to_torch(model()).state_dict()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, once[name])
        assert torch.equal(tensor, before[name]) == (name[0] not in "mv")


@pytest.mark.parametrize("training", [True, False])
def test_leaves_mode_and_momentum_as_they_were(training: bool) -> None:
    module = to_torch(model()).train(training)
    recalibrate(module, batches())
    assert {part.training for part in module.modules()} == {training}
    module.train()
    before = dict(module.named_buffers())["m"].clone()
    x = batches()[0][0]
    module(x)
    mean = nn.functional.conv2d(x, torch.from_numpy(weights()["w"])).mean((0, 2, 3))
    torch.testing.assert_close(dict(module.named_buffers())["m"], 0.7 * before + 0.3 * mean)


def test_without_batches_or_normalizations_nothing_is_done() -> None:
    module = to_torch(model())
    before = module.state_dict()["m"].clone()
    assert recalibrate(module, []) == 0
    assert torch.equal(module.state_dict()["m"], before)
    plain = build(
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float[N,4] x) => (float[N,4] y) { y=Relu(x) }'
    )
    assert recalibrate(to_torch(ir.from_proto(plain)), batches()) == 0


def test_a_batch_with_one_value_per_channel_is_refused_and_the_mode_comes_back() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[N,3] x) => (float[N,3] y) '
    text += "{ y=BatchNormalization(x,s,b,m,v) }"
    norm = {k: v for k, v in weights().items() if k in "sbmv"}
    module = to_torch(ir.from_proto(build(text, **norm)))
    with pytest.raises(DataError, match="cannot train on a batch with one value per channel"):
        recalibrate(module, [(torch.ones(1, 3),)])
    assert not any(part.training for part in module.modules())
