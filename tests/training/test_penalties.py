"""Penalties, the max-norm constraint and elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from compressor.errors import DataError
from compressor.torch_graph import to_torch
from compressor.training.penalties import ewc, fisher, l1, l2, max_norm_, penalized


def network() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))


class Mask(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def test_only_trainable_weights_of_two_axes_are_penalized() -> None:
    module = network()
    module.get_parameter("3.weight").requires_grad_(False)
    assert [id(p) for p in penalized(module)] == [id(module.get_parameter("0.weight"))]


def test_l1_pulls_by_the_sign_and_l2_by_the_weight() -> None:
    weight = torch.tensor([[1.5, -2.0, 0.0]], requires_grad=True)
    assert torch.equal(torch.autograd.grad(l1([weight]), weight)[0], weight.sign())
    assert torch.equal(torch.autograd.grad(l2([weight]), weight)[0], weight)
    assert l1([]) == l2([]) == 0


def test_max_norm_cuts_long_channels_and_leaves_the_others() -> None:
    module = network()
    with torch.no_grad():
        module.get_parameter("0.weight")[:4] *= 100
    before = module.get_parameter("0.weight").clone()
    max_norm_(module, {"0.weight": 0}, 2.0)
    after = module.get_parameter("0.weight")
    norms = after.norm(dim=1)
    assert torch.allclose(norms[:4], torch.full((4,), 2.0))
    assert torch.equal(after[4:], before[4:])
    assert torch.allclose(functional.cosine_similarity(after, before), torch.ones(8))


def test_max_norm_takes_the_axis_that_it_is_given() -> None:
    module = network()
    max_norm_(module, {"3.weight": -1}, 0.1)
    assert torch.allclose(module.get_parameter("3.weight").norm(dim=0), torch.full((8,), 0.1))


def test_max_norm_does_not_count_what_a_mask_removes() -> None:
    module = network()
    mask = torch.ones(8, 4)
    mask[:, 2:] = 0
    layer = module.get_submodule("0")
    with torch.no_grad():
        layer.weight[:, 2:] = 100.0
        layer.weight[:, :2] = torch.tensor([0.3, 0.4])
        layer.weight[0, :2] = torch.tensor([3.0, 4.0])
    parametrize.register_parametrization(layer, "weight", Mask(mask))
    max_norm_(module, {"0.weight": 0}, 1.0)
    assert torch.allclose(layer.weight[0, :2], torch.tensor([0.6, 0.8]))
    assert torch.allclose(layer.weight[1, :2], torch.tensor([0.3, 0.4]))


def loss(outputs: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    assert labels is not None
    return functional.cross_entropy(outputs[0], labels)


def test_fisher_is_the_mean_square_of_each_samples_gradient() -> None:
    module, x, y = network(), torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    found = fisher(module, loss, [((x[:3],), y[:3]), ((x[3:],), y[3:])], samples=4)
    module.eval()
    for name, parameter in module.named_parameters():
        each = [
            torch.autograd.grad(loss([module(x[i : i + 1])], y[i : i + 1]), parameter)[0] for i in range(4)
        ]
        assert torch.allclose(found[name], torch.stack(each).square().mean(0), atol=1e-8)


def test_fisher_leaves_the_module_as_it_was() -> None:
    module = network().train()
    module.get_submodule("1").eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fisher(module, loss, [((torch.randn(2, 4),), torch.tensor([0, 1]))], samples=9)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert module.training
    assert not module.get_submodule("1").training
    assert all(p.grad is None for p in module.parameters())


def test_a_fixed_batch_is_filled_with_the_same_sample() -> None:
    module, data = network(), [((torch.randn(3, 4),), torch.tensor([0, 1, 2]))]
    one, many = (fisher(module, loss, data, samples=3, batch=batch) for batch in (1, 4))
    assert all(torch.allclose(one[name], many[name], atol=1e-7) for name in one)


def test_fisher_is_zero_for_parameters_that_the_loss_does_not_reach() -> None:
    module = network()
    found = fisher(module, lambda o, _: o[0][:, 0].sum(), [((torch.randn(2, 4),), None)], samples=2)
    assert not found["3.bias"][1:].any()
    assert found["3.bias"][0] == 1


def test_says_that_there_is_no_old_data() -> None:
    with pytest.raises(DataError, match="ewc needs samples of the old data"):
        fisher(network(), loss, [], samples=5)


def test_fisher_puts_the_mode_back_when_the_loss_raises() -> None:
    module = network().train()

    def broken(outputs: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        fisher(module, broken, [((torch.randn(2, 4),), None)], samples=1)
    assert module.training


def test_ewc_holds_what_the_old_data_needs() -> None:
    anchor = {"a": torch.zeros(2), "b": torch.zeros(1)}
    weights = {
        "a": torch.tensor([1.0, 2.0], requires_grad=True),
        "b": torch.tensor([5.0], requires_grad=True),
    }
    term = ewc(weights, anchor, {"a": torch.tensor([3.0, 0.5])})
    assert term.item() == (3 * 1 + 0.5 * 4) / 2
    assert torch.equal(torch.autograd.grad(term, weights["a"])[0], torch.tensor([3.0, 1.0]))
    assert ewc(anchor, anchor, {"a": torch.ones(2)}) == 0


def test_max_norm_acts_on_an_imported_graph(tiny_mlp: ir.Model) -> None:
    module = to_torch(tiny_mlp)
    max_norm_(module, {"w1": 1, "w2": 1}, 0.5)
    for name in ("w1", "w2"):
        assert (module.get_parameter(name).norm(dim=0) < 0.5 + 1e-6).all()
