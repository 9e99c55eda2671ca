"""If, Loop and Scan: bodies are fx modules of their own; gradients flow through what they capture.

Bodies get the values of the graph around them as further arguments, so every parameter stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import fx

from compressor.torch_graph import calling
from compressor.torch_graph.scanning import BatchScanned, Scanned
from compressor.torch_graph.values import TORCH_TYPES, attribute_value

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering


class Branch(torch.nn.Module):
    """If: one of two bodies, each called with its own captured values."""

    def __init__(self, bodies: Sequence[fx.GraphModule], counts: Sequence[int]) -> None:
        super().__init__()
        self.then_branch, self.else_branch = bodies
        self.counts = tuple(counts)

    def forward(self, condition: Any, *captured: Any) -> Any:
        """The outputs of the branch that the condition, one bool, chooses."""
        then = self.counts[0]
        if bool(condition):
            return _single(self.then_branch(*captured[:then]))
        return _single(self.else_branch(*captured[then:]))


class Repeat(torch.nn.Module):
    """Loop: the body runs at most `trips` times, while its condition holds."""

    def __init__(self, body: fx.GraphModule, carried: int, empty: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.body = body
        self.carried = carried
        self.empty = tuple(empty)

    def forward(self, trips: Any, condition: Any, *values: Any) -> Any:
        """The last carried values, then the scan outputs [iterations, ...]; no iteration gives the `empty` ones."""
        state, captured = list(values[: self.carried]), values[self.carried :]
        limit = trips[0] if isinstance(trips, list) else trips
        going = True if condition is None else bool(condition)
        device = next((v.device for v in values if isinstance(v, torch.Tensor)), None)
        rows: list[Sequence[Any]] = []
        step = 0
        while going and (limit is None or step < limit):
            number = torch.tensor(step, dtype=torch.int64, device=device)
            again = torch.tensor(going, device=device)
            condition, *results = self.body(number, again, *state, *captured)
            state = list(results[: self.carried])
            rows.append(results[self.carried :])
            going = bool(condition)
            step += 1
        if not rows:
            return _single((*state, *(tensor.to(device) for tensor in self.empty)))
        return _single((*state, *(torch.stack(column) for column in zip(*rows, strict=True))))


def lower(lowering: Lowering, node: ir.Node) -> bool:
    """Lower a control-flow node; False when the node is none."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "If":
        _lower_if(lowering, node)
    elif node.op_type == "Loop":
        _lower_loop(lowering, node)
    elif node.op_type == "Scan":
        _lower_scan(lowering, node)
    else:
        return False
    return True


def _lower_if(lowering: Lowering, node: ir.Node) -> None:
    from compressor.torch_graph.lowering import Known

    condition = lowering.read(node.inputs[0])  # type: ignore[arg-type]
    names = ("then_branch", "else_branch")
    if isinstance(condition, Known):
        graph = node.attributes[names[0] if bool(condition.value) else names[1]].as_graph()
        _inline(lowering, node, graph)
        return
    made = [_body(lowering, node.attributes[name].as_graph()) for name in names]
    branch = Branch([body for body, _ in made], [len(captured) for _, captured in made])
    flag = lowering.number(condition) if not hasattr(condition, "node") else lowering.tensor(condition)
    captured = [value for _, values in made for value in values]
    _call(lowering, node, branch, (flag, *_captured(lowering, captured)))


def _inline(lowering: Lowering, node: ir.Node, graph: ir.Graph) -> None:
    """Lower the chosen branch in place of the If."""
    for inner in graph:
        lowering.lower(inner)
    for output, value in zip(node.outputs, graph.outputs, strict=True):
        lowering.forms[output] = lowering.read(value)


def _lower_loop(lowering: Lowering, node: ir.Node) -> None:
    graph = node.attributes["body"].as_graph()
    body, captured = _body(lowering, graph)
    trips, condition = (None if v is None else lowering.read(v) for v in node.inputs[:2])
    carried = _tensors(lowering, node.inputs[2:])
    module = Repeat(body, len(carried), [_no_rows(value) for value in graph.outputs[1 + len(carried) :]])
    first = None if trips is None else lowering.number(trips)
    second = None if condition is None else lowering.tensor(condition)
    _call(lowering, node, module, (first, second, *carried, *_captured(lowering, captured)))


def _no_rows(value: ir.Value) -> torch.Tensor:
    """What is stacked of a scan output when there is nothing to stack; sizes that nothing tells are 0."""
    sizes = [size if isinstance(size, int) else 0 for size in value.shape or ()]
    return torch.empty(0, *sizes, dtype=None if value.dtype is None else TORCH_TYPES.get(value.dtype))


def _lower_scan(lowering: Lowering, node: ir.Node) -> None:
    body, captured = _body(lowering, node.attributes["body"].as_graph())
    batched = lowering.opsets[""] < 9
    scans = node.attributes["num_scan_inputs"].as_int()
    states = len(node.inputs) - scans - batched
    outputs = len(node.outputs) - states
    sizes = {"directions": scans, "scan_input_axes": scans, "scan_input_directions": scans}
    sizes |= {"scan_output_axes": outputs, "scan_output_directions": outputs}
    options = {
        name: attribute_value(node.attributes[name]) if name in node.attributes else [0] * size
        for name, size in sizes.items()
    }
    if batched:
        options["scan_input_directions"] = options["directions"]
    scan = Scanned(body, states, options)
    inputs = _tensors(lowering, node.inputs)
    _call(lowering, node, BatchScanned(scan) if batched else scan, (*inputs, *_captured(lowering, captured)))


def _body(lowering: Lowering, graph: ir.Graph) -> tuple[fx.GraphModule, list[ir.Value]]:
    """A body as a module, and the values from around it that it takes after its own inputs."""
    from compressor.torch_graph.lowering import Lowering as Inner

    inner = Inner(lowering.model, lowering.paths, lowering)
    inner.opsets = lowering.opsets
    inner.inputs(graph.inputs)
    return inner.finish(graph, graph.outputs), inner.captured


def _tensors(lowering: Lowering, values: Sequence[ir.Value | None]) -> list[Any]:
    """Values as tensors, as the inputs of a body are."""
    return [None if value is None else lowering.tensor(lowering.read(value)) for value in values]


def _captured(lowering: Lowering, values: Sequence[ir.Value]) -> list[Any]:
    """Captured values: Python numbers stay what they are."""
    from compressor.torch_graph.lowering import Host

    forms = [lowering.read(value) for value in values]
    return [lowering.number(form) if isinstance(form, Host) else lowering.tensor(form) for form in forms]


def _call(lowering: Lowering, node: ir.Node, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
    lowering.set(node, lowering.graph.call_module(calling.add(lowering, node, module), arguments))


def _single(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)
