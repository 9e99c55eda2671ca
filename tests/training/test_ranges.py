"""Scales that are learned by their logarithm."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from compressor.torch_graph.writing import NAMES
from compressor.training.ranges import learn_relatively


def network(scale: float) -> fx.GraphModule:
    """x times a scale."""
    module = nn.Module()
    module.register_parameter("s", nn.Parameter(torch.tensor(scale)))
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.mul, (x, graph.get_attr("s"))))
    made = fx.GraphModule(module, graph)
    made.meta[NAMES] = {"scale": "s"}
    return made


@pytest.mark.parametrize("scale", [1e-6, 0.3, 1e6])
def test_a_scale_that_was_not_trained_is_bit_identical(scale: float) -> None:
    module = network(scale)
    learn_relatively(module, ["scale"])
    assert module.s.item() == torch.tensor(scale).item()


@pytest.mark.parametrize("scale", [1e-6, 0.3, 1e6])
def test_a_step_of_adam_changes_a_scale_by_a_share_of_itself(scale: float) -> None:
    module = network(scale)
    learn_relatively(module, ["scale"])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.tensor(1.0)).backward()
    optimizer.step()
    assert module.s.item() == pytest.approx(scale * 2.718281828**-0.1, rel=1e-2)


def test_the_gradient_is_the_scale_times_that_of_the_scale() -> None:
    module = network(3.0)
    learn_relatively(module, ["scale"])
    module(torch.tensor(5.0)).backward()
    assert module.parametrizations.s.original.grad.item() == pytest.approx(15)


def test_a_scale_can_be_set() -> None:
    module = network(3.0)
    learn_relatively(module, ["scale"])
    module.s = torch.tensor(6.0)
    assert module.s.item() == pytest.approx(6)
