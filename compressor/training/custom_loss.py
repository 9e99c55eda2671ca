"""A loss of the user's own: `file.py:function` or `module:function`, called as function(output, labels)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressor.errors import OptionError
from compressor.user_code import FOREIGN, load_object


def load(name: str) -> Callable[..., object]:
    """The function that `file.py:function` or `package.module:function` names."""
    found: Callable[..., object] = load_object(name, f"loss {name!r}")
    return found


def call(name: str, function: Callable[..., object], output: Tensor, labels: Tensor | None) -> Tensor:
    """function(output, labels), a scalar tensor that leads back to the output; else an OptionError in one line."""
    try:
        made = function(output, labels)
    except FOREIGN as error:
        raise OptionError(
            f"loss {name!r} raised {type(error).__name__}: {' '.join(str(error).split())}. It is called as "
            "f(output, labels) with torch tensors and returns a scalar tensor, the mean over the samples."
        ) from error
    if not isinstance(made, Tensor) or made.numel() != 1 or not made.is_floating_point():
        what = (
            f"a tensor {list(made.shape)} of {made.dtype}"
            if isinstance(made, Tensor)
            else type(made).__name__
        )
        raise OptionError(f"loss {name!r} must return a scalar tensor of floats, got {what}.")
    if torch.is_grad_enabled() and output.requires_grad and not made.requires_grad:
        raise OptionError(
            f"loss {name!r} has no gradient: compute it from the output with torch functions, without detach or numpy."
        )
    return made.reshape(())
