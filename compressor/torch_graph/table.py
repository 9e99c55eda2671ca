"""Which kernel runs which operator: the folder `operators` is the registry, each file there names what it has."""

from __future__ import annotations

import inspect
import pkgutil
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import MappingProxyType

from compressor.torch_graph import operators
from compressor.torch_graph.values import Kernel

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Signature:
    """How a kernel wants to be called.

    Args:
        host: for each positional input "tensor", or how it is read in Python, "number" or "list"; "either" is a
            number where a constant is one, else a tensor.
        names: everything that may be passed by keyword.
    """

    host: tuple[str, ...]
    names: frozenset[str]

    def kind(self, position: int) -> str:
        """How the input at this position is read; variadic inputs are tensors."""
        return self.host[position] if position < len(self.host) else "tensor"


@cache
def kernels() -> Mapping[str, Kernel]:
    """Operator -> kernel; operators of other domains as `domain::operator`."""
    return _collected("KERNELS")


@cache
def host_kernels() -> Mapping[str, Kernel]:
    """Operator -> kernel on Python numbers, for shape arithmetic."""
    return _collected("HOST_KERNELS")


@cache
def signature(kernel: Kernel) -> Signature:
    """The signature of a kernel."""
    hints = typing.get_type_hints(kernel)
    parameters = inspect.signature(kernel).parameters.values()
    host = tuple(_read_as(str(hints[p.name])) for p in parameters if p.kind in _POSITIONAL)
    names = frozenset(p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL)
    return Signature(host, names)


def key(domain: str, operator: str) -> str:
    """The name of an operator in the table.

    >>> key("", "Conv"), key("com.microsoft", "Gelu")
    ('Conv', 'com.microsoft::Gelu')
    """
    return operator if domain in ("", "ai.onnx") else f"{domain}::{operator}"


def _read_as(hint: str) -> str:
    if "Tensor" in hint and "float" in hint:
        return "either"
    if "Tensor" in hint or "Any" in hint:
        return "tensor"
    return "list" if "list" in hint or "Sequence" in hint else "number"


def _collected(name: str) -> Mapping[str, Kernel]:
    table: dict[str, Kernel] = {}
    for found in pkgutil.iter_modules(operators.__path__):
        module = import_module(f"{operators.__name__}.{found.name}")
        table.update(getattr(module, name, {}))
    return MappingProxyType(table)
