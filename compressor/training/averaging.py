"""The average of the weights of many steps.

torch.optim.swa_utils.AveragedModel copies the module, which torch cannot do with a parametrized fx module (torch 2.13:
"_CodeOnlyModule has no attribute"), so here the tensors are averaged, not modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of a module's parameters and float buffers over the updates so far.

    With w_t the weights at update t = 1, 2, ... the average a_t moves by r_t (w_t - a_{t-1}):

        ema  r_t = (1 - d) / (1 - d^t): weights d^(t-k), divided by their sum, so that it starts at w_1 without
             leaning to any start value (the bias correction of Kingma & Ba 2015, arXiv:1412.6980, section 3)
        swa  r_t = 1 / t: all the same (Izmailov et al. 2018, arXiv:1803.05407)

    The averages of batch statistics are those of other weights: after swa estimate BatchNorm's statistics again (the
    paper, section 3.2). Half-precision weights are averaged in float32. Other buffers (counters) are left out.

    Args:
        decay: d in [0, 1) for ema; None for swa.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self.updates = 0
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        rate = self._rate()
        for name, tensor in _tensors(module):
            now = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            if name in self._means:
                self._means[name].lerp_(now, rate)
            else:
                self._means[name] = now.clone()

    def _rate(self) -> float:
        if self.decay is None:
            return 1 / self.updates
        return (1 - self.decay) / (1 - self.decay**self.updates)

    @torch.no_grad()
    def apply_to(self, module: nn.Module) -> None:
        """Write the average into the module; before the first update nothing changes."""
        for name, tensor in _tensors(module):
            if name in self._means:
                tensor.copy_(self._means[name])

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module with the average in it, for as long as the context lasts."""
        own = {name: tensor.detach().clone() for name, tensor in _tensors(module)}
        self.apply_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _tensors(module):
                    tensor.copy_(own[name])

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint holds; the tensors are copies."""
        means = {name: tensor.clone() for name, tensor in self._means.items()}
        return {"decay": self.decay, "updates": self.updates, "means": means}

    def load_state_dict(self, state: dict[str, object], device: torch.device | str = "cpu") -> None:
        """Go on from a checkpoint, with the averages on the device of the module."""
        decay, updates, means = state["decay"], state["updates"], state["means"]
        if not isinstance(updates, int) or not isinstance(means, dict) or not isinstance(decay, float | None):
            raise TypeError("this is not the state of an Average")
        self.decay, self.updates = decay, updates
        self._means = {name: tensor.to(device, copy=True) for name, tensor in means.items()}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and float buffers by name, each once."""
    yield from module.named_parameters()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point())
