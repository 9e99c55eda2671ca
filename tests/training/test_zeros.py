"""Masks keep zeros at zero: in the forward pass, in the gradient, and through every optimizer."""

from __future__ import annotations

import torch
from torch import nn

from compressor.training.latent import LATENT
from compressor.training.zeros import keep_zeros


def layer(zeros: int, name: str = "weight") -> nn.Module:
    """A module with one weight of 4 x 5 whose first elements are zero."""
    module = nn.Module()
    weight = torch.arange(1.0, 21.0)
    weight[:zeros] = 0
    module.register_parameter(name, nn.Parameter(weight.reshape(4, 5)))
    return module


def test_masked_elements_have_no_gradient() -> None:
    module = layer(10)
    assert keep_zeros(module) == {"weight": 0.5}
    module.weight.sum().backward()
    gradient = module.parametrizations.weight.original.grad
    assert gradient.flatten().tolist() == [0] * 10 + [1] * 10


def test_masked_elements_stay_zero_with_weight_decay_and_momentum() -> None:
    module = layer(10)
    keep_zeros(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        module.weight.square().sum().backward()
        optimizer.step()
    assert (module.weight.flatten()[:10] == 0).all()
    assert (module.weight.flatten()[10:] != torch.arange(11.0, 21.0)).all()


def test_what_has_no_zeros_or_nothing_else_or_one_axis_is_left_alone() -> None:
    bias = nn.Module()
    bias.register_parameter("bias", nn.Parameter(torch.tensor([0.0, 1.0])))
    for module in (layer(0), layer(20), bias):
        assert keep_zeros(module) == {}


def test_a_latent_weight_counts_as_pruned_from_a_quarter_of_zeros_on() -> None:
    name = f"w{LATENT}"
    assert keep_zeros(layer(4, name)) == {}
    assert keep_zeros(layer(5, name)) == {name: 0.25}
