"""From an ONNX model to a torch module."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx

from compressor.errors import ModelError, root_cause
from compressor.graph import opset
from compressor.prepare import infer_shapes
from compressor.torch_graph.function_bodies import inline_functions
from compressor.torch_graph.lowering import Lowering
from compressor.torch_graph.own_statistics import separate
from compressor.torch_graph.parameters import scales, trainable
from compressor.torch_graph.recomposing import recompose
from compressor.torch_graph.specializing import specialize
from compressor.torch_graph.weights import Weights
from compressor.torch_graph.writing import NAMES, TRANSPOSED


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
        ModelError: the graph is broken; an operator that neither torch nor ONNX's reference implements, or an
            attribute that is not supported, by node name.
    """
    model = _prepared(model)
    root = torch.nn.Module()
    weights = Weights(root, model)
    weights.add_parameters(trainable(model) + (scales(model) if learn_ranges else []))
    weights.add_statistics()
    opsets = {**model.opset_imports, "": opset(model)}
    module = Lowering(root, opsets, weights).module(model.graph)
    module.meta[NAMES] = weights.paths
    module.meta[TRANSPOSED] = weights.transposed
    return module.eval()


def _prepared(model: ir.Model) -> ir.Model:
    """A copy in the form that is lowered best: no functions, shapes as far as they can be inferred, fewer nodes."""
    try:
        model = model.clone()
    except RuntimeError as error:
        raise ModelError(f"to_torch: the graph is broken: {root_cause(error)}") from error
    inline_functions(model)
    infer_shapes(model)
    separate(model)
    specialize(model)
    recompose(model)
    return model
