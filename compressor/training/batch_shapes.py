"""The shapes of a graph's values at one batch size, found node by node, so that the graph may change on the way."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from compressor.graph import constant, opset
from compressor.runtime import Session, Setup

_SMALL = 1024
"""Elements up to which integers may be part of a shape."""
_OTHER = 64
"""Stands for a dynamic size other than the batch."""


class Sizes:
    """Shapes, and the integers that become shapes, at one batch size.

    Args:
        model: only its main graph is looked at, so what If, Loop and Scan give is unknown.
        batch: the first size of every input that is no initializer.
    """

    def __init__(self, model: ir.Model, batch: int) -> None:
        self._opsets = {**model.opset_imports, "": opset(model)}
        self._imports = [onnx.helper.make_opsetid(domain, number) for domain, number in self._opsets.items()]
        self._ir_version = model.ir_version
        self._types: dict[str, onnx.TypeProto] = {}
        self._integers: dict[str, np.ndarray] = {}
        for value in model.graph.initializers.values():
            self.learn(value)
        for value in model.graph.inputs:
            if (
                value.name not in model.graph.initializers
                and value.shape is not None
                and value.dtype is not None
            ):
                rest = [size if isinstance(size, int) else _OTHER for size in value.shape[1:]]
                self._types[str(value.name)] = _type(value.dtype, [batch, *rest])

    def learn(self, value: ir.Value) -> None:
        """Take in a constant."""
        array = constant(value)
        if array is None or value.name is None:
            return
        self._types[value.name] = _type(ir.convenience.get_const_tensor(value).dtype, array.shape)  # type: ignore[union-attr]
        if array.dtype.kind in "iub" and array.size <= _SMALL:
            self._integers[value.name] = array

    def of(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape; None when it is not known in full."""
        found = self._types.get(str(value.name)) if value is not None else None
        if found is None or not found.tensor_type.HasField("shape"):
            return None
        dims = found.tensor_type.shape.dim
        return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The element type; None when it is not known."""
        found = self._types.get(str(value.name))
        return None if found is None else ir.DataType(found.tensor_type.elem_type)

    def integers(self, value: ir.Value | None) -> np.ndarray | None:
        """The integers of a value that depends on constants and shapes alone, else None."""
        return self._integers.get(str(value.name)) if value is not None else None

    def infer(self, node: ir.Node) -> bool:
        """Find the shapes of what a node gives; False when it cannot run on the shapes of its inputs."""
        if node.op_type == "Constant":
            self.learn(node.outputs[0])
            return True
        given = [str(value.name) for value in node.inputs if value is not None]
        version = self._opsets.get("" if node.domain == "ai.onnx" else node.domain, 1)
        bodies = any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
        )
        if bodies or not onnx.defs.has(node.op_type, version, node.domain):
            return True
        if any(name not in self._types for name in given):
            return True
        proto = ir.to_proto(node)
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        types = {name: self._types[name] for name in given}
        data = {n: onnx.numpy_helper.from_array(self._integers[n], n) for n in given if n in self._integers}
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, None, self._imports, self._ir_version
            )
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
            return False
        self._types |= found
        self._compute(node, proto)
        return node.op_type != "Reshape" or self._count(node.inputs[0]) == self._count(node.outputs[0])

    def _count(self, value: ir.Value | None) -> int | None:
        """The number of elements; the inference of Reshape does not compare them."""
        shape = self.of(value)
        return None if shape is None else int(np.prod(shape, dtype=np.int64))

    def _compute(self, node: ir.Node, proto: onnx.NodeProto) -> None:
        """Shape arithmetic on known integers."""
        output, name = node.outputs[0], str(node.outputs[0].name)
        if node.op_type == "Shape":
            shape = self.of(node.inputs[0])
            if shape is not None:
                limits = [
                    node.attributes[k].as_int() if k in node.attributes else None for k in ("start", "end")
                ]
                self._integers[name] = np.asarray(shape[slice(*limits)], np.int64)
            return
        size = self._count(output)
        given = [str(value.name) for value in node.inputs if value is not None]
        known = all(n in self._integers for n in given) and _is_whole(self._types[name])
        if not known or not given or size is None or size > _SMALL:
            return
        inputs = [onnx.helper.make_value_info(n, self._types[n]) for n in dict.fromkeys(given)]
        outputs = [onnx.helper.make_value_info(str(v.name), self._types[str(v.name)]) for v in node.outputs]
        graph = onnx.helper.make_graph([proto], "node", inputs, outputs)
        alone = onnx.helper.make_model(graph, opset_imports=self._imports, ir_version=self._ir_version)
        session = Session(alone.SerializeToString(), Setup(threads=1, optimize=False))
        found = session.run({n: self._integers[n] for n in given})
        self._integers |= dict(zip(session.outputs, found, strict=True))


def _type(dtype: ir.DataType, shape: tuple[int, ...] | list[int]) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(int(dtype), shape)


def _is_whole(found: onnx.TypeProto) -> bool:
    kinds = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    return found.tensor_type.elem_type in kinds
