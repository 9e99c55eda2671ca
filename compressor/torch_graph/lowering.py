"""From an ONNX graph to a torch.fx graph: one call per operator, decided once.

While lowering, every ONNX value is one of three things:

- Known: its value is in the file, or follows from what is;
- Host: Python numbers at run time, as shapes and what is computed from them;
- Traced: a tensor at run time.

An operator on Known values is computed now, one on Host values becomes Python arithmetic, any other becomes a call
of its kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compressor.errors import ModelError, root_cause
from compressor.graph import nodes, opset
from compressor.torch_graph import calling, function_bodies, table
from compressor.torch_graph.own_statistics import separate
from compressor.torch_graph.parameters import Tie, array_of, keyed, scales, ties, trainable
from compressor.torch_graph.placing import place
from compressor.torch_graph.recomposing import recompose
from compressor.torch_graph.settling import settle
from compressor.torch_graph.values import TORCH_TYPES, attribute_value, to_value
from compressor.torch_graph.writing import NAMES, TRANSPOSED

_SMALL = 1024
"""Elements up to which a constant may take part in shape arithmetic."""

_ALWAYS_TENSORS = ("Range",)
_BY_RANK = ("ConstantOfShape", "Expand", "Tile")
_NOT_FOLDED = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
_COMPARING = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or")


@dataclass(frozen=True)
class Known:
    """A value of the file: a tensor, an array that torch has no type for, or a list of them; `name` if it has one."""

    value: Any
    name: str | None = None


@dataclass(frozen=True)
class Host:
    """Python numbers at run time; `rank` 0 is a number, 1 a list, 2 a list of lists, None unknown."""

    expression: Any
    dtype: ir.DataType
    rank: int | None


@dataclass(frozen=True)
class Traced:
    """A tensor (or a list of them, for a sequence) at run time."""

    node: fx.Node


Form = Known | Host | Traced


def to_torch(model: ir.Model, learn_ranges: bool = False) -> fx.GraphModule:
    """The model's graph as a torch module, called with its inputs in order.

    It returns the outputs in order, a tensor when there is one. Parameters and buffers are keyed by initializer
    name; `module.meta` maps names to paths where torch cannot use a name. The module is in eval mode: as the file
    says. `module.train()` gives BatchNormalization and Dropout their training behaviour.

    Args:
        model: opset 7 or newer; stays as it was. Fake quantization (QuantizeLinear, DequantizeLinear) gets
            straight-through gradients.
        learn_ranges: the constant scales of QuantizeLinear are parameters too, with LSQ's gradient.

    Raises:
        ModelError: an operator that neither torch nor ONNX's reference implements, by node name.
    """
    model = _inlined(model)
    weights = trainable(model) + (scales(model) if learn_ranges else [])
    lowering = Lowering(model, {})
    same = ties(weights)
    for value in weights:
        lowering.register(value, same.get(value))
    lowering.statistics(model)
    lowering.inputs([value for value in model.graph.inputs if value.name not in model.graph.initializers])
    module = lowering.finish(model.graph, model.graph.outputs)
    module.meta[NAMES] = lowering.paths
    module.meta[TRANSPOSED] = lowering.transposed
    return module.eval()


class Lowering:
    """One fx graph in the making; the body of a control-flow node has one of its own, with `outer` set."""

    def __init__(self, model: ir.Model, paths: dict[str, str], outer: Lowering | None = None) -> None:
        self.model = model
        self.opsets = {**model.opset_imports, "": opset(model)}
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.paths = paths
        self.outer = outer
        self.forms: dict[ir.Value, Form] = {}
        self.captured: list[ir.Value] = []
        self.transposed: dict[str, str] = {}
        self._weights: dict[ir.Value, str] = {}
        self._mirrored: set[ir.Value] = set()
        self._keys = {value: key for key, value in keyed(model).items()} if outer is None else {}
        self._buffers: dict[int, tuple[Any, fx.Node]] = {}
        self._first: ir.Value | None = None

    def register(self, value: ir.Value, tie: Tie | None) -> None:
        """Make `value` a parameter, or another one's parameter."""
        if tie is None:
            self._keep(value, torch.nn.Parameter(to_value(array_of(value))))
            return
        self._weights[value] = path = self._weights[tie.value]
        if tie.transposed:
            self._mirrored.add(value)
            self.transposed[self._keys[value]] = path
        else:
            self.paths[self._keys[value]] = path

    def _keep(self, value: ir.Value, tensor: torch.Tensor) -> None:
        path = place(self.root, str(value.name), tensor)
        self._weights[value] = self.paths[self._keys[value]] = path

    def statistics(self, model: ir.Model) -> None:
        """Make the running statistics of BatchNormalization buffers that are written back."""
        found = [
            value
            for node in nodes(model)
            if node.op_type == "BatchNormalization"
            for value in node.inputs[3:5]
        ]
        for value in found:
            if value in self._keys and value not in self._weights:
                self._keep(value, to_value(array_of(value)))

    def inputs(self, values: Sequence[ir.Value]) -> None:
        """Declare the inputs of the graph, in order."""
        for value in values:
            self.forms[value] = Traced(self._placeholder(value))
        tensors = [v for v in values if not isinstance(v.type, ir.SequenceType | ir.OptionalType)]
        self._first = tensors[0] if tensors else None

    def finish(self, nodes: Sequence[ir.Node] | ir.Graph, outputs: Sequence[ir.Value]) -> fx.GraphModule:
        """Lower the nodes, return the outputs, and make the module."""
        for node in nodes:
            self.lower(node)
        found = tuple(self.tensor(self.read(value)) for value in outputs)
        self.graph.output(found[0] if len(found) == 1 and self.outer is None else found)
        module = fx.GraphModule(self.root, self.graph, class_name="OnnxGraph")
        if module.graph.eliminate_dead_code():
            module.recompile()
        return module

    def read(self, value: ir.Value) -> Form:
        """What is known of a value here; a body captures it from the graph around it."""
        if value not in self.forms:
            self.forms[value] = self._found(value)
        return self.forms[value]

    def _found(self, value: ir.Value) -> Form:
        if value in self._weights:
            weight = self.graph.get_attr(self._weights[value])
            return Traced(self.graph.call_function(torch.t, (weight,)) if value in self._mirrored else weight)
        if value.const_value is not None and (self.outer is None or not self.outer.knows(value)):
            return Known(to_value(value.const_value.numpy()), value.name)
        if self.outer is None:
            raise ModelError(f"Nothing in the graph gives the value {value.name!r}.")
        form = self.outer.read(value)
        if isinstance(form, Known):
            return form
        self.captured.append(value)
        node = self._placeholder(value)
        return Host(node, form.dtype, form.rank) if isinstance(form, Host) else Traced(node)

    def knows(self, value: ir.Value) -> bool:
        """Whether the value is one of the parameters, here or around."""
        return value in self._weights or (self.outer is not None and self.outer.knows(value))

    def _placeholder(self, value: ir.Value) -> fx.Node:
        taken = {node.target for node in self.graph.nodes if node.op == "placeholder"}
        name = calling.identifier(value.name)
        while name in taken:
            name += "_"
        with self._at_start():
            return self.graph.placeholder(name)

    def lower(self, node: ir.Node) -> None:
        """Add what runs one ONNX node."""
        from compressor.torch_graph import control_flow, quantizers

        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            self._constant_node(node)
            return
        if control_flow.lower(self, node) or quantizers.lower(self, node):
            return
        if not (self._fold(node) or self._on_host(node)):
            calling.lower(self, node, [None if v is None else self.read(v) for v in node.inputs])

    def set(self, node: ir.Node, result: fx.Node) -> None:
        """Say which traced result gives the node's outputs: itself, or its items when there are several."""
        if len(node.outputs) == 1:
            only = (
                self.graph.call_function(calling.first, (result,))
                if calling.may_give_more(self, node)
                else result
            )
            self.forms[node.outputs[0]] = Traced(only)
            return
        for index, output in enumerate(node.outputs):
            if output.name:
                self.forms[output] = Traced(self.graph.call_function(calling.item, (result, index)))

    def _constant_node(self, node: ir.Node) -> None:
        value = node.outputs[0]
        if self.knows(value):
            return
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            self.forms[value] = Known(to_value(tensor.numpy()), value.name)
            return
        attribute = next(iter(node.attributes.values()))
        array = attribute_value(attribute)
        kind = {"value_float": torch.float32, "value_floats": torch.float32}.get(attribute.name)
        self.forms[value] = Known(torch.tensor(array, dtype=kind) if kind else to_value(array), value.name)

    def _fold(self, node: ir.Node) -> bool:
        """Compute now what depends on constants alone."""
        forms = [self.read(v) for v in node.inputs if v is not None]
        if not all(isinstance(form, Known) for form in forms) or node.op_type in _NOT_FOLDED:
            return False
        given = [None if v is None else self.read(v) for v in node.inputs]
        results = calling.evaluate(self, node, [None if f is None else f.value for f in given])  # type: ignore[union-attr]
        if results is None:
            return False
        for output, result in zip(node.outputs, results, strict=False):
            self.forms[output] = Known(result)
        return True

    def _on_host(self, node: ir.Node) -> bool:
        """Lower shape arithmetic to Python numbers."""
        kernel = table.host_kernels().get(table.key(node.domain, node.op_type))
        if kernel is None or node.op_type in _ALWAYS_TENSORS:
            return False
        output = node.outputs[0]
        rank = None if output.shape is None else len(output.shape)
        if (rank or 0) > 2 or (node.op_type in _BY_RANK and rank not in (0, 1)):
            return False
        forms = [None if v is None else self.read(v) for v in node.inputs]
        if node.op_type in ("Shape", "Size"):
            if not isinstance(forms[0], Traced):
                return False
            arguments: list[Any] = [forms[0].node]
        else:
            given = [form for form in forms if form is not None]
            if not any(isinstance(form, Host) for form in given) or not all(map(_takes_part, given)):
                return False
            arguments = [self.number(form) if form is not None else None for form in forms]
        result = self.graph.call_function(kernel, tuple(arguments), calling.numbers(self, node, kernel))
        dtype = self._host_type(node, forms)
        for index, value in enumerate(node.outputs):
            several = len(node.outputs) > 1
            expression = self.graph.call_function(calling.item, (result, index)) if several else result
            self.forms[value] = Host(expression, dtype, rank)
        return True

    def _host_type(self, node: ir.Node, forms: Sequence[Form | None]) -> ir.DataType:
        if node.op_type in ("Shape", "Size"):
            return ir.DataType.INT64
        if node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].as_int())
        if node.op_type in _COMPARING:
            return ir.DataType.BOOL
        if node.op_type == "ConstantOfShape":
            return (
                _type_of(attribute_value(node.attributes["value"])) if node.attributes else ir.DataType.FLOAT
            )
        form = forms[1 if node.op_type == "Where" else 0]
        if isinstance(form, Host):
            return form.dtype
        return _type_of(form.value) if isinstance(form, Known) else ir.DataType.INT64

    def read_as(self, kind: str, form: Form) -> Any:
        """A form as a kernel wants it: as a "tensor", a "number" or a "list" of them."""
        if kind == "either":
            one = isinstance(form, Known) and isinstance(form.value, torch.Tensor) and not form.value.ndim
            return self.number(form) if one else self.tensor(form)
        if kind == "tensor":
            return self.tensor(form)
        if kind == "list":
            return self.number(form)
        if isinstance(form, Known):
            return calling.to_host(form.value, kind)
        if isinstance(form, Host):
            return (
                self.graph.call_function(calling.item, (form.expression, 0)) if form.rank else form.expression
            )
        return self.graph.call_function(calling.to_host, (form.node, kind))

    def type_of(self, value: ir.Value | None) -> ir.DataType:
        """The element type of a value, from what is known of it; float where nothing is."""
        form = None if value is None else self.read(value)
        if isinstance(form, Host):
            return form.dtype
        if isinstance(form, Known):
            return _type_of(form.value)
        return (value and value.dtype) or ir.DataType.FLOAT

    def number(self, form: Form) -> Any:
        """A form as Python numbers: a literal, or what computes them at run time."""
        if isinstance(form, Host):
            return form.expression
        if isinstance(form, Known):
            return form.value.tolist() if hasattr(form.value, "tolist") else form.value
        return self.graph.call_function(calling.to_host, (form.node,))

    def anchor(self) -> fx.Node | None:
        """A tensor whose device new ones are made on: the first input, here or around; None when there is none."""
        if self._first is None and self.outer is not None:
            self._first = self.outer._first
        form = None if self._first is None else self.read(self._first)
        return form.node if isinstance(form, Traced) else None

    def beside(self, result: fx.Node) -> fx.Node:
        """A tensor that no other one was made from, on the device of the inputs."""
        anchor = self.anchor()
        return result if anchor is None else self.graph.call_function(calling.beside, (result, anchor))

    def tensor(self, form: Form) -> Any:
        """A form as what kernels take: a traced tensor, or a constant kept as a buffer of the module."""
        if isinstance(form, Traced):
            return form.node
        if isinstance(form, Host):
            kind = TORCH_TYPES[form.dtype]
            return self.graph.call_function(calling.from_host, (form.expression, kind, self.anchor()))
        if isinstance(form.value, list):
            return [self.tensor(Known(item)) for item in form.value]
        return None if form.value is None else self.buffer(form.value, form.name)

    def buffer(self, value: Any, name: str | None) -> fx.Node:
        """A constant, kept in the module once."""
        if id(value) not in self._buffers:
            path = name or f"constant_{len(self._buffers)}"
            if isinstance(value, torch.Tensor):
                path = place(self.root, path, value.contiguous())
            else:
                path = calling.identifier(f"array_{len(self._buffers)}")
                setattr(self.root, path, value)
            with self._at_start():
                self._buffers[id(value)] = (value, self.graph.get_attr(path))
        return self._buffers[id(value)][1]

    def _at_start(self) -> AbstractContextManager[Any]:
        """What is added in here comes right after the inputs, so that every node may use it."""
        after = next((node for node in self.graph.nodes if node.op != "placeholder"), None)
        return nullcontext() if after is None else self.graph.inserting_before(after)


def _takes_part(form: Form) -> bool:
    """Whether a form can be used in shape arithmetic."""
    if isinstance(form, Host):
        return True
    small = isinstance(form, Known) and isinstance(form.value, torch.Tensor)
    return small and form.value.ndim <= 2 and form.value.numel() <= _SMALL  # type: ignore[union-attr]


def _type_of(value: Any) -> ir.DataType:
    return next(kind for kind, found in TORCH_TYPES.items() if found == value.dtype)


def _inlined(model: ir.Model) -> ir.Model:
    """A copy of the model with its functions in place of their calls, and shapes where they can be inferred."""
    from compressor.prepare import infer_shapes

    try:
        model = model.clone()
    except RuntimeError as error:
        raise ModelError(f"to_torch: the graph is broken: {root_cause(error)}") from error
    function_bodies.inline_functions(model)
    infer_shapes(model)
    separate(model)
    settle(model)
    recompose(model)
    return model
