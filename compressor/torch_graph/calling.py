"""How one operator becomes one call: which kernel, with which attributes, its inputs as tensors or as numbers."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import torch

from compressor.errors import ModelError
from compressor.torch_graph import fallback, function_bodies, table
from compressor.torch_graph.values import TORCH_TYPES, Kernel, attribute_value, schema_defaults

if TYPE_CHECKING:
    from torch import fx

    from compressor.torch_graph.lowering import Form, Lowering

_GIVEN = ("version", "outputs", "training", "result_type")
_WITHOUT_EFFECT = ("seed", "consumed_inputs", "training_mode")
"""Attributes that a kernel need not take: they say nothing about what an inference graph computes."""

_FAILS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    NotImplementedError,
    OverflowError,
    ZeroDivisionError,
)


class Moded(torch.nn.Module):
    """A kernel that behaves differently in training: BatchNormalization, Dropout."""

    def __init__(self, kernel: Kernel, keywords: dict[str, Any]) -> None:
        super().__init__()
        self.kernel = kernel
        self.keywords = keywords

    def forward(self, *inputs: Any) -> Any:
        """Run the kernel in the mode of the module."""
        return self.kernel(*inputs, **self.keywords, training=self.training)


def lower(lowering: Lowering, node: ir.Node, forms: Sequence[Form | None]) -> None:
    """Add the call of the node's kernel; without one, of what ONNX says that the operator does."""
    kernel = _kernel(node)
    if kernel is None:
        if function_bodies.lower(lowering, node):
            return
        fallback.require(node, lowering.opsets)
        inputs = tuple(None if form is None else lowering.tensor(form) for form in forms)
        module = fallback.Reference(node, lowering.opsets)
        lowering.set(node, lowering.graph.call_module(add(lowering, node, module), inputs))
        return
    wants = table.signature(kernel)
    arguments = [
        None if form is None else lowering.read_as(wants.kind(i), form) for i, form in enumerate(forms)
    ]
    named = keywords(lowering, node, kernel)
    if "training" in wants.names:
        plain = {name: value for name, value in named.items() if not isinstance(value, torch.fx.Node)}
        path = add(lowering, node, Moded(kernel, plain))
        lowering.set(node, lowering.graph.call_module(path, tuple(arguments)))
        return
    made = _named(node, lowering.graph.call_function(kernel, tuple(arguments), named))
    alone = all(wants.kind(i) in ("number", "list") for i, form in enumerate(forms) if form is not None)
    lowering.set(node, lowering.beside(made) if alone else made)


def _kernel(node: ir.Node) -> Kernel | None:
    """The kernel that runs a node; None when there is none, or it meets types that torch does not compute with."""
    types = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
    if "to" in node.attributes:
        types.append(ir.DataType(node.attributes["to"].as_int()))
    if any(kind is not None and kind not in TORCH_TYPES for kind in types):
        return None
    return table.kernels().get(table.key(node.domain, node.op_type))


def evaluate(lowering: Lowering, node: ir.Node, values: Sequence[Any]) -> Sequence[Any] | None:
    """The node's outputs for known inputs; None when they cannot be computed ahead."""
    kernel = _kernel(node)
    try:
        if kernel is None:
            if not fallback.exists(node, lowering.opsets):
                return None
            result = fallback.Reference(node, lowering.opsets)(*values)
        else:
            wants = table.signature(kernel)
            if "training" in wants.names:
                return None
            given = [
                v if v is None or wants.kind(i) in ("tensor", "either") else to_host(v, wants.kind(i))
                for i, v in enumerate(values)
            ]
            with torch.no_grad():
                result = kernel(*given, **_attributes(lowering, node, kernel))
    except _FAILS:
        return None
    return result if isinstance(result, tuple) else (result,)


def keywords(lowering: Lowering, node: ir.Node, kernel: Kernel) -> dict[str, Any]:
    """The attributes as fx arguments: a tensor among them becomes a constant of the module."""
    found = _attributes(lowering, node, kernel)
    return {
        name: lowering.buffer(value, None) if isinstance(value, torch.Tensor) else value
        for name, value in found.items()
    }


def numbers(lowering: Lowering, node: ir.Node, kernel: Kernel) -> dict[str, Any]:
    """The attributes as Python numbers and lists, for kernels of shape arithmetic."""
    found = _attributes(lowering, node, kernel)
    return {n: value.tolist() if isinstance(value, torch.Tensor) else value for n, value in found.items()}


def _attributes(lowering: Lowering, node: ir.Node, kernel: Kernel) -> dict[str, Any]:
    """The node's attributes over the defaults of its schema, as far as the kernel takes them."""
    wanted = table.signature(kernel).names
    version = lowering.opsets.get("" if node.domain == "ai.onnx" else node.domain, 1)
    found: dict[str, Any] = {}
    since = version
    if onnx.defs.has(node.op_type, version, node.domain):
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        found = schema_defaults(schema)
        since = schema.since_version
    for name, attribute in node.attributes.items():
        value = attribute_value(attribute)
        needed = (
            name not in wanted and name not in _WITHOUT_EFFECT and attribute.type != ir.AttributeType.GRAPH
        )
        if needed and found.get(name) != value:
            raise ModelError(
                f"Node {node.name!r} ({node.op_type}): attribute {name}={value!r} is not supported."
            )
        found[name] = value
    found = {name: value for name, value in found.items() if name in wanted and name not in _GIVEN}
    if "version" in wanted:
        found["version"] = since
    if "outputs" in wanted:
        found["outputs"] = len(node.outputs)
    if "result_type" in wanted:
        found["result_type"] = TORCH_TYPES[lowering.type_of(node.inputs[0])]
    return found


def add(lowering: Lowering, node: ir.Node, module: torch.nn.Module) -> str:
    """Put a module that runs a node into the root; its path."""
    number = len(lowering.root._modules)
    while hasattr(lowering.root, f"{identifier(node.op_type)}_{number}"):
        number += 1
    path = f"{identifier(node.op_type)}_{number}"
    lowering.root.add_module(path, module)
    return path


def identifier(name: str | None) -> str:
    """A Python name near an ONNX name.

    >>> identifier("layer1/conv:0"), identifier("0")
    ('layer1_conv_0', '_0')
    """
    clean = re.sub(r"\W", "_", name or "value")
    return f"_{clean}" if clean[:1].isdigit() or keyword.iskeyword(clean) or clean == "self" else clean


def _named(node: ir.Node, call: fx.Node) -> fx.Node:
    call.meta["onnx"] = node.name
    return call


def may_give_more(lowering: Lowering, node: ir.Node) -> bool:
    """Whether the operator has more outputs than the one that the node has."""
    version = lowering.opsets.get("" if node.domain == "ai.onnx" else node.domain, 1)
    if not onnx.defs.has(node.op_type, version, node.domain):
        return node.domain not in ("", "ai.onnx")
    return bool(onnx.defs.get_schema(node.op_type, version, node.domain).max_output > 1)


def first(values: Any) -> Any:
    """The only output, of a kernel that may give several."""
    return values[0] if isinstance(values, tuple) else values


def item(values: Sequence[Any], index: int) -> Any:
    """One of several outputs."""
    return values[index]


def to_host(tensor: Any, kind: str = "list") -> Any:
    """The numbers of a tensor, or its only one; waits for the device that computes it."""
    if kind == "number":
        return tensor.reshape(-1).tolist()[0] if len(tensor.reshape(-1)) else None
    return tensor.tolist()


def beside(made: Any, anchor: Any) -> Any:
    """A new tensor on the device of another one."""
    return (
        made.to(anchor.device)
        if isinstance(made, torch.Tensor) and isinstance(anchor, torch.Tensor)
        else made
    )


def from_host(numbers: Any, dtype: torch.dtype, anchor: torch.Tensor | None) -> torch.Tensor:
    """Python numbers as a tensor; single numbers stay on the CPU, where every device can use them."""
    device = anchor.device if anchor is not None and isinstance(numbers, list | tuple) else None
    return torch.tensor(numbers, dtype=dtype, device=device)
