"""Scales of quantizers that training can move: their logarithm is what the optimizer changes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compressor.torch_graph.writing import NAMES


class Relative(nn.Module):
    """s = s0 exp(t), ds/dt = s, with t = 0 at the start.

    A scale then stays above 0, and a step changes it by a share of itself whatever its size: Jain et al. 2020
    (arXiv:1903.08066, section 3.2), on top of LSQ's gradient (arXiv:1902.08153).
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start)

    def forward(self, exponent: Tensor) -> Tensor:
        """The scale."""
        return self.start * exponent.exp()  # type: ignore[operator]

    def right_inverse(self, scale: Tensor) -> Tensor:
        """The exponent of a scale."""
        return torch.log(scale / self.start)  # type: ignore[operator]


def learn_relatively(network: fx.GraphModule, scales: Iterable[str]) -> None:
    """Let the scales, which are named as in the file, be trained by their logarithms."""
    for path in dict.fromkeys(network.meta[NAMES][name] for name in scales):
        folder, _, leaf = path.rpartition(".")
        home = network.get_submodule(folder)
        start = home.get_parameter(leaf).detach().clone()
        parametrize.register_parametrization(home, leaf, Relative(start))
