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

import onnx_ir as ir

from compressor.torch_graph import operators
from compressor.torch_graph.values import TORCH_TYPES, Kernel

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Signature:
    """How a kernel wants to be called.

    Args:
        kinds: how each positional input is given, as a "tensor", a "number" or a "list" of them; "either" is a number
            where the input is a constant of rank 0, else a tensor.
        names: everything that may be passed by keyword.
    """

    kinds: tuple[str, ...]
    names: frozenset[str]

    def kind(self, position: int) -> str:
        """How the input at this position is given; variadic inputs are tensors."""
        return self.kinds[position] if position < len(self.kinds) else "tensor"


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
    kinds = tuple(_kind(str(hints[p.name])) for p in parameters if p.kind in _POSITIONAL)
    names = frozenset(p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL)
    return Signature(kinds, names)


def kernel_of(node: ir.Node) -> Kernel | None:
    """The kernel that runs a node; None when there is none, or it meets types that torch does not compute with."""
    types = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
    if "to" in node.attributes:
        types.append(ir.DataType(node.attributes["to"].as_int()))
    if any(kind is not None and kind not in TORCH_TYPES for kind in types):
        return None
    return kernels().get(key(node.domain, node.op_type))


def key(domain: str, operator: str) -> str:
    """The name of an operator in the table.

    >>> key("", "Conv"), key("com.microsoft", "Gelu")
    ('Conv', 'com.microsoft::Gelu')
    """
    return operator if domain in ("", "ai.onnx") else f"{domain}::{operator}"


def _kind(hint: str) -> str:
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
