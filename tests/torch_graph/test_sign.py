"""The step of binary activations: its values, and the gradients of the papers."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from compressor.torch_graph.operators.sign import WINDOW, binarize

Gradient = Literal["approximate", "straight"]
GRADIENTS: tuple[Gradient, ...] = ("approximate", "straight")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(u: Tensor, gradient: Gradient) -> Tensor:
    """What the papers differentiate in place of the sign: equation 6 of 1808.00278, hard tanh of 1602.02830."""
    if gradient == "straight":
        return u.clamp(-1, 1)
    inner = torch.where(u < 0, 2 * u + u.square(), 2 * u - u.square())
    return torch.where(u.abs() < 1, inner, u.sign())


def slopes(x: Tensor, threshold: Tensor, scale: Tensor, gradient: Gradient, above: Tensor) -> list[Tensor]:
    """Gradients for x, threshold and scale of the sum of `above` * y."""
    given = [part.clone().requires_grad_() for part in (x, threshold, scale)]
    (above * binarize(*given, gradient=gradient)).sum().backward()
    return [part.grad for part in given]  # type: ignore[misc]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gives_the_scale_from_the_threshold_on_and_its_negative_below(gradient: Gradient) -> None:
    x = torch.tensor([[-1.0, 0.5], [0.0, 0.5 - 2**-24]])
    made = binarize(x, torch.tensor([0.0, 0.5]), torch.tensor(3.0), gradient=gradient)
    assert made.tolist() == [[-3.0, 3.0], [3.0, -3.0]]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_slope_is_that_of_the_curve_of_the_paper(gradient: Gradient) -> None:
    x, threshold, scale = drawn(50), torch.tensor(0.2).double(), torch.tensor(0.7).double()
    traced = x.clone().requires_grad_()
    (scale * smooth((traced - threshold) / (WINDOW * scale), gradient)).sum().backward()
    mine, _, _ = slopes(x, threshold, scale, gradient, torch.ones(50))
    torch.testing.assert_close(mine, traced.grad)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_nothing_passes_outside_of_the_window(gradient: Gradient) -> None:
    edge = 0.5 + WINDOW * 2.0
    x = torch.tensor([edge + 2**-10, 1 - edge - 2**-10, 0.5])
    mine, _, _ = slopes(x, torch.tensor(0.5), torch.tensor(2.0), gradient, torch.ones(3))
    assert (mine != 0).tolist() == [False, False, True]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_thresholds_and_the_scale_collect_over_what_they_are_for(gradient: Gradient) -> None:
    x, threshold, scale, above = (
        drawn(4, 3, 5, 5),
        drawn(3, 1, 1),
        torch.tensor(0.8).double(),
        drawn(4, 3, 5, 5, seed=1),
    )
    mine, of_threshold, of_scale = slopes(x, threshold, scale, gradient, above)
    torch.testing.assert_close(of_threshold, -mine.sum((0, 2, 3)).reshape(3, 1, 1))
    torch.testing.assert_close(of_scale, (above * torch.where(x >= threshold, 1.0, -1.0)).sum())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_window_grows_with_the_data(gradient: Gradient) -> None:
    x, threshold, scale, above = drawn(20, 3), drawn(3), torch.tensor(0.8).double(), drawn(20, 3, seed=1)
    wide = [100 * part for part in (x, threshold, scale)]
    for one, other in zip(
        slopes(x, threshold, scale, gradient, above), slopes(*wide, gradient, above), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_scale_of_one_axis_keeps_its_shape() -> None:
    _, _, of_scale = slopes(drawn(4), drawn(1), torch.ones(1).double(), "straight", torch.ones(4))
    assert of_scale.shape == (1,)
