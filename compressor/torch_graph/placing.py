"""Names in the torch module: the ONNX names, as far as torch and Python allow."""

from __future__ import annotations

import keyword
import re
from functools import cache

import torch


def place(root: torch.nn.Module, name: str, value: torch.Tensor | torch.nn.Parameter) -> str:
    """Put a tensor under `name` into nested modules of `root`, and return its path.

    The path is the name itself unless torch forbids it: an empty or reserved part, or a part that is taken.
    """
    *folders, leaf = _parts(root, name)
    home = root
    for folder in folders:
        if folder not in home._modules:
            home.add_module(folder, torch.nn.Module())
        home = home.get_submodule(folder)
    if isinstance(value, torch.nn.Parameter):
        home.register_parameter(leaf, value)
    else:
        home.register_buffer(leaf, value)
    return ".".join((*folders, leaf))


def identifier(name: str | None) -> str:
    """A Python name near an ONNX name.

    >>> identifier("layer1/conv:0"), identifier("0")
    ('layer1_conv_0', '_0')
    """
    clean = re.sub(r"\W", "_", name or "value")
    return f"_{clean}" if clean[:1].isdigit() or keyword.iskeyword(clean) or clean == "self" else clean


def _parts(root: torch.nn.Module, name: str) -> list[str]:
    """The nested names that `name` can have under `root`."""
    clean = "".join(c if c.isprintable() and c not in "\"'\\" else "_" for c in name) or "_"
    parts = [part or "_" for part in clean.split(".")]
    parts = [f"{part}_" if keyword.iskeyword(part) or part in _reserved() else part for part in parts]
    if _is_free(root, parts):
        return parts
    flat = "_".join(parts)
    while not _is_free(root, [flat]):
        flat += "_"
    return [flat]


@cache
def _reserved() -> frozenset[str]:
    """What a GraphModule has already, and what its generated code calls itself."""
    return frozenset((*dir(torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())), "self"))


def _is_free(root: torch.nn.Module, parts: list[str]) -> bool:
    home = root
    for part in parts[:-1]:
        if part not in home._modules:
            return part not in home._parameters and part not in home._buffers
        home = home.get_submodule(part)
    return not hasattr(home, parts[-1])
