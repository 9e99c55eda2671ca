"""The weights that are cut while they are trained: where they are in the network, and their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compressor.pruning.sparsity import Gradual
from compressor.torch_graph.writing import NAMES, TRANSPOSED
from compressor.training.latent import LATENT
from compressor.training.zeros import Mask, mask_of

_ENDINGS = (LATENT, f"_quantized{LATENT}", "")
"""What the name of a weight may have got behind it since, by a quantizing pass and by `lift`."""


@dataclass(frozen=True)
class Prunable:
    """A weight as the optimizer changes it, and its mask."""

    weight: nn.Parameter
    mask: Mask

    @property
    def alive(self) -> np.ndarray:
        """True for what is not cut: bool, of the weight's shape."""
        return np.asarray(self._buffer.cpu().numpy())

    @property
    def zeros(self) -> tuple[int, int]:
        """How many elements count as zero, and how many there are."""
        kept = int((self.alive & (self.weight.detach().cpu() != 0).numpy()).sum())
        return self.weight.numel() - kept, self.weight.numel()

    @torch.no_grad()
    def cut(self, kept: np.ndarray) -> None:
        """Mask what is not kept, in addition to what is masked already."""
        self._buffer.logical_and_(torch.from_numpy(np.ascontiguousarray(kept)).to(self._buffer.device))

    @property
    def _buffer(self) -> Tensor:
        return self.mask.get_buffer("mask")


def add_masks(network: fx.GraphModule, plans: Sequence[Gradual]) -> None:
    """Give every weight that is to be cut a mask, which lets everything through where it had none."""
    for plan in plans:
        masked_weights(network, plan)


def masked_weights(network: fx.GraphModule, plan: Gradual) -> dict[str, Prunable]:
    """Name -> the weight and its mask, of those that are there; masks are made where there are none."""
    found: dict[str, Prunable] = {}
    for name, path in places(network, plan)[0].items():
        mask = mask_of(network, path)
        home, leaf = _home(network, path)
        found[name] = Prunable(home.get_parameter(f"parametrizations.{leaf}.original"), mask)
    return found


def places(network: fx.GraphModule, plan: Gradual) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> path of the weights to be cut, each once; and name -> why it cannot be."""
    found: dict[str, str] = {}
    refused: dict[str, str] = {}
    names: Mapping[str, str] = network.meta[NAMES]
    for name in plan.targets:
        path = next((names[f"{name}{end}"] for end in _ENDINGS if f"{name}{end}" in names), None)
        if path is None or not _is_weight(network, path):
            twin = name in network.meta[TRANSPOSED]
            refused[name] = "its transpose is trained in its place" if twin else "it is not trained any more"
        elif prod(plan.layouts[name].shape) != getattr(*_home(network, path)).numel():
            refused[name] = "its shape has changed since"
        elif path not in found.values():
            found[name] = path
    return found, refused


def _is_weight(network: fx.GraphModule, path: str) -> bool:
    home, leaf = _home(network, path)
    return parametrize.is_parametrized(home, leaf) or isinstance(getattr(home, leaf), nn.Parameter)


def _home(network: fx.GraphModule, path: str) -> tuple[nn.Module, str]:
    folder, _, leaf = path.rpartition(".")
    return network.get_submodule(folder), leaf
