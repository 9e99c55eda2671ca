"""A loss that is NaN or explodes, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import parser
from torch import Tensor, fx, nn

from compressor.torch_graph import to_torch
from compressor.training.divergence import LossWatch, first_bad, first_bad_parameter


def checked(losses: Sequence[float]) -> str:
    """The first complaint about the losses of steps 1, 2, ..."""
    watch = LossWatch()
    said = (watch.check_loss(loss, step) for step, loss in enumerate(losses, 1))
    return next((text for text in said if text), "")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([2.0, float("nan")], "the loss is NaN at step 2"),
        ([float("inf")], "the loss is infinite at step 1"),
        ([2.0, 3.0, *[1e4] * 5], "the loss has exploded: 1e+04 at step 7, up to 3 at the start"),
        ([*[2.0] * 100, *[2.0 * 10**i for i in range(12)]], "the loss has exploded: 2e+08"),
    ],
)
def test_says_what_is_wrong_with_a_loss(losses: list[float], said: str) -> None:
    assert checked(losses).startswith(said)


@pytest.mark.parametrize(
    "losses",
    [
        [2.0] * 50,
        [1e-9, *[0.5] * 50],
        [5e6 - 1e4 * i for i in range(50)],
        [2.0, *[1e5, 2.0] * 20],
        [0.0] * 50,
        [-3.0] * 30,
    ],
    ids=["constant", "begins as the original", "large numbers", "single bad batches", "zero", "negative"],
)
def test_says_nothing_about_usual_losses(losses: list[float]) -> None:
    assert not checked(losses)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        hidden = self.norm(self.first(x))
        logs = torch.log(scale)
        masked = torch.softmax(torch.where(hidden > 100, hidden, -torch.inf).clamp_min(-1e30), 1)
        return masked + hidden - logs + logs * 0.5


def network() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Network())


GOOD = (torch.ones(2, 3), torch.ones(2, 1))


def test_names_the_input_and_the_sample() -> None:
    x = torch.ones(2, 3)
    x[1, 0] = float("nan")
    rows = torch.tensor([7, 19])
    assert first_bad(network(), (x, GOOD[1]), rows=rows) == "the input 'x' holds NaN in sample 19"
    assert first_bad(network(), (GOOD[0], x[:, :1] / 0)) == "the input 'scale' holds NaN"


def test_names_the_labels() -> None:
    labels = torch.tensor([1.0, float("inf")])
    assert first_bad(network(), GOOD, labels, torch.tensor([3, 4])) == "the labels hold infinity in sample 4"


def test_names_the_parameter_or_its_gradient() -> None:
    module = network()
    module.get_parameter("norm.bias").grad = torch.tensor([0.0, float("inf"), 0.0])
    assert first_bad(module, GOOD) == "the gradient of the parameter 'norm.bias' holds infinity"
    with torch.no_grad():
        module.get_parameter("first.weight")[0, 0] = float("nan")
    assert first_bad_parameter(module) == "the parameter 'first.weight' holds NaN"
    assert not first_bad_parameter(network())


def test_names_the_node_where_it_begins() -> None:
    said = first_bad(network(), (GOOD[0], torch.tensor([[1.0], [-1.0]])))
    assert said == "the value 'log' of node 'log' is the first that is not finite (NaN)"


def test_goes_back_from_the_nan_to_the_infinity_that_it_came_from() -> None:
    # log 0 is -inf, and -inf is subtracted from -inf / 2 further down
    said = first_bad(network(), (GOOD[0], torch.tensor([[1.0], [0.0]])))
    assert said == "the value 'log' of node 'log' is the first that is not finite (infinity)"


def test_infinities_that_vanish_again_are_no_fault() -> None:
    said = first_bad(network(), GOOD)
    assert said == "all values of the model are finite, so that the loss itself is not"


def test_an_infinite_output_without_nan_is_found() -> None:
    module = fx.symbolic_trace(lambda x: (x + 1).exp())
    said = first_bad(module, (torch.full((2, 2), 500.0),))
    assert said == "the value 'exp' of node 'exp' is the first that is not finite (infinity)"


def test_the_node_has_the_name_that_the_file_gives_it() -> None:
    module = fx.symbolic_trace(lambda x: x.log())
    next(n for n in module.graph.nodes if n.name == "log").meta["onnx"] = "/head/Log"
    assert "of node '/head/Log' is" in first_bad(module, (-torch.ones(2),))


def test_looking_does_not_move_the_batch_statistics() -> None:
    module = network().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first_bad(module, (torch.randn(2, 3), -GOOD[1]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_names_the_node_of_the_file() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x, float[N, 1] s) => (float[N, 3] y)
    { a = MatMul(x, w) b = Log(s) y = Add(a, b) }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32), "w"))
    for node in proto.graph.node:
        node.name = f"/head/{node.op_type}"
    module = to_torch(ir.from_proto(proto))
    said = first_bad(module, (torch.ones(2, 3), torch.tensor([[1.0], [-1.0]])))
    assert said.endswith("of node '/head/Log' is the first that is not finite (NaN)")
    assert first_bad(module, (torch.full((2, 3), torch.nan), torch.ones(2, 1))) == "the input 'x' holds NaN"
