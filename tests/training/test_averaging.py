"""Averages of the weights."""

from __future__ import annotations

import io
from itertools import pairwise

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compressor.torch_graph import to_torch
from compressor.training.averaging import Average


class Mask(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def network() -> fx.GraphModule:
    torch.manual_seed(0)
    module = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    mask = torch.tensor([[1.0, 0.0]] * 3)
    parametrize.register_parametrization(module.get_submodule("0"), "weight", Mask(mask))
    return module


def steps(module: nn.Module, average: Average, count: int) -> list[dict[str, Tensor]]:
    """Random weights `count` times, taken in each time; what they were."""
    seen = []
    for _ in range(count):
        with torch.no_grad():
            for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
                tensor.copy_(torch.randn(tensor.shape))
        average.update(module)
        seen.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return seen


@pytest.mark.parametrize("decay", [None, 0.9, 0.0])
def test_is_the_weighted_mean_of_all_steps(decay: float | None) -> None:
    module, average = network(), Average(decay)
    seen = steps(module, average, 6)
    weights = torch.tensor([1.0 if decay is None else decay ** (5 - i) for i in range(6)])
    weights /= weights.sum()
    average.apply_to(module)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            want = sum(w * s[name] for w, s in zip(weights, seen, strict=True))
            assert torch.allclose(tensor, want, atol=1e-6), name


def test_ema_begins_at_the_first_weights() -> None:
    module, average = network(), Average(0.999)
    (first,) = steps(module, average, 1)
    nn.init.zeros_(module.get_parameter("0.bias"))
    average.apply_to(module)
    assert torch.equal(module.get_parameter("0.bias"), first["0.bias"])


def test_ema_of_weights_that_stand_still_is_them_and_forgets_where_they_came_from() -> None:
    module, average = network(), Average(0.5)
    steps(module, average, 3)
    target, distances = module.get_parameter("0.bias").clone(), []
    for _ in range(5):
        average.update(module)
        with average.applied(module):
            distances.append(float((module.get_parameter("0.bias") - target).detach().norm()))
    assert all(later < earlier for earlier, later in pairwise(distances))


def test_the_module_gets_its_own_weights_back_even_after_an_error() -> None:
    module, average = network(), Average(None)
    last = steps(module, average, 3)[-1]

    def fail() -> None:
        with average.applied(module):
            assert not torch.equal(module.get_parameter("0.bias"), last["0.bias"])
            raise KeyError("evaluation")

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(tensor, last[name]) for name, tensor in module.state_dict().items())


def test_masked_weights_stay_zero_and_counters_are_left_alone() -> None:
    module, average = network(), Average(None)
    module.get_submodule("0").parametrizations.weight[0].mask.copy_(torch.tensor([[1.0, 0.0]] * 3))
    module.get_buffer("1.num_batches_tracked").fill_(7)
    for _ in range(3):
        nn.init.normal_(module.get_submodule("0").parametrizations.weight.original)
        average.update(module)
    average.apply_to(module)
    assert not module.get_submodule("0").weight[:, 1].any()
    assert module.get_buffer("1.num_batches_tracked") == 7


def test_nothing_changes_before_the_first_update() -> None:
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    Average(0.9).apply_to(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_small_steps_are_not_lost_in_half_precision() -> None:
    module, average = nn.Linear(1, 1, bias=False).bfloat16(), Average(0.999)
    nn.init.ones_(module.weight)
    average.update(module)
    nn.init.constant_(module.weight, 2.0)
    for _ in range(999):
        average.update(module)
    average.apply_to(module)
    # the first of 1000 weights decays to 0.999^999 (1 - 0.999) / (1 - 0.999^1000) = 0.00058
    assert module.weight.item() == 2.0


@pytest.mark.parametrize("decay", [None, 0.9])
def test_goes_on_from_a_checkpoint_as_if_never_stopped(decay: float | None) -> None:
    module, average = network(), Average(decay)
    steps(module, average, 3)
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    resumed = Average(0.5)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for each in (average, resumed):
        torch.manual_seed(5)
        steps(module, each, 2)
        each.apply_to(module)
        if each is average:
            want = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert all(torch.equal(tensor, want[name]) for name, tensor in module.state_dict().items())


def test_a_foreign_state_is_refused() -> None:
    with pytest.raises(TypeError, match="not the state of an Average"):
        Average(None).load_state_dict({"decay": None, "updates": "3", "means": {}})


def test_averages_an_imported_graph_with_a_parametrized_weight(tiny_mlp: ir.Model) -> None:
    module, average = to_torch(tiny_mlp), Average(None)
    parametrize.register_parametrization(module, "w1", Mask(torch.eye(4, 8)))
    weights = []
    for value in (1.0, 3.0):
        nn.init.constant_(module.get_parameter("b2"), value)
        nn.init.constant_(module.get_parameter("parametrizations.w1.original"), value)
        average.update(module)
        weights.append(module.get_parameter("b2").clone())
    with average.applied(module):
        assert torch.equal(module.get_parameter("b2"), torch.full((3,), 2.0))
        assert torch.equal(module.w1, 2 * torch.eye(4, 8))
    assert torch.equal(module.get_parameter("b2"), weights[-1])
