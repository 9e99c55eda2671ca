"""Scales that are learned by their logarithm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import fx, nn

from compressor.torch_graph.writing import NAMES
from compressor.training.ranges import largest_scales, learn_relatively
from tests.training.trained import made


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
    learn_relatively(module, {"scale": math.inf})
    assert module.s.item() == torch.tensor(scale).item()


@pytest.mark.parametrize("scale", [1e-6, 0.3, 1e6])
def test_a_step_of_adam_changes_a_scale_by_a_share_of_itself(scale: float) -> None:
    module = network(scale)
    learn_relatively(module, {"scale": math.inf})
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.tensor(1.0)).backward()
    optimizer.step()
    assert module.s.item() == pytest.approx(scale * 2.718281828**-0.1, rel=1e-2)


def test_the_gradient_is_the_scale_times_that_of_the_scale() -> None:
    module = network(3.0)
    learn_relatively(module, {"scale": math.inf})
    module(torch.tensor(5.0)).backward()
    assert module.parametrizations.s.original.grad.item() == pytest.approx(15)


def test_a_scale_can_be_set() -> None:
    module = network(3.0)
    learn_relatively(module, {"scale": math.inf})
    module.s = torch.tensor(6.0)
    assert module.s.item() == pytest.approx(6)


def test_a_scale_does_not_grow_beyond_its_limit_and_comes_back_from_it() -> None:
    module = network(3.0)
    learn_relatively(module, {"scale": 3.5})
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    seen = []
    for sign in (-1, -1, -1, 1, 1):
        optimizer.zero_grad()
        (sign * module(torch.tensor(1.0))).backward()
        optimizer.step()
        seen.append(module.s.item())
    assert seen[1:3] == [3.5, 3.5]
    assert seen[4] < 3.5


def limits(clip: str, zero: np.ndarray, scale: float = 0.01, **bounds: float) -> dict[str, float]:
    body = f"c = {clip} q = QuantizeLinear(c, s, z) y = DequantizeLinear(q, s, z)"
    arrays = {name: np.float32(bound) for name, bound in bounds.items()}
    return largest_scales(
        made(f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}", s=np.float32(scale), z=zero, **arrays)
    )


def test_no_code_comes_to_lie_beyond_a_clip() -> None:
    relu6 = limits("Clip(x, low, high)", np.uint8(0), low=0, high=6)["s"]
    assert 6 - 1e-5 < relu6 * 255 <= 6
    assert limits("Clip(x, low, high)", np.int8(-128), low=0, high=6)["s"] == relu6
    assert limits("Clip(x, low, high)", np.uint8(55), low=-1, high=6)["s"] == pytest.approx(1 / 55)
    assert limits("Clip(x, , high)", np.uint8(0), high=6)["s"] == relu6


@pytest.mark.parametrize(
    ("clip", "scale", "bounds"),
    [
        ("Relu(x)", 0.01, {}),
        ("Clip(x)", 0.01, {}),
        ("Clip(x, low)", 0.01, {"low": 0}),
        ("Clip(x, low, high)", 0.1, {"low": 0, "high": 6}),
    ],
    ids=["no Clip", "no bounds", "the lowest code is the bound", "codes lie beyond it already"],
)
def test_other_scales_may_grow_without_end(clip: str, scale: float, bounds: dict[str, float]) -> None:
    assert limits(clip, np.uint8(0), scale, **bounds) == {"s": math.inf}
