"""Whether training has gone astray, and which tensor went first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

EARLY = 20
"""Steps whose losses say what is usual."""
FACTOR = 1e3
"""A loss so many times above the usual has exploded."""
STEPS = 5
"""Steps in a row that it takes: a single bad batch is no explosion."""


@dataclass
class LossWatch:
    """Follows the loss from step to step.

    A loss has exploded when `STEPS` in a row lie above `FACTOR` times the largest of the first `EARLY` losses, or
    above `FACTOR` itself where those are below 1: a student that begins as the original has a loss of nearly 0.

    Args:
        usual: the largest of the early losses so far.
        early: how many of them were seen.
        high: how many losses in a row were too large.
    """

    usual: float = 1.0
    early: int = 0
    high: int = 0

    def check_loss(self, loss: float, step: int) -> str:
        """What is wrong with the loss of a step, counted from 1; empty when nothing is.

        >>> LossWatch().check_loss(float("nan"), 1)
        'the loss is NaN at step 1'
        """
        if not math.isfinite(loss):
            return f"the loss is {'NaN' if math.isnan(loss) else 'infinite'} at step {step}"
        self.high = self.high + 1 if self.early and loss > FACTOR * self.usual else 0
        if self.high >= STEPS:
            return f"the loss has exploded: {loss:.3g} at step {step}, up to {self.usual:.3g} at the start"
        if self.early < EARLY and not self.high:
            self.usual = max(self.usual, loss)
            self.early += 1
        return ""


def first_bad(
    module: fx.GraphModule, inputs: Sequence[Tensor], labels: Tensor | None = None, rows: Tensor | None = None
) -> str:
    """The first tensor that is not finite, in words: an input, the labels, a parameter, or a value of the graph.

    Inside the graph it is where NaN begins or, without any NaN, infinity: infinities that vanish again, as in
    attention masks, are no fault. The module runs once, in its mode and without gradients; its buffers are put back.

    Args:
        module: the student.
        inputs: the graph's inputs in order.
        labels: the batch's labels.
        rows: the samples' numbers [n], for the text.

    Returns:
        A clause, such as "the value 'logits' of node 'gemm' is the first that is not finite (NaN)"; when all are
        finite it says that the loss itself is at fault.
    """
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    given = dict(zip((f"the input {name!r}" for name in names), inputs, strict=True))
    if labels is not None:
        given["the labels"] = labels
    for what, tensor in given.items():
        if fault := _fault(tensor):
            return f"{what} hold{'' if what == 'the labels' else 's'} {fault}{_where(tensor, rows)}"
    return first_bad_parameter(module) or _inside(module, inputs)


def first_bad_parameter(module: nn.Module) -> str:
    """The first parameter, or its gradient, that is not finite, in words; empty when all are finite."""
    for name, parameter in module.named_parameters():
        if fault := _fault(parameter):
            return f"the parameter {name!r} holds {fault}"
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and (fault := _fault(parameter.grad)):
            return f"the gradient of the parameter {name!r} holds {fault}"
    return ""


def _inside(module: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    run = _Tracer(module)
    with torch.no_grad():
        run.run(*inputs)
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
    node = run.origin()
    if node is None:
        return "all values of the model are finite, so that the loss itself is not"
    return (
        f"the value {node.name!r} of {_operation(node)} is the first that is not finite ({run.faults[node]})"
    )


class _Tracer(fx.Interpreter):
    """Runs a graph and writes down which nodes give NaN or infinity."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.faults: dict[fx.Node, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and look at what it gives."""
        result = super().run_node(n)
        found = [fault for tensor in _tensors(result) if (fault := _fault(tensor))]
        if found and n.op != "output":
            self.faults[n] = "NaN" if "NaN" in found else found[0]
        return result

    def origin(self) -> fx.Node | None:
        """Where the first NaN comes from, else the infinity in an output: the earliest bad node that leads there."""
        nan = next((node for node, fault in self.faults.items() if fault == "NaN"), None)
        outputs = [node for node in self.graph.nodes if node.op == "output"]
        bad = nan or next((n for o in outputs for n in o.all_input_nodes if n in self.faults), None)
        while bad is not None:
            sources = [n for n in bad.all_input_nodes if n in self.faults and n.op != "get_attr"]
            if not sources:
                break
            bad = sources[0]
        return bad


def _tensors(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _fault(tensor: Tensor) -> str:
    """'NaN', 'infinity', or nothing."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all()):
        return ""
    return "NaN" if bool(tensor.isnan().any()) else "infinity"


def _where(tensor: Tensor, rows: Tensor | None) -> str:
    """The sample that is at fault."""
    if rows is None or not tensor.ndim or len(tensor) != len(rows):
        return ""
    bad = ~tensor.isfinite().reshape(len(tensor), -1).all(dim=1)
    return f" in sample {int(rows.to(bad.device)[bad][0])}"


def _operation(node: fx.Node) -> str:
    """The node in the user's terms: its name in the file, else what it calls."""
    if name := node.meta.get("onnx"):
        return f"node {name!r}"
    target = (
        node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    )
    return f"node {target!r}"
