"""Weights that an earlier pass set to zero stay zero: a mask as a torch parametrization."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compressor.training.latent import LATENT

_PRUNED = 0.25
_PARAMETRIZED = "parametrizations"
"""The folder in which torch keeps what parametrized weights are made of."""


class Mask(nn.Module):
    """w' = m w with m in {0, 1}; dw'/dw = m, so what is masked neither counts nor moves (Han et al. 2015,
    arXiv:1506.02626, section 3)."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its zeros; a product with the mask would make half of them -0.0."""
        return torch.where(self.mask, weight, torch.zeros_like(weight))  # type: ignore[arg-type]


def keep_zeros(module: nn.Module) -> dict[str, float]:
    """Mask every weight of two axes or more that holds exact zeros; path -> its share of zeros.

    Integer codes are zero by rounding alone (about 1 in 80 of a Gaussian on 8 bits), so a latent weight counts as
    pruned from a quarter of zeros on. Weights with a parametrization, which few bits have, are left alone.
    """
    masked: dict[str, float] = {}
    for path, weight in list(module.named_parameters()):
        if _PARAMETRIZED in path.split("."):
            continue
        if weight.ndim < 2 or bool((weight != 0).all()) or not bool((weight != 0).any()):
            continue
        folder, _, name = path.rpartition(".")
        mask = weight.detach() != 0
        if name.endswith(LATENT) and mask.float().mean() > 1 - _PRUNED:
            continue
        parametrize.register_parametrization(module.get_submodule(folder), name, Mask(mask))
        masked[path] = 1 - mask.float().mean().item()
    return masked


def mask_of(module: nn.Module, path: str) -> Mask:
    """The mask of a weight; where it has none it gets one that lets everything through."""
    folder, _, name = path.rpartition(".")
    home = module.get_submodule(folder)
    if parametrize.is_parametrized(home, name):
        for part in home.parametrizations[name]:  # type: ignore[index]
            if isinstance(part, Mask):
                return part
    made = Mask(torch.ones_like(getattr(home, name), dtype=torch.bool))
    parametrize.register_parametrization(home, name, made)
    return made
