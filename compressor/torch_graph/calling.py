"""An operator as one call of its kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from compressor.torch_graph import attributes, table
from compressor.torch_graph.values import Kernel

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering


class KernelModule(torch.nn.Module):
    """A kernel that behaves differently in training, as a module with a mode: BatchNormalization, Dropout."""

    def __init__(self, kernel: Kernel, keywords: dict[str, Any]) -> None:
        super().__init__()
        self.kernel = kernel
        self.keywords = keywords

    def forward(self, *inputs: Any) -> Any:
        """Run the kernel in the mode of the module."""
        return self.kernel(*inputs, **self.keywords, training=self.training)


def lower(lowering: Lowering, node: ir.Node) -> bool:
    """Add the call of the node's kernel; False when there is none."""
    kernel = table.kernel_of(node)
    if kernel is None:
        return False
    wants = table.signature(kernel)
    kinds = [wants.kind(position) for position in range(len(node.inputs))]
    forms = lowering.inputs_of(node)
    inputs = tuple(
        None if form is None else lowering.read_as(kind, form)
        for kind, form in zip(kinds, forms, strict=True)
    )
    keywords = attributes.keywords(lowering, node, kernel)
    if "training" in wants.names:
        lowering.call_module(node, KernelModule(kernel, keywords), inputs)
        return True
    call = lowering.graph.call(kernel, *inputs, **attributes.as_arguments(lowering, keywords))
    call.meta["onnx"] = node.name
    given = {kind for kind, form in zip(kinds, forms, strict=True) if form is not None}
    lowering.bind(node, lowering.beside(call) if given <= {"number", "list"} else call)
    return True
