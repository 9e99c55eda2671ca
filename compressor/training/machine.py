"""Where a training runs: device, precision, how many processes, and how they share the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from compressor.errors import OptionError
from compressor.training.options import Training


@dataclass(frozen=True)
class Machine:
    """The device of this process, and Lightning's arguments for it."""

    device: torch.device
    arguments: dict[str, Any]


def machine(options: Training) -> Machine:
    """What the options ask for; OptionError when torch does not see it."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(
            f"{options.name}: no device {name!r}. Give cpu, cuda, cuda:0, ... or auto."
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"{options.name}: device={name!r} cannot be trained on. Give cpu, cuda or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"{options.name}: device={name!r}, but torch sees {torch.cuda.device_count()} CUDA devices. Install a CUDA "
            "build of torch, or give device='cpu'."
        )
    if device.type == "cpu" and options.strategy == "fsdp":
        raise OptionError(f"{options.name}: strategy='fsdp' needs CUDA devices. Give strategy='ddp'.")
    several = options.devices * options.nodes > 1
    if several and options.unfreeze:
        raise OptionError(f"{options.name}: unfreeze works on one device. Give devices=1, or leave it out.")
    arguments: dict[str, Any] = {
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        "devices": [device.index] if device.index is not None and options.devices == 1 else options.devices,
        "num_nodes": options.nodes,
        "precision": _precision(options, device),
        "strategy": _strategy(options) if several else "auto",
    }
    return Machine(device, arguments)


def _precision(options: Training, device: torch.device) -> str:
    chosen = options.precision
    if chosen == "auto":
        chosen = "bf16" if device.type == "cuda" else "32"
    if chosen == "16" and device.type == "cpu":
        raise OptionError(f"{options.name}: precision='16' needs CUDA. Give 'bf16' or '32'.")
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[chosen]


def _strategy(options: Training) -> str:
    """Lightning starts the command, or the script, once more for every further process: a fork hangs in OpenMP."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise OptionError(
            f"{options.name}: several devices train once per run, and they have. Give devices=1 to all passes but one."
        )
    if options.strategy == "fsdp":
        return "fsdp"
    return "ddp_find_unused_parameters_true"  # unused as those of an output that has no loss
