"""Weights that lie in a file beside the model: found, checked to be whole and inside the folder, memory-mapped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from compressor.errors import ModelError


def external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors whose data lies in another file, those of subgraphs, attributes and functions included."""
    for graph in _graphs(proto):
        yield from (t for t in graph.initializer if _is_external(t))
        for sparse in graph.sparse_initializer:
            yield from (t for t in (sparse.values, sparse.indices) if _is_external(t))
    for node in _nodes(proto):
        for attribute in node.attribute:
            sparse = attribute.sparse_tensor
            held = (attribute.t, *attribute.tensors, sparse.values, sparse.indices)
            yield from (t for t in held if _is_external(t))


def location(tensor: onnx.TensorProto) -> str:
    """The path of an external tensor's file, relative to the model's folder."""
    return _entry(tensor, "location")


def locate(proto: onnx.ModelProto, source: Path) -> None:
    """Check every external tensor of the model read from `source`, and write its absolute path into `proto`.

    A file may be a symbolic link, but must end up in the model's folder, or, when the model file is a link itself,
    in the folder that really holds it.

    Raises:
        ModelError: a file is missing, too short, or outside those folders.
    """
    roots = (source.parent.resolve(), source.resolve().parent)
    for tensor in external_tensors(proto):
        path = _whole_file(tensor, source, roots)
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(path)


def with_attributes_inside(model: ir.Model) -> ir.Model:
    """The model itself, or a copy with the external tensors of node attributes read: only initializers can stay
    outside when it is written again."""
    if not any(_external_attributes(node) for node in _ir_nodes(model)):
        return model
    inside = model.clone()
    for node in _ir_nodes(inside):
        for name in _external_attributes(node):
            tensor = node.attributes[name].as_tensor()
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype))
    return inside


def with_weights_inside(model: ir.Model, limit: float = math.inf) -> ir.Model:
    """A copy whose external initializers of up to `limit` bytes are memory-mapped arrays, not a place in a file."""
    inside = model.clone()
    for graph in inside.graphs():
        for value in graph.initializers.values():
            held = value.const_value
            if isinstance(held, ir.ExternalTensor) and held.nbytes <= limit:
                value.const_value = ir.tensor(held.numpy(), name=value.name, dtype=held.dtype)
    return inside


def _external_attributes(node: ir.Node) -> list[str]:
    held = (a for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR and not a.is_ref())
    return [a.name for a in held if isinstance(a.value, ir.ExternalTensor)]


def _ir_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield proto.graph
    for node in _nodes(proto):
        for attribute in node.attribute:
            yield from ((attribute.g,) if attribute.HasField("g") else ())
            yield from attribute.graphs


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of all graphs and functions, outer ones first."""
    waiting: list[Iterable[onnx.NodeProto]] = [proto.graph.node, *(f.node for f in proto.functions)]
    while waiting:
        for node in waiting.pop():
            yield node
            for attribute in node.attribute:
                waiting += [attribute.g.node] if attribute.HasField("g") else []
                waiting += [graph.node for graph in attribute.graphs]


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _entry(tensor: onnx.TensorProto, key: str) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == key), "")


def _number(tensor: onnx.TensorProto, key: str, source: Path) -> int:
    text = _entry(tensor, key) or "0"
    if not text.isascii() or not text.isdigit():
        raise ModelError(
            f"{source}: external data of {tensor.name!r} has {key} {text!r}, which is not a size in bytes. "
            "Export the model again."
        )
    return int(text)


def _whole_file(tensor: onnx.TensorProto, source: Path, roots: tuple[Path, ...]) -> Path:
    """The real path of the tensor's file, which is inside the roots and long enough."""
    where = location(tensor)
    named = source.parent / where
    path = named.resolve()
    escapes = not where or Path(where).is_absolute() or ".." in Path(where).parts
    if escapes or not any(path.is_relative_to(root) for root in roots):
        raise ModelError(
            f"{source}: external data {where!r} of {tensor.name!r} points outside the model's folder; refused."
        )
    if not path.is_file():
        raise ModelError(f"{source}: external data file {where!r} is missing. Put it beside the model.")
    start, length = _number(tensor, "offset", source), _number(tensor, "length", source)
    end = start + max(length, _bytes(tensor))
    if path.stat().st_size < end:
        raise ModelError(
            f"{source}: external data file {where!r} is truncated: {path.stat().st_size} bytes, {end} needed. "
            "Copy or export it again."
        )
    return path


def _bytes(tensor: onnx.TensorProto) -> int:
    """The bytes that the shape and type of a tensor need."""
    count = 1
    for size in tensor.dims:
        count *= size
    try:
        return -(-count * ir.DataType(tensor.data_type).bitwidth // 8)
    except (TypeError, ValueError):
        raise ModelError(
            f"External data of {tensor.name!r} has element type {tensor.data_type}, which cannot lie in a file. "
            "Export the model again."
        ) from None
