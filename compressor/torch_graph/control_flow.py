"""If, Loop and Scan: bodies are fx modules of their own; gradients flow through what they capture.

Bodies get the values of the graph around them as further arguments, so every parameter stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import fx

from compressor.torch_graph.attributes import attribute_value
from compressor.torch_graph.forms import Form, Host, Known
from compressor.torch_graph.scanning import BatchScanned, Scanned
from compressor.torch_graph.values import TORCH_TYPES

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
    condition = lowering.inputs_of(node)[0]
    names = ("then_branch", "else_branch")
    if isinstance(condition, Known):
        graph = node.attributes[names[0] if bool(condition.value) else names[1]].as_graph()
        _inline(lowering, node, graph)
        return
    made = [lowering.body(node.attributes[name].as_graph()) for name in names]
    branch = Branch([body for body, _ in made], [len(captured) for _, captured in made])
    captured = [value for _, values in made for value in values]
    lowering.call_module(node, branch, (_argument(lowering, condition), *_captured(lowering, captured)))


def _inline(lowering: Lowering, node: ir.Node, graph: ir.Graph) -> None:
    """Lower the chosen branch in place of the If."""
    for inner in graph:
        lowering.lower(inner)
    for output, value in zip(node.outputs, graph.outputs, strict=True):
        lowering.forms[output] = lowering.read(value)


def _lower_loop(lowering: Lowering, node: ir.Node) -> None:
    graph = node.attributes["body"].as_graph()
    body, captured = lowering.body(graph)
    trips, condition, *values = lowering.inputs_of(node)
    carried = [_tensor(lowering, form) for form in values]
    module = Repeat(body, len(carried), [_no_rows(value) for value in graph.outputs[1 + len(carried) :]])
    limit = None if trips is None else lowering.numbers(trips)
    going = _tensor(lowering, condition)
    lowering.call_module(node, module, (limit, going, *carried, *_captured(lowering, captured)))


def _no_rows(value: ir.Value) -> torch.Tensor:
    """What is stacked of a scan output when there is nothing to stack; sizes that nothing tells are 0."""
    sizes = [size if isinstance(size, int) else 0 for size in value.shape or ()]
    return torch.empty(0, *sizes, dtype=None if value.dtype is None else TORCH_TYPES.get(value.dtype))


def _lower_scan(lowering: Lowering, node: ir.Node) -> None:
    body, captured = lowering.body(node.attributes["body"].as_graph())
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
    inputs = [_tensor(lowering, form) for form in lowering.inputs_of(node)]
    module = BatchScanned(scan) if batched else scan
    lowering.call_module(node, module, (*inputs, *_captured(lowering, captured)))


def _tensor(lowering: Lowering, form: Form | None) -> Any:
    """What a body takes as an input of its own."""
    return None if form is None else lowering.tensor(form)


def _captured(lowering: Lowering, values: Sequence[ir.Value]) -> list[Any]:
    return [_argument(lowering, lowering.read(value)) for value in values]


def _argument(lowering: Lowering, form: Form | None) -> Any:
    """A form as it is: Python numbers stay Python numbers."""
    return lowering.numbers(form) if isinstance(form, Host) else _tensor(lowering, form)


def _single(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)
