"""Optimizers and the rate and weight decay of each parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from compressor.errors import OptionError, did_you_mean, root_cause
from compressor.graph import matches
from compressor.training.options import Training
from compressor.training.schedules import peak
from compressor.user_code import load_object

_KNOWN: dict[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
_OURS = ("params", "lr", "weight_decay")


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter],
    options: Training,
    depths: Mapping[str, int],
    weights: Collection[str],
) -> list[dict[str, Any]]:
    """The groups for an optimizer: parameters with the same peak rate and weight decay, in order of appearance.

    The peak rate is lr * lr_decay ** depth * the factor of the last glob of `lr_for` that matches (lr counts as 1
    while it is 'auto'). Weight decay is for `weights` of two or more axes; biases, normalizations, position
    embeddings and layer scales have none. A parameter without a gradient is not changed by torch's optimizers, decay
    included, so frozen layers that are released later belong here too.

    Args:
        parameters: initializer name -> parameter, of all that is ever trained.
        options: lr, lr_decay, lr_for and weight_decay are read.
        depths: initializer name -> layers between it and the output (`layer_depths`); 0 where it is missing.
        weights: the names that layers multiply by (`layer_weights`).
    """
    for glob in options.lr_for:
        if not any(matches((name,), (glob,)) for name in parameters):
            raise OptionError(
                f"{options.name}: lr_for={glob!r} matches no parameter. {did_you_mean(glob, parameters)}"
            )
    found: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = peak(options) * options.lr_decay ** depths.get(name, 0) * _chosen(options, name)
        decayed = name in weights and parameter.ndim > 1
        found.setdefault((rate, options.weight_decay if decayed else 0.0), []).append(parameter)
    return [
        {"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in found.items()
    ]


def optimizer(options: Training, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer of `options` over `parameter_groups`.

    Weight decay is decoupled from the gradient in adamw (1711.05101) and part of it in the others, as in torch.

    Raises:
        OptionError: an unknown optimizer, an argument that it does not take or refuses, or no such MODULE:CLASS.
    """
    cls: Callable[..., Optimizer] = _class(options)
    given = {**_arguments(options), **_fused(options, groups), **options.optimizer_options}
    _check_arguments(options, cls)
    try:
        return cls(groups, lr=peak(options), **given)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"{options.name}: optimizer={options.optimizer!r} refuses {given!r}: {root_cause(error)}."
        ) from error


def _chosen(options: Training, name: str) -> float:
    """The factor of the last glob of `lr_for` that matches; 1 where none does."""
    return next((f for glob, f in reversed(options.lr_for.items()) if matches((name,), (glob,))), 1.0)


def _class(options: Training) -> type[Optimizer]:
    if options.optimizer in _KNOWN:
        return _KNOWN[options.optimizer]
    if ":" not in options.optimizer:
        raise OptionError(
            f"{options.name}: no optimizer {options.optimizer!r}. {did_you_mean(options.optimizer, _KNOWN)} "
            "Another one is MODULE:CLASS, as in torch.optim:NAdam."
        )
    return _loaded(options)


def _loaded(options: Training) -> type[Optimizer]:
    """The class that MODULE:CLASS or FILE.py:CLASS names."""
    who = f"{options.name}: optimizer={options.optimizer!r}"
    found: type[Optimizer] = load_object(options.optimizer, who, "optimizer", _is_optimizer)
    return found


def _is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer


def _arguments(options: Training) -> dict[str, Any]:
    """The options that belong to the optimizers we name; one of MODULE:CLASS gets optimizer_options alone."""
    if options.nesterov and options.optimizer != "sgd":
        raise OptionError(f"{options.name}: nesterov is of sgd, got optimizer={options.optimizer!r}.")
    match options.optimizer:
        case "sgd":
            if options.nesterov and not options.momentum:
                raise OptionError(
                    f"{options.name}: nesterov needs a momentum above 0, got 0. Give momentum=0.9."
                )
            return {"momentum": options.momentum, "nesterov": options.nesterov}
        case "rmsprop":
            return {"momentum": options.momentum}
        case "adam" | "adamw":
            return {"betas": options.betas}
        case _:
            return {}


def _fused(options: Training, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Lets Adam change all parameters in one call on the CPU, where torch would change them one by one.

    Not where gradients are clipped in mixed precision: Lightning clips none of a fused optimizer there.
    """
    mixed = options.precision not in ("auto", "32")
    if options.optimizer not in ("adam", "adamw") or (mixed and _clips(options)) or options.precision == "16":
        return {}
    if options.optimizer_options.keys() & {"fused", "foreach", "capturable", "differentiable"}:
        return {}
    parameters = [parameter for group in groups for parameter in group["params"]]
    fits = all(p.device.type == "cpu" and p.is_floating_point() for p in parameters)
    return {"fused": True} if fits else {}


def _clips(options: Training) -> bool:
    return bool(options.clip_norm or options.clip_value)


def _check_arguments(options: Training, cls: Callable[..., Optimizer]) -> None:
    if options.optimizer_options.get("fused") and options.precision in ("bf16", "16") and _clips(options):
        raise OptionError(
            f"{options.name}: gradients of a fused optimizer are not clipped with precision={options.precision!r}. "
            "Leave out fused, or clip_norm and clip_value, or give precision='32'."
        )
    taken = inspect.signature(cls).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    for key in options.optimizer_options:
        if key in (*_OURS, *_arguments(options)):
            raise OptionError(
                f"{options.name}: {key!r} in optimizer_options is an option of {options.name} itself. Give it there."
            )
        if key not in taken and not anything:
            known = [name for name in taken if name not in _OURS]
            raise OptionError(
                f"{options.name}: optimizer={options.optimizer!r} has no argument {key!r}. {did_you_mean(key, known)}"
            )
    if options.weight_decay and "weight_decay" not in taken and not anything:
        raise OptionError(
            f"{options.name}: optimizer={options.optimizer!r} has no weight decay, got "
            f"weight_decay={options.weight_decay:g}. Give weight_decay=0."
        )
