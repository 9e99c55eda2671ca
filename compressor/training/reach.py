"""Whether a gradient gets from the outputs of a graph back to its weights, and which node stops it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compressor.errors import ModelError


def require_gradient(
    label: str, module: fx.GraphModule, inputs: Sequence[Tensor], outputs: Iterable[int]
) -> None:
    """Raise ModelError unless one of the outputs with these numbers depends on a weight in a differentiable way.

    Args:
        label: who asks, for the message.
        module: the student, with its parameters frozen as they will be.
        inputs: a batch; the module runs once.
        outputs: the numbers of the outputs that a loss looks at.
    """
    run = _Tracer(module)
    with torch.enable_grad():
        made = run.run(*inputs)
    found = [made] if isinstance(made, Tensor) else list(made)
    if any(found[number].requires_grad for number in outputs):
        return
    where = f"node {run.cuts[-1]!r} passes none" if run.cuts else "the outputs depend on no trained weight"
    raise ModelError(
        f"{label}: no gradient reaches the weights: {where}. Cut the model before that node (an ArgMax or a Cast to "
        "integers at its end, say), or train on an output that is differentiable."
    )


class _Tracer(fx.Interpreter):
    """Runs a graph and notes, in order, the ONNX nodes that take a gradient and give none."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.cuts: list[str] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and compare what comes in with what goes out."""
        result = super().run_node(n)
        given = any(_tracked(self.env[source]) for source in n.all_input_nodes)
        if given and n.op != "output" and not _tracked(result):
            self.cuts.append(str(n.meta.get("onnx") or n.name))
        return result


def _tracked(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, list | tuple) and any(_tracked(item) for item in value)
